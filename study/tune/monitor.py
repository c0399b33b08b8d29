"""What the driver does while trials run: a Ray Tune callback that feeds the record writer, the terminal and the TensorBoard board.

Only the driver writes tables, and a trial that was retried appears in them once.

    run_bundles(work, Monitor(recorder, views, interrupts, bundles, options, 0.0, None), None)
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray import tune

from study.display.terminal import printable
from study.files import FULL
from study.options import Options
from study.plan.memory import is_out_of_memory, next_share, share_in_words
from study.results.store_sync import Mirror
from study.results.trial_writer import Recorder, Where
from study.tune import ray_internals
from study.tune.signals import Interrupts
from study.tune.worker_input import Bundled, reservation

"""How a failed trial's traceback names a full disk."""


@dataclass
class _Running:
    """One bundle between its start and its end."""

    bundled: Bundled
    alone: bool
    started_at: float = field(default_factory=time.time)
    """POSIX seconds, for a person to read"""
    began: float = field(default_factory=time.monotonic)
    progress_at: float = field(default_factory=time.monotonic)
    """both by the monotonic clock: a machine's time of day may jump"""
    host: str = ""
    mps: bool = False
    remark: str = ""
    curves: dict[str, dict[int, Mapping[str, Any]]] = field(default_factory=dict)

    def where(self) -> Where:
        gpus = self.bundled.gpus
        alone = self.bundled.at_once == 1 and (gpus >= 1 if gpus else self.alone)
        wall_s = time.monotonic() - self.began
        return Where(self.started_at, gpus, self.mps, self.bundled.at_once, alone, self.host, self.remark, wall_s)


class Monitor(tune.Callback):
    """Callback of one run.

    Args:
        views: terminal, board, tracker: what shows the run to a person; the results need none of it.
        interrupts: signals are acted upon here, between two events of Ray Tune.
        bundles: by the index that Ray Tune knows.
        options: a bundle without any result for `stall_minutes` has its process killed, so that it is tried again.
        budget_s: the run stops after so long; 0 means never.
    """

    def __init__(
        self,
        recorder: Recorder,
        views: Sequence[Any],
        interrupts: Interrupts,
        bundles: Sequence[Bundled],
        options: Options,
        budget_s: float,
        upstream: Mirror | None,
    ) -> None:
        self.recorder, self.views, self.interrupts, self.bundles = recorder, list(views), interrupts, list(bundles)
        self.options, self.budget_s, self.upstream, self.began = options, budget_s, upstream, time.monotonic()
        self.running: dict[int, _Running] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles callbacks with its experiment; files, terminals and locks stay here."""
        return {}

    # ---- what Ray Tune calls ----

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Between two events: signals, budget, stalled workers, the screen."""
        if self.budget_s and time.monotonic() - self.began > self.budget_s:
            budget = f"the budget of {self.options.budget}"
            raise CannotGoOn(f"{budget} is used up", f"{budget} was used up")
        self.interrupts.check()
        while self.upstream and self.upstream.notes:
            self.note(self.upstream.notes.pop(0))
        if self.upstream and self.upstream.problem:
            raise CannotGoOn(self.upstream.problem)
        self._restart_stalled(trials)
        self._show("tick")

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A bundle begins, for the first time or again."""
        index = trial.config["bundle"]
        for other in self.running.values():
            other.alone = False
        if index in self.running:
            self.running[index].progress_at = time.monotonic()
        else:
            self.running[index] = _Running(self.bundles[index], alone=not self.running)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Evaluations arrived, with the last ones the outcomes. They are taken out of what Ray keeps."""
        running = self.running[trial.config["bundle"]]
        running.progress_at, running.host, running.mps = time.monotonic(), result.get("hostname", ""), result.get("mps", False)
        for note in result.pop("notes", []):
            self.note(note)
        for row in result.pop("earlier", []):
            running.curves.setdefault(row["trial_id"], {})[row["step"]] = row
        for row in result.pop("rows", []):
            running.curves.setdefault(row["trial_id"], {})[row["step"]] = row
            self._show("progress", row)
        if "refused" in result:
            self._cut_off(running, "FAILED", printable(result["refused"]))
        for outcome in result.pop("outcomes", []):
            with _or_stop():
                row = self.recorder.ended(outcome, running.where())
            self._show("ended", row, outcome["samples"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A bundle is through; a run of a search that left no outcome was stopped by its scheduler."""
        ray_internals.forget_means(trial)
        running = self.running.pop(trial.config["bundle"], None)
        if running and any(t.may_stop for t in running.bundled.trials):
            self._cut_off(running, "STOPPED", "worse than other runs of its size")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A bundle failed and will be tried again."""
        names = ", ".join(t.trial_id for t in self.bundles[trial.config["bundle"]].trials)
        self._stop_without_room(trial)
        if said := self._grow(trial):
            self.note(f"{names} {said}")
        else:
            self.note(f"{names} failed ({failure(trial)}); trying again from its newest checkpoint")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A bundle failed for good: its trials are recorded FAILED and the rest go on."""
        self._stop_without_room(trial)
        index = trial.config["bundle"]
        running = self.running.pop(index, _Running(self.bundles[index], alone=False))
        self._cut_off(running, "FAILED", failure(trial))

    def expect(self, bundled: Bundled) -> int:
        """Take in a bundle that was not known when the run began; returns its index."""
        self.bundles.append(bundled)
        self.recorder.trials.update({trial.trial_id: trial for trial in bundled.trials})
        self._show("expect", {trial.trial_id: trial.flops(self.recorder.vocab_size) for trial in bundled.trials})
        return len(self.bundles) - 1

    # ---- ends ----

    def interrupted(self, reason: str) -> None:
        """Record what was running as INTERRUPTED: the same command continues it."""
        with suppress(CannotGoOn):  # the disk may be full: the checkpoints that are there continue the trials without their rows
            for running in self.running.values():
                self._cut_off(running, "INTERRUPTED", reason)
        self.running.clear()

    def close(self) -> None:
        """Let the views finish."""
        self.recorder.sweep()
        self._show("close")

    def _cut_off(self, running: _Running, status: str, reason: str) -> None:
        for trial in running.bundled.trials:
            if trial.trial_id in self.recorder.rows:  # a bundle's other trial
                continue
            steps = running.curves.get(trial.trial_id, {})
            with _or_stop():
                row = self.recorder.cut_off(trial.trial_id, status, reason, [steps[step] for step in sorted(steps)], running.where())
            self._show("ended", row, [])

    def note(self, text: str) -> None:
        """Tell the views something a person should know."""
        self._show("note", text)

    def _show(self, what: str, *told: Any) -> None:
        """Tell every view that listens to it; one whose files cannot be written is dropped, the results are not at stake."""
        for view in list(self.views):
            try:
                getattr(view, what, lambda *told: None)(*told)
            except OSError as error:
                self.views.remove(view)
                self.note(f"{type(view).__name__} is given up: {error}")

    def _stop_without_room(self, trial: Any) -> None:
        """End the run where a bundle failed for want of room and it is ours that is full, not the disk of another machine."""
        if any(os.strerror(full) in ray_internals.newest_failure(trial) for full in FULL):
            with _or_stop():
                self.recorder.probe(self.bundles[trial.config["bundle"]].trials)

    def _grow(self, trial: Any) -> str:
        """Let a bundle that ran out of memory be tried again with a larger share; returns what to say, or "" where memory was not it."""
        running = self.running.get(trial.config["bundle"])
        if not running or not is_out_of_memory(ray_internals.newest_failure(trial)) or not (larger := _larger(running.bundled)):
            return ""
        ray_internals.try_with(trial, reservation(larger.cpus, larger.gpus))  # shares end at a whole GPU
        before, after = share_in_words(running.bundled.cpus, running.bundled.gpus), share_in_words(larger.cpus, larger.gpus)
        running.remark, running.bundled = f"ran out of memory on {before}, went on with {after}", larger
        return f"ran out of memory on {before}; trying again with {after}"

    def _restart_stalled(self, trials: list[Any]) -> None:
        """Kill the worker of a bundle that has not reported for too long; Ray Tune then tries it again."""
        minutes = self.options.stall_minutes
        late = {index for index, running in self.running.items() if time.monotonic() - running.progress_at > 60 * minutes}
        for trial in trials if late else []:
            if trial.config["bundle"] in late and ray_internals.kill_worker(trial):
                self.running[trial.config["bundle"]].progress_at = time.monotonic()
                self.note(f"no progress for {minutes:.3g} minutes in {trial.trial_id}; its worker is replaced")


class CannotGoOn(BaseException):
    """The run ends: a budget is used up, or results cannot be kept (a full disk; an object store that is away or another run's)."""

    def __init__(self, said: str, reason: str = "results could not be kept") -> None:
        super().__init__(said)
        self.reason = reason
        """of trials that were running"""


@contextmanager
def _or_stop() -> Iterator[None]:
    """End the run where a row cannot be written: Ray Tune would turn an OSError into a traceback of its own."""
    try:
        yield
    except OSError as error:
        reason = "the disk is full: " if error.errno in FULL else ""
        raise CannotGoOn(f"{reason}results cannot be written ({error.strerror or error})") from error


def failure(trial: Any) -> str:
    """One line saying why a Ray Tune trial failed: the last line of its newest traceback, or that its process is gone."""
    newest = ray_internals.newest_failure(trial)
    if "running low on memory" in newest:
        return "its worker was killed because the machine ran low on memory"
    if "Traceback" not in newest and any(name in newest for name in ("The actor", "ActorDied", "ActorUnavailable", "owner of")):
        return "its worker process died (killed, or the machine ran out of memory)"
    lines = [line.strip() for line in newest.splitlines() if line.strip()]
    return printable(lines[-1])[:500]


def _larger(bundled: Bundled) -> Bundled | None:
    """The bundle with the next larger share of a GPU or, without GPUs, with twice its CPUs, so that fewer share the machine's memory."""
    if share := next_share(bundled.gpus):
        return replace(bundled, gpus=share)
    most = max((node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
    return replace(bundled, cpus=2 * bundled.cpus) if not bundled.gpus and 2 * bundled.cpus <= most else None
