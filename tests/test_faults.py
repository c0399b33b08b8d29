"""Faults on a real Ray: whatever happens, the same command ends with the tables of an undisturbed run, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest
from ray.cluster_utils import Cluster

from benchmarks.scale import below
from study import run
from study.results import folder
from tests.running import ROOT, checkpoints, facts, in_mid_run, kill_one_worker, one, rows, start, tables, tiny, wait_until, workers

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
    (head,) = [pid for pid in below(process.pid) if b"gcs_server" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]]
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
    assert wait_until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids), seconds=60)
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
