"""What a run asks of others at its end: the best model's reading of all texts, the report, and, with --hold-out, forecasts before the
largest sizes train.

They run in processes of their own: the driver stays small, and a fault there cannot touch a run.

    later = held_out(trials, n_sizes=1); ...; forecast(out, later); ...; unjudged, problem = Ending(out).wait()
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

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


class Ending:
    """The best model's reading of all generated texts and the report, by two processes: the report waits for the reading where it needs it.

    with Ending(out) as ending: ...; unjudged, problem = ending.wait()
    """

    def __init__(self, out: Path) -> None:
        """Begin both."""
        self._said = {name: tempfile.TemporaryFile("w+") for name in ("judge", "analysis", "summary")}  # noqa: SIM115
        self._judge = subprocess.Popen(
            _line("study.judge", str(out)), stdout=subprocess.PIPE, stderr=self._said["judge"], env=_environment()
        )
        self._analysis = subprocess.Popen(
            _line("analysis", str(out), "--judging"),
            stdin=self._judge.stdout,
            stdout=self._said["summary"],
            stderr=self._said["analysis"],
            env=_environment(),
        )
        assert self._judge.stdout is not None
        self._judge.stdout.close()  # the other end is the report's

    def __enter__(self) -> "Ending":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in (self._judge, self._analysis):
            process.kill()
            process.wait()
        for file in self._said.values():
            file.close()

    def wait(self) -> tuple[str, str]:
        """Why the texts were not judged, or "", and why there is no report, or ""; returns when both processes have ended."""
        return self._end_of("judge", self._judge), self._end_of("analysis", self._analysis)

    def _end_of(self, name: str, process: subprocess.Popen[bytes]) -> str:
        if process.wait() == 0:
            return ""
        self._said[name].seek(0)
        return _last_line(self._said[name].read())


def analysis(out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m analysis` on the results in a process of its own."""
    return subprocess.run(_line("analysis", str(out), *flags), capture_output=True, text=True, env=_environment(), check=False)


def _line(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}


def _last_line(said: str) -> str:
    return printable((said.strip() or "no message").splitlines()[-1])
