"""clusters/slurm.sh on two hosts: a real `ray symmetric-run`, with two short stand-ins for Slurm's `srun` and `scontrol`.

The stand-ins do what Slurm does for this script: name the allocation's machines, and run one command on each of them over SSH.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests import hosts as host_tools
from tests.hosts import Hosts, copy_project
from tests.test_ray_up import LONGER

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SCONTROL = "#!/bin/bash\nprintf '%s\\n' {addresses}\n"
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
command=$(printf '%q ' "$@")
for address in {addresses}; do
  ssh -o StrictHostKeyChecking=no -o LogLevel=ERROR $address "export PATH=$PATH RAY_AUTH_MODE=$RAY_AUTH_MODE; cd $PWD; $command" &
  pids+=($!)
done
for pid in "${{pids[@]}}"; do wait $pid || status=$?; done
exit ${{status:-0}}
"""


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with host_tools.started(["first", "second"], "slurm") as started:
        yield started


def install_stand_ins(hosts: Hosts) -> None:
    """Put `srun` and `scontrol` on every host's PATH."""
    addresses = " ".join(address for name, address in hosts.address.items() if name != "laptop")
    (hosts.folder / "slurm").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        file = hosts.folder / "slurm" / name
        file.write_text(text.format(addresses=addresses))
        file.chmod(0o755)


def share_home(hosts: Hosts) -> Path:
    """The project on a file system that all hosts see, with one token for all, as in the home folder of a Slurm user."""
    project = hosts.folder / "project"
    copy_project(project)
    (project / ".venv" / "bin").mkdir(parents=True)
    (project / ".venv" / "bin" / "activate").write_text("")  # the hosts have the environment on their PATH
    token = hosts.home("laptop") / ".ray"
    token.mkdir()
    for name in hosts.address:
        if name != "laptop":
            (hosts.home(name) / ".ray").symlink_to(token)
    return project


def test_a_study_runs_on_a_slurm_allocation(hosts: Hosts) -> None:
    install_stand_ins(hosts)
    project = share_home(hosts)
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "any"}
    command = f"cd {project} && bash clusters/slurm.sh smoke {LONGER} --max-concurrent 4"
    done: subprocess.CompletedProcess[str] = hosts.run("laptop", ["bash", "-c", command], timeout=400, **job)
    assert done.returncode == 0, done.stdout[:6000]
    trials = pq.read_table(project / "results" / "smoke" / "trials.parquet").to_pydict()
    assert trials["status"] == ["COMPLETED"] * 14
    assert set(trials["host"]) == {"first", "second"}
    for name in ("first", "second"):
        assert "raylet" not in hosts.run(name, ["ps", "ax"]).stdout
