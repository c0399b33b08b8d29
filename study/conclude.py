"""What a run asks of others at its end: the best model's reading of all texts, the report, and, with --hold-out, forecasts before the
largest sizes train.

They run in processes of their own: the driver stays small, and a fault there cannot touch a run.

    later = held_out(trials, n_sizes=1); ...; forecast(out, later); ...; unjudged, problem = report(out)
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def report(out: Path) -> tuple[str, str]:
    """Have the best model read all generated texts, and build the report.

    The report is begun while the texts are being read, and waits for that where it needs it.

    Returns:
        Why the texts were not judged, or "", and why there is no report, or "".
    """
    with tempfile.TemporaryFile("w+") as said:
        with subprocess.Popen(_line("study.judge", str(out)), stdout=subprocess.PIPE, stderr=said, env=_environment()) as judge:
            done = analysis(out, "--judging", stdin=judge.stdout)
        said.seek(0)
        complaints = said.read()
    return _last_line(complaints) if judge.returncode else "", _last_line(done.stderr or done.stdout) if done.returncode else ""


def analysis(out: Path, *flags: str, stdin: Any = None) -> subprocess.CompletedProcess[str]:
    """Run `python -m analysis` on the results in a process of its own."""
    line = _line("analysis", str(out), *flags)
    return subprocess.run(line, stdin=stdin, capture_output=True, text=True, env=_environment(), check=False)


def _line(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}


def _last_line(said: str) -> str:
    return printable((said.strip() or "no message").splitlines()[-1])
