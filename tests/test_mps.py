"""NVIDIA's MPS with a stand-in for its control program: the study's own daemon starts and ends with it, and no other is touched."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from study.train import mps
from tests.running import ROOT, one, rows, tables, wait_until
from tests.test_fake_gpus import run_on_fake_gpus

STAND_IN = """#!/bin/bash
echo "$* $CUDA_MPS_PIPE_DIRECTORY" >> "{log}"
folder=${{CUDA_MPS_PIPE_DIRECTORY:-{default}}}
case $1 in
  -d) [ -e "{refuse}" ] && {{ echo "the device is in no mode for this"; exit 1; }}
      setsid "$0" daemon "$folder" & ;;
  daemon) echo $$ > "$2/nvidia-cuda-mps-control.pid"; while sleep 0.05; do :; done ;;
  *) read -r question
     echo "$question" >> "{log}"
     pid=$(cat "$folder/nvidia-cuda-mps-control.pid") && kill -0 "$pid" || exit 1
     case $question in
       quit*) kill "$pid"; rm "$folder/nvidia-cuda-mps-control.pid" ;;
       get_server_list) echo 4711 ;;
       get_default*) echo 100.0 ;;
     esac ;;
esac 2> /dev/null
"""
"""Answers as the real one does where this program asks; the kernel knows a script by its own name, too."""


class Driver:
    """A made-up driver: where its program logs, what makes it refuse, and its daemons."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log, self.refuse, self.default = folder, folder / "log", folder / "refuse", folder / "default"
        self.default.mkdir()
        (folder / "bin").mkdir()
        self.install(mps.CONTROL, STAND_IN.format(log=self.log, refuse=self.refuse, default=self.default))
        self.install("nvidia-smi", "#!/bin/sh\necho 80000\n")  # MiB of its GPU

    def install(self, name: str, text: str) -> None:
        """A program of this driver."""
        (self.folder / "bin" / name).write_text(text)
        (self.folder / "bin" / name).chmod(0o755)

    def begin(self, pipe: Path) -> int:
        """Start a daemon that is not ours; returns its process id."""
        pipe.mkdir(exist_ok=True)
        subprocess.run([mps.CONTROL, "-d"], env={**os.environ, mps.PIPE: str(pipe)}, check=True)
        noted = pipe / f"{mps.CONTROL}.pid"
        return int(wait_until(lambda: noted.exists() and noted.read_text(), seconds=10))


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """On the PATH as NVIDIA's own would be; ends the daemons that the test started."""
    made = Driver(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name in (mps.PIPE, "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"):
        monkeypatch.setenv(name, "")  # so that what `join` sets goes with the test
        monkeypatch.delenv(name)
    yield made
    for noted in tmp_path.rglob(f"{mps.CONTROL}.pid"):
        pid = int(noted.read_text())
        os.kill(pid, signal.SIGTERM)
        assert wait_until(lambda pid=pid: not alive(pid), seconds=10)


def test_a_daemon_of_the_studys_own_starts_and_ends_with_it(driver: Driver, tmp_path: Path) -> None:
    with mps.started("auto", True, tmp_path) as (pipe, problem):
        pid = int((Path(pipe) / f"{mps.CONTROL}.pid").read_text())
        assert problem == ""
        assert Path(pipe).parent == tmp_path
        assert alive(pid)
        assert not mps.join("", 1.0)  # a trial with a whole GPU does without
        assert mps.join(pipe, 0.25)
        assert os.environ[mps.PIPE] == pipe
        assert os.environ["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "50"
        assert os.environ["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=20000M"
    assert not alive(pid)
    assert not Path(pipe).exists()
    assert [line for line in driver.log.read_text().splitlines() if line.startswith(("-d", "start", "quit"))] == [
        f"-d {pipe}", f"start_server -uid {os.getuid()}", "quit -t 5",
    ]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_daemon_ends_with_a_driver_that_is_killed(driver: Driver, tmp_path: Path, number: int) -> None:
    program = (
        "import pathlib, signal, sys, time; from study.train.mps import started\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell has its background jobs ignore it
        "with started('on', False, pathlib.Path(sys.argv[1])): time.sleep(600)"
    )
    study = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT)
    noted = wait_until(lambda: [path for path in tmp_path.glob(f"mps-*/{mps.CONTROL}.pid") if path.read_text()], process=study)
    pid = int(noted[0].read_text())
    study.send_signal(number)
    study.wait(10)
    assert wait_until(lambda: not alive(pid) and not noted[0].parent.exists(), seconds=20)


def test_somebody_elses_daemon_is_left_alone_and_used_where_cuda_looks_for_one(driver: Driver, tmp_path: Path) -> None:
    elsewhere = driver.begin(tmp_path / "theirs")
    with mps.started("auto", True, tmp_path) as (pipe, problem):
        assert pipe == ""
        assert "a daemon that this study did not start" in problem
        assert not mps.join(pipe, 0.25)
    usual = driver.begin(driver.default)
    with mps.started("on", True, tmp_path) as found:
        assert found == ("", "")
        assert mps.join("", 1 / 3)
        assert os.environ["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "67"
        assert not mps.join(mps.OFF, 0.25)
    assert alive(elsewhere)
    assert alive(usual)
    assert "quit" not in driver.log.read_text()


def test_where_the_driver_refuses_the_study_goes_on_without_and_leaves_nothing(driver: Driver, tmp_path: Path) -> None:
    driver.refuse.touch()
    with mps.started("auto", True, tmp_path) as (pipe, problem):
        assert pipe == ""
    assert problem == "NVIDIA's MPS is not on: the device is in no mode for this; trials that share a GPU take turns"
    assert not list(tmp_path.glob("mps-*"))


@pytest.mark.parametrize(
    ("wanted", "shared", "expected"),
    [("auto", True, ""), ("auto", False, ""), ("on", True, "there is no nvidia-cuda-mps-control on this machine")],
)
def test_without_the_program_only_who_asked_for_it_is_told(
    wanted: str, shared: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with mps.started(wanted, shared, tmp_path) as (pipe, problem):
        assert (pipe, expected in problem, bool(problem)) == ("", True, bool(expected))
    assert not mps.join("", 0.25)


@pytest.mark.parametrize(("wanted", "shared", "pipe"), [("off", True, mps.OFF), ("auto", False, "")])
def test_off_and_whole_gpus_start_nothing(wanted: str, shared: bool, pipe: str, driver: Driver, tmp_path: Path) -> None:
    with mps.started(wanted, shared, tmp_path) as found:
        assert found == (pipe, "")
    assert not driver.log.exists()


@pytest.mark.ray
def test_a_trial_that_runs_out_of_its_share_gets_the_next_larger_one_and_ends_like_any_other_under_mps(
    driver: Driver, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = run_on_fake_gpus("greedy", 1, one(out, "--gpus-per-trial", "0.25", "--device", "cpu"))
    assert "ran out of memory on 1/4 of a GPU; trying again with 1/2 of a GPU" in said
    (row,) = tables(out)["trials"]
    assert (row["status"], row["gpu_fraction"], row["mps"]) == ("COMPLETED", 0.5, True)
    assert "ran out of memory on 1/4 of a GPU" in row["reason"]
    (same,) = tables(undisturbed, of=out)["trials"]
    assert row == {**same, "reason": row["reason"], "gpu_fraction": 0.5, "mps": True}
    assert tables(out)["curves"] == tables(undisturbed, of=out)["curves"]
    assert "MPS" not in said
    assert "quit -t 5" in driver.log.read_text()
    assert not list(tmp_path.glob("mps-*"))


@pytest.mark.ray
@pytest.mark.slow
def test_without_mps_none_is_started_and_rows_say_so(driver: Driver, story_cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "MPS" not in run_on_fake_gpus("placed", 1, one(out, "--gpus-per-trial", "0.25", "--device", "cpu", "--mps", "off"))
    assert [row["mps"] for row in rows(out)] == [False]
    assert not driver.log.exists()
