"""What a run asks of others at its end: the best model's reading of all texts, the report, and, with --hold-out, forecasts before the
largest sizes train.

They run in processes of their own: the driver stays small, and a fault there cannot touch a run.

    later = held_out(trials, n_sizes=1); ...; forecast(out, later); ...; problem = report(out)
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from study import records
from study.live import printable
from study.provenance import ROOT
from study.spec import Trial


def held_out(trials: Sequence[Trial], n_sizes: int) -> list[Trial]:
    """Trials of the `n_sizes` largest sizes (non-embedding parameters; sizes within 5 % count as one).

    Raises:
        ValueError: fewer than two sizes would be left to forecast from.
    """
    if not n_sizes:
        return []
    sizes: list[int] = []
    for size in sorted({trial.shape.params_non_embedding for trial in trials}, reverse=True):
        if not sizes or size < sizes[-1] / 1.05:
            sizes.append(size)
    if n_sizes and n_sizes > len(sizes) - 2:
        raise ValueError(
            f"hold-out=largest:{n_sizes} leaves fewer than two of the study's {len(sizes)} sizes to forecast from; "
            f"hold out {max(0, len(sizes) - 2)} at most, or add sizes"
        )
    smallest = sizes[n_sizes - 1] / 1.05
    return [trial for trial in trials if trial.shape.params_non_embedding > smallest]


def forecast(out: Path, targets: Sequence[Trial]) -> None:
    """Put forecasts on record of configurations of which no trial is completed yet."""
    started = {row["config_id"] for row in records.read(out, "trials").to_pylist() if row["status"] == "COMPLETED"}
    fresh = {t.config_id: t for t in targets if t.config_id not in started}
    for trial in fresh.values():
        shape = f"{trial.shape.n_layer}x{trial.shape.n_embd}h{trial.shape.n_head}@{trial.n_tokens}"
        done = analysis(out, "--forecast", shape, "--no-report", "--bootstrap", "0")
        lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["no message"]
        print(lines[0] if done.returncode == 0 else f"no forecast of {shape}: {lines[-1]}", flush=True)


def report(out: Path) -> str:
    """Build the report; returns the reason if that failed, else ""."""
    done = analysis(out)
    if done.returncode == 0:
        return ""
    return printable((done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1])


def judge(out: Path) -> str:
    """Have the best model read all generated texts; returns the reason if that failed, else ""."""
    done = _module("study.judge", str(out))
    return "" if done.returncode == 0 else printable((done.stderr.strip() or "no message").splitlines()[-1])


def analysis(out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m analysis` on the results in a process of its own."""
    return _module("analysis", str(out), *flags)


def _module(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", name, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=False)
