"""A real cluster without a cloud: Ray's own launcher brings clusters/on_prem.yaml up on three hosts, and a study runs on them.

The hosts are namespaces of this machine (tests/hosts.py); SSH, rsync, ray up, ray job submit, ray exec and ray down are the real ones.
Every step prints its command and time; see them with: make test-cluster
"""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests import hosts as host_tools
from tests.hosts import Hosts, Step, copy_project

pytestmark = [pytest.mark.slow, pytest.mark.ray]

LONGER = "--train.n_steps 2000 --train.eval_interval 500"
"""Trials of a few seconds: `smoke` itself is over before the workers of other hosts have started."""
STUDY = f"python -m study.run smoke {LONGER} --cpus-per-trial 1 --out '~/results/smoke'"
N_TRIALS = 14


def change_lines(project: Path, hosts: Hosts) -> None:
    """Fill in the lines of clusters/on_prem.yaml marked CHANGE, and leave out the installation, which the hosts have already."""
    file = project / "clusters" / "on_prem.yaml"
    config = yaml.safe_load(file.read_text())
    head, *workers = [address for name, address in hosts.address.items() if name != "laptop"]
    config["provider"] |= {"head_ip": head, "worker_ips": workers}
    config["auth"]["ssh_user"] = "root"
    config["setup_commands"] = [command for command in config["setup_commands"] if "/uv" not in command]
    file.write_text(yaml.safe_dump(config, sort_keys=False))


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with host_tools.started(["head", "one", "two"]) as started:
        project = started.home("laptop") / "project"
        copy_project(project)
        change_lines(project, started)
        yield started


@pytest.fixture(scope="module")
def step(hosts: Hosts) -> Step:
    return host_tools.shell_on_laptop(hosts)


@pytest.fixture(scope="module")
def cluster(hosts: Hosts, step: Step) -> Step:
    """The cluster, up: returns `step`."""
    step("ray get-auth-token --generate > /dev/null")
    step("ray up clusters/on_prem.yaml -y")
    deadline = time.monotonic() + 150
    while "3 local.cluster.node" not in (status := step("ray exec clusters/on_prem.yaml 'ray status'")):
        assert time.monotonic() < deadline, f"a worker has not joined: {status}"
        time.sleep(3)
    return step


@pytest.fixture(scope="module")
def dashboard(hosts: Hosts, cluster: Step) -> Iterator[str]:
    """Address of the dashboard on the laptop, through `ray dashboard`."""
    tunnel = hosts.start("laptop", ["bash", "-c", "cd project && ray dashboard clusters/on_prem.yaml"])
    wait_for(cluster, "http://127.0.0.1:8265")
    yield "http://127.0.0.1:8265"
    tunnel.terminate()
    tunnel.wait()


def wait_for(step: Step, url: str, timeout_s: float = 60) -> None:
    """Wait until something answers at an address, as seen from the laptop."""
    ask = f"import urllib.request, urllib.error\ntry: urllib.request.urlopen('{url}', timeout=5)\nexcept urllib.error.HTTPError: pass"
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            step(f'python -c "{ask}" 2> /dev/null', quiet=True)
            return
        except AssertionError:
            assert time.monotonic() < deadline, f"nothing answers at {url}"
            time.sleep(1)


def test_a_study_runs_as_a_job_on_several_hosts(hosts: Hosts, cluster: Step, dashboard: str) -> None:
    output = cluster(f"ray job submit --address {dashboard} --working-dir . -- {STUDY}", timeout=600)
    assert f"{N_TRIALS} of {N_TRIALS} trials are completed" in output
    cluster("ray rsync-down clusters/on_prem.yaml '~/results/' ../results/")
    results = hosts.home("laptop") / "results" / "smoke"
    trials = pq.read_table(results / "trials.parquet").to_pydict()
    assert trials["status"] == ["COMPLETED"] * N_TRIALS
    assert len(set(trials["host"])) > 1, f"all trials ran on {set(trials['host'])}"
    assert (results / "report" / "report.html").stat().st_size > 10_000


def test_the_same_command_through_exec_trains_nothing_again(cluster: Step, dashboard: str) -> None:
    ship = "ray rsync-up clusters/on_prem.yaml ./ '~/project/'"
    cluster(ship)
    output = cluster(f'ray exec clusters/on_prem.yaml "cd project && {STUDY} --address auto"')
    assert f"{N_TRIALS} of {N_TRIALS} trials are completed" in output


def test_tensorboard_is_seen_from_the_laptop(hosts: Hosts, cluster: Step, dashboard: str) -> None:
    board = "tensorboard --logdir results/smoke/tensorboard --load_fast=false --host 127.0.0.1 --port 6006"
    forward = f"cd project && ray exec clusters/on_prem.yaml --port-forward 6006 '{board}'"
    tunnel = hosts.start("laptop", ["bash", "-c", forward], RAY_AUTH_MODE="token")
    wait_for(cluster, "http://127.0.0.1:6006")
    deadline = time.monotonic() + 60
    ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:6006/data/plugin/scalars/tags').read().decode())"
    while (tags := cluster(f'python -c "{ask}"')).count("loss/val") < N_TRIALS and time.monotonic() < deadline:
        time.sleep(2)
    tunnel.terminate()
    tunnel.wait()
    assert tags.count("loss/val") >= N_TRIALS


def test_a_stranger_without_the_token_is_refused(hosts: Hosts, cluster: Step, dashboard: str) -> None:
    stranger = {"HOME": str(hosts.folder / "keys"), "RAY_AUTH_MODE": "disabled"}
    output = cluster(f"ray job submit --address {dashboard} -- echo hello", expected=1, **stranger)
    assert "Missing authentication token" in output
    assert "submitted successfully" not in output


def test_ports_other_than_ssh_do_not_serve_the_dashboard_or_jobs(hosts: Hosts, cluster: Step) -> None:
    """The dashboard and the jobs' port listen on the head's loopback: from another host nothing answers, token or not."""
    ask = f"import urllib.request as u; u.urlopen('http://{hosts.address['head']}:8265', timeout=5)"
    assert "Connection refused" in cluster(f'python -c "{ask}"', expected=1)


def test_down_stops_the_head_and_nothing_outside(hosts: Hosts, cluster: Step) -> None:
    bystander = subprocess.Popen(["bash", "-c", "exec -a raylet sleep 300"])  # by its name `ray stop` would end it
    cluster("ray down clusters/on_prem.yaml -y")
    for name in ("one", "two"):
        address = hosts.address[name]
        cluster(f"ssh -o StrictHostKeyChecking=no {address} 'bash -ic \"ray stop\"'")
    for name in ("head", "one", "two"):
        assert "raylet" not in hosts.run(name, ["ps", "ax"]).stdout
    assert bystander.poll() is None
    os.kill(bystander.pid, 9)
    bystander.wait()
