"""What a run asks of others at its end: the report, and, with --hold-out, forecasts before the largest sizes or longest lengths train.

They run in processes of their own: the driver stays small, and a fault there cannot touch a run.

    later = held_out(trials, "largest", 1); ...; forecast(out, later); ...; with Ending(out) as ending: problem = ending.wait()
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO

from study import records
from study.display.terminal import printable
from study.results.provenance import ROOT
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
        done = analysis(out, "--forecast", shape, "--no-report")
        lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["no message"]
        print(lines[0] if done.returncode == 0 else f"no forecast of {shape}: {lines[-1]}", flush=True)


class Ending:
    """The report, by a process that begins while Ray stops.

    with Ending(out) as ending: ...; problem = ending.wait()
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._ends = ExitStack()

    def __enter__(self) -> "Ending":
        """Begin."""
        with ExitStack() as ends:
            self._said = ends.enter_context(tempfile.TemporaryFile())
            line, silent = _line("analysis", str(self.out)), subprocess.DEVNULL
            self._report = ends.enter_context(subprocess.Popen(line, stdin=silent, stdout=silent, stderr=self._said, env=_environment()))
            ends.callback(self._report.kill)
            self._ends = ends.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._report.kill()
        self._ends.close()

    def wait(self) -> str:
        """Why there is no report, or ""; returns when the process has ended."""
        return _why(self._report, self._said)


def _why(process: "subprocess.Popen[bytes]", said: "IO[bytes]") -> str:
    """The last line that a process wrote, if it failed."""
    if process.wait() == 0:
        return ""
    said.seek(0)
    return _last_line(said.read().decode(errors="replace")) or f"it ended with status {process.returncode}"


def analysis(out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m analysis` on the results in a process of its own."""
    return subprocess.run(_line("analysis", str(out), *flags), capture_output=True, text=True, env=_environment(), check=False)


def _line(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}


def _last_line(said: str) -> str:
    return printable(said.strip().splitlines()[-1]) if said.strip() else ""
