"""Helpers of the tests that run studies: a tiny study's command line, running it, and comparing what it left."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import below
from study import records
from study.command import parse
from study.results.trial_writer import Recorder, Where
from study.spec import Trial, expand

ROOT = Path(__file__).parent.parent
TIMES = {
    "ms_per_step", "cpu_ms_per_step", "tokens_per_s", "wall_s", "train_s", "eval_s", "started_at", "finished_at", "peak_memory_bytes",
    "restarts", "host", "exclusive_timing", "mfu", "git_commit", "git_dirty",
}  # fmt: skip
"""Columns that differ between two runs of the same trial."""


def tiny(out: Path, *more: str) -> list[str]:
    """Arguments of a study of three trials that take about a second each, checkpointed at every evaluation."""
    recipe = ["--train.n_steps", "160", "--train.eval_interval", "20", "--train.eval_windows", "16", "--precision", "float32"]
    return ["smoke", "--out", str(out), "--seeds", "1", "--sweeps", "width:n_embd=16,24,32", *recipe, "--checkpoint-s", "0", *more]


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start `python -m study.run` as a person's terminal would, in a process group of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "study.run", *arguments]
    with log.open("wb") as file:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=heed_hang_ups
        )


def heed_hang_ups() -> None:
    """As a terminal's programs do; tests may run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def in_mid_run(place: Path, *more: str) -> tuple[subprocess.Popen[bytes], Path, Path]:
    """A tiny study of its own process that has saved its first checkpoints, its results folder and what it says."""
    out, log = place / "out", place / "log"
    process = start(tiny(out, "--no-report", *more), log)
    assert wait_until(lambda: checkpoints(out, 40), process=process), log.read_text()
    return process, out, log


def wait_until(condition: Callable[[], Any], seconds: float = 240, process: subprocess.Popen[bytes] | None = None) -> Any:
    """Wait for a condition; returns its value, or None when time is up or the process has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and (process is None or process.poll() is None):
        if value := condition():
            return value
        time.sleep(0.02)
    return condition()


def finished(bundle: Any) -> Any:
    """The bundle, trained to its end."""
    while not bundle.done:
        bundle.advance()
    return bundle


def checkpoints(out: Path, from_step: int) -> list[Path]:
    """Whole checkpoints at or after a step."""
    return [path for path in out.glob("checkpoints/*/step-*") if path.name[5:].isdigit() and int(path.name[5:]) >= from_step]


def words_of(pid: int) -> bytes:
    """The command line of a process, in which Ray tells what its workers do; nothing where it has just ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def workers(ancestor: int) -> list[int]:
    """Process ids of the trial workers below a process of ours."""
    return [pid for pid in below(ancestor) if words_of(pid).startswith((b"ray::BundleTrainable", b"ray::ResourceTrainable"))]


def kill_one_worker(ancestor: int, number: int = signal.SIGKILL, spare: Sequence[int] = ()) -> int:
    """Send a signal to one trial worker that is training (Ray names the method) and not spared; returns its process id."""
    found = wait_until(lambda: [pid for pid in workers(ancestor) if pid not in spare and b".train" in words_of(pid)], seconds=30)
    os.kill(found[0], number)
    return int(found[0])


def one(out: Path, *more: str) -> list[str]:
    """Arguments of one trial of the tiny study, without a report."""
    return tiny(out, "--no-report", "--sweeps", "width:n_embd=24", *more)


def tables(results: Path, of: Path | None = None) -> dict[str, list[dict[str, Any]]]:
    """All tables without the columns that hold times; of the trials that another folder has, if one is given."""
    wanted = {row["trial_id"] for row in rows(of or results)}
    return {
        table: [
            {key: value for key, value in row.items() if key not in TIMES}
            for row in records.read(results, table).to_pylist()
            if row["trial_id"] in wanted
        ]
        for table in records.PER_TRIAL
    }


def rows(results: Path) -> list[dict[str, Any]]:
    """The rows of `trials`."""
    return records.read(results, "trials").to_pylist()


def facts(results: Path) -> dict[str, Any]:
    """study.json."""
    return json.loads((results / "study.json").read_text())


def write_study(
    out: Path, preset: str, loss_of: Callable[[Trial], float], noise_sd: float = 0.015, unique_tokens: int = 4_000_000, **changes: Any
) -> dict[str, Trial]:
    """Results of a preset as its own recorder writes them: half the variance of seeds belongs to the trunk that lengths share."""
    rng = np.random.default_rng(3)
    arguments = [word for name, value in changes.items() for word in (f"--{name}", *value)]
    trials = {t.trial_id: t for t in expand(parse([preset, *arguments]).study)}
    columns = {"data_name": "stories", "data_sha256": "x", "loss_floor": 0.2, "unique_tokens": unique_tokens}
    recorder = Recorder(out, preset, "0", columns, trials, 64)
    trunks: dict[Any, float] = {}
    for trial_id, trial in trials.items():
        trunk = trunks.setdefault((trial.shape, trial.train.unique_tokens, trial.seed), float(rng.normal()))
        loss = loss_of(trial) + noise_sd * (trunk + float(rng.normal())) / math.sqrt(2)
        row = {"trial_id": trial_id, "status": "COMPLETED", "n_steps": trial.train.n_steps, "n_tokens": trial.n_tokens, "val_loss": loss}
        recorder.ended({"row": {**row, "ms_per_step": 5.0}, "curve": [], "samples": []}, Where(1.79e9, exclusive=True))
    for name in records.PER_TRIAL:
        records.compact(out, name, preset)
    facts = {"name": preset, "question": "What does it buy?", "trial_ids": list(trials)}
    (out / "study.json").write_text(json.dumps(facts))
    return trials
