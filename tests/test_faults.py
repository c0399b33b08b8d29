"""Faults on a real Ray, of processes and of the machine: the same command ends with the tables of an undisturbed run, bit for bit."""

import errno
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from subprocess import Popen

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from benchmarks.machine import below
from study import run
from study.command import parse
from study.results import folder
from study.results.trial_writer import PROBE_BYTES, Recorder
from study.spec import expand
from study.tune import local_ray
from tests.running import (
    ROOT,
    checkpoints,
    facts,
    in_mid_run,
    kill_one_worker,
    one,
    rows,
    start,
    tables,
    tiny,
    wait_until,
    words_of,
    workers,
)

pytestmark = pytest.mark.ray


def test_a_worker_that_is_killed_and_one_that_hangs_are_replaced_and_resume_with_equal_losses(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def strike() -> None:
        wait_until(lambda: checkpoints(tmp_path, 40))
        killed = kill_one_worker(os.getpid())
        wait_until(lambda: checkpoints(tmp_path, 100))
        kill_one_worker(os.getpid(), signal.SIGSTOP, spare=[killed])

    striker = threading.Thread(target=strike)
    striker.start()
    code = run.main(one(tmp_path, "--stall-minutes", "0.15"))
    striker.join()
    assert code == 0
    said = capsys.readouterr().out
    assert "its worker process died" in said
    assert "no progress" in said
    assert [row["restarts"] for row in rows(tmp_path)] == [2]
    assert tables(tmp_path) == tables(undisturbed, of=tmp_path)


def test_ctrl_c_exits_130_and_the_same_command_ends_like_an_undisturbed_run(undisturbed: Path, tmp_path: Path) -> None:
    process, out, log = in_mid_run(tmp_path, "--sweeps", "width:n_embd=24")
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends Ctrl-C to the whole group
    assert process.wait(30) == 130
    said = log.read_text()
    assert "the same command continues: python -m study.run smoke" in said
    assert "Traceback" not in said
    cut = [row for row in rows(out) if row["status"] == "INTERRUPTED"]
    assert cut
    assert all(row["reason"] == "Ctrl-C" for row in cut)
    assert run.main(one(out)) == 0
    assert tables(out) == tables(undisturbed, of=out)


def head_of(process: Popen[bytes]) -> int:
    """Process id of the head of a run's own Ray."""
    (head,) = [pid for pid in below(process.pid) if b"gcs_server" in words_of(pid).split(b"\0")[0]]
    return head


def again_and_again(process: Popen[bytes]) -> None:
    wait_until(lambda: (os.killpg(process.pid, signal.SIGINT), process.poll() is not None)[1], seconds=60)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strike", "code", "words"),
    [
        (lambda process: process.send_signal(signal.SIGTERM), 143, "the same command continues"),
        (lambda process: os.killpg(process.pid, signal.SIGTERM), 143, "the same command continues"),  # as a batch system ends a job
        (lambda process: process.send_signal(signal.SIGHUP), 129, "the same command continues"),
        (lambda process: process.send_signal(signal.SIGKILL), -9, ""),
        (lambda process: os.kill(head_of(process), signal.SIGKILL), 1, "the same command continues"),
        (again_and_again, 130, "stopped at once; the same command continues"),
    ],
    ids=["SIGTERM", "SIGTERM to the group", "SIGHUP", "SIGKILL", "lost head", "Ctrl-C again and again"],
)
def test_a_driver_that_is_ended_in_any_way_leaves_no_worker_behind_and_the_same_command_continues(
    undisturbed: Path, tmp_path: Path, strike: Callable[[Popen[bytes]], None], code: int, words: str
) -> None:
    process, out, log = in_mid_run(tmp_path)
    pids = workers(process.pid)
    if sys.platform == "linux":  # else Ray's would end first, and Ray with them the driver, one time in six
        assert [pid for pid in below(process.pid) if os.getpgid(pid) != process.pid]
        assert all(os.getpgid(pid) != process.pid for pid in pids)
    strike(process)
    assert process.wait(120) == code, log.read_text()
    assert wait_until(lambda: not any(map(words_of, pids)), seconds=60)
    assert words in log.read_text()
    assert "Traceback" not in log.read_text()
    assert run.main(tiny(out, "--no-report")) == 0
    assert tables(out) == tables(undisturbed)


@pytest.mark.slow
def test_a_signal_while_the_report_is_built_ends_what_builds_it_and_the_same_command_builds_it(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out, ignore=shutil.ignore_patterns("report"))
    process = start(tiny(out), tmp_path / "log")
    assert wait_until(lambda: (out / "report" / "fits.json").exists(), process=process)
    below_it = below(process.pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert len(below_it) >= 1
    assert wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below_it), 20)
    assert not (out / "report" / "report.html").exists()
    again = start(tiny(out), tmp_path / "log")
    assert again.wait(120) == 0
    assert (out / "report" / "report.html").exists()


@pytest.mark.slow
def test_ray_that_was_started_beside_the_quote_is_gone_where_nothing_is_to_be_trained(tmp_path: Path) -> None:
    program = f"""
import sys
from study.run import main
code = main({[*tiny(tmp_path / "out"), "--budget", "1s"]!r})
print("exit", code, "ray", "ray" in sys.modules and sys.modules["ray"].is_initialized())
"""
    environment = {**os.environ, "SCALING_STUDY_CACHE": str(tmp_path / "cache")}  # where no step has been timed
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert "exit 1 ray False" in done.stdout, done.stdout + done.stderr
    assert "timing a few steps" in done.stderr
    assert "budget" in done.stderr


@pytest.mark.slow
def test_trials_of_a_node_that_is_removed_move_to_another(undisturbed: Path, tmp_path: Path) -> None:
    """Three nodes as processes of this machine; code travels as packages, tokens through the object store."""
    small = {"object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
    try:
        nodes = [cluster.add_node(num_cpus=1, **small) for _ in range(2)]
        process, out, log = in_mid_run(tmp_path, "--address", cluster.address)
        cluster.remove_node(nodes[1])
        assert process.wait(120) == 0, log.read_text()
    finally:
        cluster.shutdown()
    assert "trying again from its newest checkpoint" in log.read_text()
    assert tables(out) == tables(undisturbed)


def test_damaged_checkpoints_and_tables_are_named_set_aside_and_recomputed(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    trial_id = facts(out)["trial_ids"][0]
    for name in ("trials.parquet", f"trials/{trial_id}.parquet"):
        (out / name).write_bytes((out / name).read_bytes()[:200])
    broken = out / "checkpoints" / trial_id / "step-00000040"
    broken.mkdir(parents=True)
    (broken / "state.safetensors").write_bytes(b"not a tensor")
    (broken / "state.json").write_text("{}")
    assert run.main(tiny(out, "--no-report")) == 0
    said = capsys.readouterr().out
    assert f"trials/{trial_id}.parquet is damaged; set aside as" in said
    assert "step-00000040" in said
    assert "2 done, 1 to run" in said
    assert tables(out) == tables(undisturbed)


def test_a_trial_without_enough_memory_fails_with_its_reason_one_that_explodes_diverges_and_the_rest_go_on(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker's machine may have less memory than the one that was asked (there such a shape is refused before anything starts)."""
    monkeypatch.setattr("study.plan.memory.room", lambda options: (1 << 60, "another machine has"))
    out = tmp_path / "out"
    command = tiny(out, "--no-report", "--train.n_steps", "40", "--sweeps", f"width:n_embd=16,{2**20}", "rate:lr=0.01,1e30")
    assert run.main(command) == 1
    ends = {(row["n_embd"], row["lr"]): row for row in rows(out)}
    assert ends[16, 0.01]["status"] == "COMPLETED"
    assert ends[32, 1e30]["status"] == "DIVERGED"
    assert "not finite at step" in ends[32, 1e30]["reason"]
    assert ends[2**20, 0.01]["status"] == "FAILED"
    assert "allocate" in ends[2**20, 0.01]["reason"]
    assert "2 of 4 trials are completed" in capsys.readouterr().out
    assert run.main([*command, "--dry-run"]) == 0
    assert "3 done, 1 to run (1 of them again)" in capsys.readouterr().out


@pytest.mark.slow
def test_a_trial_whose_worker_dies_each_time_is_tried_three_times_and_then_recorded_failed(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed: list[int] = []

    def keep_killing() -> None:
        while len(killed) < 3 and wait_until(lambda: set(workers(os.getpid())) - set(killed), seconds=60):
            killed.append(kill_one_worker(os.getpid(), spare=killed))

    killer = threading.Thread(target=keep_killing)
    killer.start()
    code = run.main([*tiny(tmp_path, "--no-report"), "--sweeps", "width:n_embd=32"])
    killer.join()
    assert code == 1
    (row,) = rows(tmp_path)
    assert (row["status"], row["reason"]) == ("FAILED", "its worker process died (killed, or the machine ran out of memory)")
    assert capsys.readouterr().out.count("trying again from its newest checkpoint") == 2


def test_a_folder_in_use_or_that_cannot_be_written_is_refused_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".lock").write_text(json.dumps({"pid": 999999, "host": "elsewhere", "since": "long ago"}))  # a dead process's: taken over
    with folder.locked(out):
        assert json.loads((out / ".lock").read_text())["pid"] == os.getpid()
        assert run.main(tiny(out)) == 1
        assert [path.name for path in out.iterdir()] == [".lock"]  # nothing is touched of the run that holds it
    (tmp_path / "file").write_text("in the way")
    assert run.main(tiny(tmp_path / "file" / "out")) == 1
    first, second = capsys.readouterr().err.strip().splitlines()
    assert f"is in use by another run (process {os.getpid()} on" in first
    assert "results cannot be written to" in second


# ---- the machine: a full or read-only disk, a clock that jumps, a full object store ----


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Nothing frees cycles by chance: whoever needs them freed sees to it."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of its own with room for the tiny study and little more."""
    place = Path(tempfile.mkdtemp(prefix="disk-"))  # not below tmp_path: a socket's path may have 107 bytes
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(place)], capture_output=True, text=True, check=False)
    if done.returncode:
        place.rmdir()
        pytest.skip(f"this system does not let a test mount a file system: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)
    place.rmdir()


def fill(disk: Path) -> Path:
    """Take all that is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return filler


def test_a_disk_that_fills_up_ends_the_run_in_one_sentence_and_the_same_command_continues_when_there_is_space(
    undisturbed: Path, small_disk: Path, uncollected: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = small_disk / "out"
    filling = threading.Thread(target=lambda: wait_until(lambda: checkpoints(out, 40)) and fill(small_disk))
    filling.start()
    assert run.main(one(out)) == 1
    filling.join()
    said = capsys.readouterr().err
    assert "the disk is full" in said
    assert "the same command continues" in said
    assert "Traceback" not in said
    (small_disk / "filler").unlink()
    assert run.main(one(out)) == 0
    assert tables(out) == tables(undisturbed, of=out)


def test_room_for_a_row_is_not_taken_for_room_to_go_on(small_disk: Path) -> None:
    trials = {trial.trial_id: trial for trial in expand(parse(one(small_disk / "out")).study)}
    recorder = Recorder(small_disk, "tiny", "abc", {}, trials, 64)
    params = max(trial.model(64).params_total for trial in trials.values())
    left = fill(small_disk)
    for room, enough in ((PROBE_BYTES, False), (PROBE_BYTES + 14 * params, False), (2 * PROBE_BYTES + 24 * params, True)):
        os.truncate(left, left.stat().st_size - room)
        with nullcontext() if enough else pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            recorder.probe(trials.values())
        fill(small_disk)


def test_ray_is_not_started_where_its_temporary_folder_has_no_room(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(small_disk.parent))
    local_ray.check()
    monkeypatch.setenv("RAY_TMPDIR", str(small_disk))
    fill(small_disk)
    with pytest.raises(ValueError, match=f"temporary folder {small_disk} has 0 MiB left; free some space"):
        local_ray.check()


@pytest.mark.slow
def test_a_temporary_folder_that_fills_up_ends_a_run_that_needs_it_in_one_sentence(
    undisturbed: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["mount", "-o", "remount,size=32m", str(small_disk)], check=True)
    with monkeypatch.context() as there:
        there.setenv("RAY_TMPDIR", str(small_disk))
        process, out, log = in_mid_run(tmp_path)
    fill(small_disk)
    kill_one_worker(process.pid)  # Ray Tune writes down why before it tries again
    assert process.wait(120) == 1, log.read_text()
    said = log.read_text()
    assert f"temporary folder {small_disk} has 0 MiB left" in said
    assert "the same command continues" in said
    assert "Traceback" not in said
    assert run.main(tiny(out, "--no-report")) == 0
    assert tables(out) == tables(undisturbed)


def test_a_read_only_file_system_is_refused_before_anything_starts(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert run.main(tiny(small_disk / "out")) == 1
    said = capsys.readouterr().err.strip()
    assert "results cannot be written to" in said
    assert "Read-only file system" in said
    assert len(said.splitlines()) == 1


@pytest.mark.slow
def test_a_clock_that_is_set_back_and_an_object_store_full_of_other_things_are_no_obstacles(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [ray.put(np.zeros(24 << 20, dtype=np.uint8)) for _ in range(6)]  # 144 MiB of 100: Ray moves some of it to disk
    true_time, back = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: true_time() - back[0])

    def set_back() -> None:
        wait_until(lambda: checkpoints(tmp_path, 40))
        back[0] = 7200.0
        wait_until(lambda: checkpoints(tmp_path, 100))
        back[0] = -7200.0  # and forward, far beyond what counts as a stall

    clock = threading.Thread(target=set_back)
    clock.start()
    code = run.main(tiny(tmp_path, "--no-report", "--stall-minutes", "20"))
    clock.join()
    assert (code, len(held)) == (0, 6)
    assert tables(tmp_path) == tables(undisturbed)
    assert all(row["restarts"] == 0 for row in rows(tmp_path))
    assert all(0 < row["wall_s"] < 3600 for row in rows(tmp_path))
    assert all(row["started_at"] <= row["finished_at"] for row in rows(tmp_path))
