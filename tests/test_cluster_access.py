"""Who may use a running cluster: a head started as the cluster files start it refuses jobs and drivers that lack its token."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.running import ROOT, wait_until


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody uses now."""
    with ExitStack() as open_ones:
        return [open_ones.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


@pytest.fixture(scope="module")
def guarded_cluster() -> Iterator[tuple[str, str]]:
    """A head as the cluster files start it, with token `right`, on ports of its own; yields the dashboard's and the cluster's address."""
    pytest.importorskip("aiohttp_cors", reason="Ray's dashboard is not installed; install ray[default]")
    port, dashboard, agent, client = free_ports(4)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**plain, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "right" * 8, "RAY_USAGE_STATS_ENABLED": "0"}
    ports = f"--port={port} --dashboard-port={dashboard} --dashboard-agent-listen-port={agent} --ray-client-server-port={client}"
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        start = "ray.scripts.scripts start --head --block --node-ip-address=127.0.0.1 --dashboard-host=127.0.0.1 --num-cpus=1"
        more = [f"--temp-dir={folder}", f"--object-store-memory={80 * 2**20}", *ports.split()]
        head = subprocess.Popen(
            [sys.executable, "-m", *start.split(), *more], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            url = f"127.0.0.1:{dashboard}"
            assert wait_until(lambda: submit(url, token="right" * 8)[0] == 200), submit(url, token="right" * 8)[1]
            yield url, f"127.0.0.1:{port}"
        finally:
            head.terminate()
            head.wait(timeout=60)


def submit(url: str, token: str) -> tuple[int, str]:
    """Submit a job over HTTP; returns the status and the text of the answer."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(f"http://{url}/api/jobs/", json.dumps({"entrypoint": "true"}).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except urllib.error.URLError as error:
        return 0, str(error)


@pytest.mark.ray
def test_a_job_without_the_token_is_refused(guarded_cluster: tuple[str, str]) -> None:
    url = guarded_cluster[0]
    assert submit(url, token="")[0] == 401
    assert submit(url, token="wrong" * 8)[0] == 403


JOIN = """
import sys
from study.tune.environment import set_ray_environment
set_ray_environment(on_cluster=True)
from study.options import Options
from study.tune import cluster
with cluster.ray_session(Options(address=sys.argv[1])) as joined:
    import ray
    print(joined)
    print("ships", sorted(ray.get_runtime_context().runtime_env), len(ray.get_runtime_context().runtime_env["py_modules"]))
"""


def said_by(command: str, home: Path, **settings: str) -> tuple[int, str]:
    """Exit code and words of a command that `uv run` starts in a folder with a file too large for Ray to ship."""
    (home / "run").write_text(f"{command}\n")
    with (home / "large").open("wb") as file:
        file.truncate(600 << 20)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = plain | {"HOME": str(home), "PYTHONPATH": str(ROOT)} | settings
    uv_run = ["bash", "-c", "exec -a uv bash run"]  # Ray looks for a parent whose command begins with these two words
    done = subprocess.run(uv_run, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    return done.returncode, done.stdout


@pytest.mark.ray
def test_a_driver_joins_with_the_token_file_of_its_account_and_ships_the_project_s_code_only(
    guarded_cluster: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("right" * 8)
    code, said = said_by(f"{sys.executable} -c '{JOIN}' {guarded_cluster[1]}", tmp_path)
    assert code == 0, said
    assert re.match(r"joined the Ray cluster at [\d.]+:\d+: 1 node with 1 CPUs and 0 GPUs; no quote", said), said
    assert said.endswith("ships ['py_modules'] 3\n")


@pytest.mark.ray
@pytest.mark.parametrize("settings", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong" * 8}, {"RAY_AUTH_TOKEN": "wrong" * 8}])
def test_a_study_without_the_token_is_refused_in_one_sentence(
    guarded_cluster: tuple[str, str], story_cache: Path, tmp_path: Path, settings: dict[str, str]
) -> None:
    address = guarded_cluster[1]
    code, said = said_by(f"{sys.executable} -m study.run smoke --out out --address {address}", tmp_path, **settings)
    assert code == 1
    assert said.startswith(f"study.run: the Ray cluster at {address} refuses this account's token; copy the file ~/.ray/auth_token"), said
    assert len(said.strip().splitlines()) == 1
