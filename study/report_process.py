"""What a run asks of others at its end: the report, and, with --hold-out, forecasts before the largest sizes or longest lengths train.

They run in processes of their own: the driver stays small, and a fault there cannot touch a run.

    later = held_out(trials, "largest", 1); ...; forecast(out, later); ...; with ending(out) as wait: problem = wait()
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from study import records
from study.display.terminal import printable
from study.results.provenance import environment
from study.spec import Trial


def extent(trial: Trial, end: str) -> int:
    """What the `largest` or `longest` trials have most of: non-embedding parameters, or training tokens."""
    return trial.shape.params_non_embedding if end == "largest" else trial.n_tokens


def held_out(trials: Sequence[Trial], end: str, count: int) -> list[Trial]:
    """Trials of the `count` largest sizes or longest lengths (those within 5 % count as one).

    Raises:
        ValueError: fewer than two sizes or lengths would be left to forecast from.
    """
    if not count:
        return []
    levels: list[int] = []
    for level in sorted({extent(trial, end) for trial in trials}, reverse=True):
        if not levels or level < levels[-1] / 1.05:
            levels.append(level)
    if count > len(levels) - 2:
        what = "sizes" if end == "largest" else "training lengths"
        raise ValueError(
            f"hold-out={end}:{count} leaves fewer than two of the study's {len(levels)} {what} to forecast from; "
            f"hold out {max(0, len(levels) - 2)} at most, or add {what}"
        )
    return [trial for trial in trials if extent(trial, end) > levels[count - 1] / 1.05]


def forecast(out: Path, targets: Sequence[Trial]) -> None:
    """Put forecasts on record of configurations of which no trial is completed yet."""
    started = {row["config_id"] for row in records.read(out, "trials").to_pylist() if row["status"] == "COMPLETED"}
    fresh = {t.config_id: t for t in targets if t.config_id not in started}
    for trial in fresh.values():
        shape = f"{trial.shape.n_layer}x{trial.shape.n_embd}h{trial.shape.n_head}@{trial.n_tokens}"
        line = _line(out, "--forecast", shape, "--no-report")
        done = subprocess.run(line, capture_output=True, text=True, env=environment(), check=False)
        lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["no message"]
        print(lines[0] if done.returncode == 0 else f"no forecast of {shape}: {lines[-1]}", flush=True)


@contextmanager
def ending(out: Path) -> Iterator[Callable[[], str]]:
    """The report, by a process that begins while Ray stops; yields a function that waits and says why there is none, or ""."""
    silent = subprocess.DEVNULL
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(_line(out), stdin=silent, stdout=silent, stderr=said, env=environment()) as report,
    ):

        def wait() -> str:
            if report.wait() == 0:
                return ""
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            return printable(lines[-1]) if lines else f"it ended with status {report.returncode}"

        try:
            yield wait
        finally:
            report.kill()


def _line(out: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "analysis", str(out), *flags]
