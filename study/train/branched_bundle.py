"""Trains a family: one trunk, then a branch for each shorter length (see `study.train.branches`). Plain PyTorch, no Ray.

The trunk is the longest trial's own bundle. Where a shorter trial leaves it, the trunk's state is saved as a checkpoint of that trial, too:
what remains of it is an ordinary bundle that resumes, after the trunk has ended. Because everything random is a function of (seed, step),
each trial equals its lone run bit for bit on a CPU. A family of one is simply a bundle.

    family = BranchedBundle(trials, folder, corpus.train, corpus.val, corpus.vocab_size, corpus.tokenizer); family.restore()
    while not family.done: rows = family.advance(); outcomes = family.outcomes
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from models import weights
from models.tokenizer import Tokenizer
from study.spec import RECIPE_VERSION, Trial
from study.train import checkpoint
from study.train.branches import leaves_at, lengths, own_seconds, programs
from study.train.bundle import ANYWHERE, Bundle
from study.train.device import Execution
from study.train.evaluation import sample_steps
from study.train.outcome import Replica

Group = tuple[Trial, ...]
"""The replicas of one length."""


class BranchedBundle:
    """Trials of one or several families with the same lengths, training as one program.

    Args:
        trials: every replica at every length (see `study.train.branches.programs`).
        folder: of checkpoints; branches begin from it.
        run: names this run of the study. Within one run, a trial that was handed over is not trained again after a restart; in another
            run, the trials given are those that are missing.

    Raises:
        ValueError: the trials do not belong to one program, or the data are too short.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        folder: Path,
        train_tokens: np.ndarray,
        val_tokens: np.ndarray,
        vocab_size: int,
        tokenizer: Tokenizer | None = None,
        execution: Execution = ANYWHERE,
        run: str = "",
    ) -> None:
        parts = programs(trials)
        *shorter, longest = (tuple(t for t in parts[0] if t.train.n_steps == length) for length in lengths(trials))
        if len(parts) > 1:
            raise ValueError(f"{len(trials)} trials of {len(shorter) + 1} lengths do not share a trunk under WSD; train them apart")
        self.groups: list[Group] = [longest, *shorter]
        self._bundle: Callable[[Group], Bundle] = lambda group: Bundle(group, train_tokens, val_tokens, vocab_size, tokenizer, execution)
        self.folder, self.run, self.todo = folder, run, list(self.groups)
        self.bundle, self.notes = self._bundle(longest), list[str]()
        self.bundle.sample_at = {step for group in self.groups for step in sample_steps(group[0].train)}
        self.sharing = len(self.groups) > 1
        """whether the present bundle's time holds a trunk that others passed through"""
        self.ended: Bundle | None = None
        """what the last `advance` has trained to its end"""

    # ---- progress ----

    @property
    def done(self) -> bool:
        """Every trial is finished."""
        return not self.todo

    @property
    def outcomes(self) -> list[Replica]:
        """What the last `advance` finished."""
        return self.ended.replicas if self.ended else []

    @property
    def trial_ids(self) -> tuple[str, ...]:
        """Trials that are not finished."""
        return tuple(t.trial_id for group in self.todo for t in group)

    @property
    def curve(self) -> list[dict[str, Any]]:
        """The evaluations so far of all replicas that are training."""
        return [row for replica in self.bundle.replicas for row in replica.curve]

    def take_notes(self) -> list[str]:
        """What a person should know, each sentence once."""
        notes, self.notes, self.bundle.notes = self.notes + self.bundle.notes, [], []
        return notes

    def advance(self) -> list[dict[str, Any]]:
        """Train the trunk or a branch to its next evaluation; returns a `curves` row for every trial that passes through it."""
        if self.ended:  # the driver asks for more only after it has recorded the last outcomes
            for replica in self.ended.replicas if self.run else ():
                mark = self._mark(replica.trial.trial_id)
                mark.parent.mkdir(parents=True, exist_ok=True)
                mark.touch()
            self.ended = None
            self._begin()
        rows = [] if self.bundle.done else self.bundle.advance()
        if self.todo[0] is self.groups[0]:
            rows = self._pass_branches(rows)
        if self.bundle.done:
            self._finish()
        return rows

    def _pass_branches(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The trunk's new rows, also under the ids of shorter trials that are still on it; those that leave it here get their state."""
        index = {replica.trial.trial_id: k for k, replica in enumerate(self.bundle.replicas)}
        passing = [group for group in self.todo[1:] if self.bundle.step <= leaves_at(group[0].train)]
        for group in passing:
            if self.bundle.step == leaves_at(group[0].train) or self.bundle.done:  # done too early: it has diverged
                self._leave(group)
        return rows + [{**row, "trial_id": group[index[row["trial_id"]]].trial_id} for group in passing for row in rows]

    def _leave(self, group: Group) -> None:
        for trial, (tensors, facts) in zip(group, self.bundle.states(), strict=True):
            own = {name: [row | {"trial_id": trial.trial_id} for row in facts[name]] for name in ("curve", "samples")}
            first = {"restarts": facts["restarts"] - 1}  # beginning a branch will count as a restart
            checkpoint.save(self.folder, trial.trial_id, self.bundle.step, tensors, facts | own | first)

    def _finish(self) -> None:
        for replica in self.bundle.replicas:
            own = sample_steps(replica.trial.train)
            replica.samples = [row for row in replica.samples if row["step"] in own]
        for replica in self.bundle.finish():
            if self.sharing:
                replica.row |= own_seconds(replica.trial, replica.curve, [group[0] for group in self.groups])
        self.ended = self.bundle
        del self.todo[0]

    # ---- state ----

    def save(self, beside: bool = False) -> None:
        """Checkpoints as lone runs would write them; valid between calls of `advance`, see `study.train.bundle.Bundle.save`."""
        self.bundle.save(self.folder, beside)

    def settle(self) -> None:
        """Wait for checkpoints that are being written; raises what stopped one."""
        self.bundle.settle()

    def restore(self) -> bool:
        """Continue from checkpoints; False where there are none that help."""
        self.todo = [group for group in self.groups if not all(self._mark(trial.trial_id).exists() for trial in group)]
        return self._begin()

    def _begin(self) -> bool:
        """The next bundle, in its newest state; the trunk's serves only while every branch that has no state of its own lies ahead."""
        group, *later = self.todo
        if self.bundle.replicas[0].trial is not group[0]:
            self.bundle = self._bundle(group)
        on_trunk = group is self.groups[0]
        ahead = [leaves_at(g[0].train) for g in later if on_trunk and not all(checkpoint.steps(self.folder, t.trial_id) for t in g)]
        restored = self.bundle.restore(self.folder, range(min(ahead, default=group[0].train.n_steps) + 1))
        self.sharing = len(self.groups) > 1 and (on_trunk or restored)
        return restored

    def _mark(self, trial_id: str) -> Path:
        """A file that says: the driver of this very run has this trial's outcome."""
        return self.folder / trial_id / "handed-over" / (self.run or "no run")


def keep_weights(bundle: Bundle, folder: Path) -> list[str]:
    """Save the final weights of every replica that did not diverge; a sentence for each that could not be written: no result needs it."""
    problems = []
    shared = {"recipe_version": str(RECIPE_VERSION)} | ({"tokenizer": bundle.tokenizer.dump()} if bundle.tokenizer else {})
    for index, replica in enumerate(bundle.replicas):
        if replica.diverged_at is None:
            facts = shared | {"val_loss": repr(replica.curve[-1]["val_loss"])}
            try:
                weights.save(folder, replica.trial.trial_id, bundle.model, index, facts)
            except (OSError, SafetensorError) as error:
                problems.append(f"the weights of trial {replica.trial.trial_id} could not be kept ({error})")
    return problems
