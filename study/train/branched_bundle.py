"""Trains a family: one trunk, and from it a branch for each shorter length (see `study.branches`). Plain PyTorch, no Ray.

The trunk is the longest trial's own bundle. Where a shorter trial leaves it, the trunk's state is copied into a bundle of that trial, which
trains its decay to the end; then the trunk goes on. Because everything random is a function of (seed, step), each trial equals its lone
run bit for bit on a CPU. A family of one is simply a bundle.

    family = Trunk(trials, corpus.train, corpus.val, corpus.vocab_size, corpus.tokenizer)
    while not family.done: rows = family.advance(); outcomes = family.outcomes
"""

import json
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from models.tokenizer import Tokenizer
from study.branches import leaves_at, lengths, own_seconds
from study.spec import Trial
from study.train.bundle import ANYWHERE, Bundle
from study.train.device import Execution
from study.train.outcome import Outcome
from study.train.samples import sample_steps

HANDED_OVER = "handed-over.json"


class Trunk:
    """Trials of one or several families with the same lengths, training as one program.

    Args:
        trials: every replica at every length (see `study.branches.programs`).
        train_tokens, val_tokens, vocab_size, tokenizer, execution: as `study.train.bundle.Bundle` takes them.
        run: names this run of the study. Within one run, a trial that was handed over is not trained again after a restart; in another
            run, the trials given are those that are missing.

    Raises:
        ValueError: the trials do not belong to one program, or the data are too short.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        train_tokens: np.ndarray,
        val_tokens: np.ndarray,
        vocab_size: int,
        tokenizer: Tokenizer | None = None,
        execution: Execution = ANYWHERE,
        run: str = "",
    ) -> None:
        by_length = [tuple(t for t in trials if t.train.n_steps == length) for length in lengths(trials)]
        _check_family(by_length)
        self._bundle: Callable[[Sequence[Trial]], Bundle] = lambda members: Bundle(
            members, train_tokens, val_tokens, vocab_size, tokenizer, execution
        )
        self.lengths, self.run = by_length, run
        self.folder: Path | None = None
        self.waiting = by_length[:-1]
        """shorter trials that are not finished, the next to leave the trunk first"""
        self.trunk = self._bundle(by_length[-1])
        self.trunk.sample_at = {step for group in by_length for step in sample_steps(group[0].train)}
        self.branch: Bundle | None = None
        self.done = False
        self.outcomes = list[Outcome]()
        """what the last `advance` finished"""
        self.ended: Bundle | None = None
        """the bundle that trained it"""
        self.notes = self.trunk.notes
        self._handed, self._told, self._saved_step = list[str](), 0, -1

    # ---- progress ----

    @property
    def restarts(self) -> int:
        """Times that this program was continued from a checkpoint."""
        return self.trunk.restarts

    @property
    def trial_ids(self) -> tuple[str, ...]:
        """Trials that are not finished."""
        return tuple(t.trial_id for group in self.lengths for t in group if t.trial_id not in self._handed)

    @property
    def curve(self) -> list[dict[str, Any]]:
        """The trunk's evaluations so far, of all replicas."""
        return [row for replica in self.trunk.replicas for row in replica.curve]

    def take_notes(self) -> list[str]:
        """What a person should know, each sentence once."""
        notes = list(self.notes)
        self.notes.clear()
        return notes

    def advance(self) -> list[dict[str, Any]]:
        """Train the branch or the trunk to its next evaluation; returns a `curves` row for every trial that passes through it."""
        self._tell_what_was_handed_over()
        self.outcomes, self.ended = [], None
        if self.waiting and not self.branch and (self.trunk.done or self._at_branch_point()):
            self.branch = self._leave(self.waiting[0])
        rows = self._advance_branch() if self.branch else self._advance_trunk()
        if self.branch and self.branch.done:
            self._finish(self.branch)
            self.branch, self.waiting = None, self.waiting[1:]
        elif self.trunk.done and not self.waiting:
            self._finish(self.trunk)
            self.done = True
        return rows

    def _at_branch_point(self) -> bool:
        return bool(self.trunk.replicas[0].curve) and self.trunk.step >= leaves_at(self.waiting[0][0].train)

    def _advance_branch(self) -> list[dict[str, Any]]:
        assert self.branch is not None
        return [] if self.branch.done else self.branch.advance()

    def _advance_trunk(self) -> list[dict[str, Any]]:
        if self.trunk.done:
            return []
        index = {replica.trial.trial_id: k for k, replica in enumerate(self.trunk.replicas)}
        rows = self.trunk.advance()
        shared = [{**row, "trial_id": group[index[row["trial_id"]]].trial_id} for group in self.waiting for row in rows]
        return rows + shared

    def _leave(self, trials: tuple[Trial, ...]) -> Bundle:
        """A bundle of shorter trials in the trunk's present state, or in that of their own newer checkpoint."""
        branch = self._bundle(trials)
        branch.notes = self.notes
        if self.folder and branch.restore(self.folder, range(self.trunk.step, trials[0].train.n_steps + 1)):
            return branch
        states = []
        for trial, (tensors, facts) in zip(trials, self.trunk.states(), strict=True):
            names = {"trial_id": trial.trial_id}
            own = sample_steps(trial.train)
            samples = [{**row, **names} for row in facts["samples"] if row["step"] in own]
            states.append((tensors, {**facts, "curve": [{**row, **names} for row in facts["curve"]], "samples": samples}))
        branch.adopt(self.trunk.step, states)
        branch.restarts = self.trunk.restarts
        return branch

    def _finish(self, bundle: Bundle) -> None:
        for replica in bundle.replicas:
            own = sample_steps(replica.trial.train)
            replica.samples = [row for row in replica.samples if row["step"] in own]
        family = [group[0] for group in self.lengths]
        self.outcomes, self.ended = bundle.finish(), bundle
        for replica, outcome in zip(bundle.replicas, self.outcomes, strict=True):
            if len(family) > 1:
                outcome.row |= own_seconds(replica.trial, outcome.curve, family)
            self._handed.append(replica.trial.trial_id)

    # ---- state ----

    def save(self, folder: Path, beside: bool = False) -> None:
        """Checkpoints of the trunk and of the branch, each as its trial's lone run would write them; valid between calls of `advance`.

        Written while training goes on where `beside` is true (see `study.train.bundle.Bundle.save`).
        """
        self.folder = folder
        if self.trunk.step != self._saved_step:  # it rests while a branch trains
            self.trunk.save(folder, beside)
            self._saved_step = self.trunk.step
        if self.branch:
            self.branch.save(folder, beside)

    def settle(self) -> None:
        """Wait for checkpoints that are being written; raises what stopped one."""
        try:
            self.trunk.settle()
        finally:
            if self.branch:
                self.branch.settle()

    def restore(self, folder: Path) -> bool:
        """Continue from checkpoints; False where there are none that help.

        A trunk's state serves only while every unfinished branch still lies ahead of it.
        """
        self.folder = folder
        finished = self._handed_over_in_this_run()
        self._handed, self._told = sorted(finished), len(finished)
        self.waiting = [group for group in self.waiting if not finished >= {trial.trial_id for trial in group}]
        latest = min((leaves_at(group[0].train) for group in self.waiting), default=self.trunk.recipe.n_steps)
        return self.trunk.restore(folder, range(latest + 1))

    def _handed_over_in_this_run(self) -> set[str]:
        """Trials whose outcomes the driver of this very run has: they are recorded."""
        assert self.folder is not None
        try:
            told = json.loads((self._place() / HANDED_OVER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return set()
        return set(told["trials"]) if isinstance(told, dict) and told.get("run") == self.run and self.run else set()

    def _tell_what_was_handed_over(self) -> None:
        """Note what the driver has received: it asks for more only after it has recorded the last outcomes."""
        if self.folder is None or len(self._handed) == self._told:
            return
        place = self._place()
        place.mkdir(parents=True, exist_ok=True)
        scratch = place / f".{HANDED_OVER}.{uuid.uuid4().hex[:8]}"
        scratch.write_text(json.dumps({"run": self.run, "trials": self._handed}), encoding="utf-8")
        os.replace(scratch, place / HANDED_OVER)
        self._told = len(self._handed)

    def _place(self) -> Path:
        assert self.folder is not None
        return self.folder / self.trunk.replicas[0].trial.trial_id


def _check_family(by_length: Sequence[Sequence[Trial]]) -> None:
    """Hold the trials to one program.

    Raises:
        ValueError: they differ in more than their length, or a replica lacks a length.
    """
    families = {tuple(replace(t, train=replace(t.train, n_steps=1), sweeps=(), lr_status="") for t in group) for group in by_length}
    n_lengths = len(by_length)
    if len(families) != 1 or (n_lengths > 1 and any(t.train.schedule != "wsd" for group in by_length for t in group)):
        raise ValueError(f"{sum(map(len, by_length))} trials of {n_lengths} lengths do not share a trunk under WSD; train them apart")
