"""The search of one size for its learning rate: which runs it has, and what follows from them."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from study.search.learning_rate import Found, Probe, Try, decide, noise_of, rounded, stops_at
from study.search.settings import SearchSettings
from study.spec import Trial

ENDED = ("COMPLETED", "STOPPED", "DIVERGED")
Rows = Mapping[str, Mapping[str, Any]]
Curves = Mapping[str, Mapping[int, float]]


@dataclass
class SizeSearch:
    """The search of one size: the trial that everything starts from, and the runs made so far."""

    name: str
    settings: SearchSettings
    base: Trial
    """the size at the study's own learning rate and the search's own seed; `sweeps` are those of `over` that hold it"""
    seeds: tuple[int, ...]
    """the study's: they run at what was found, and none of them has chosen it"""
    probes: dict[str, Probe] = field(default_factory=dict)
    """runs by trial_id"""
    replicate_noise: float | None = None
    """difference of two losses that chance makes, nats, where the study's other sweeps have replicates"""

    @property
    def start(self) -> float:
        """The first rate: the study's own, or the middle of the range where that lies outside."""
        low, high = self.settings.low, self.settings.high
        return self.base.train.lr if low <= self.base.train.lr <= high else rounded(math.sqrt(low * high))

    @property
    def noise(self) -> float:
        """Difference of two losses of this size that chance makes, nats."""
        return noise_of(list(self.probes.values())) if self.replicate_noise is None else self.replicate_noise

    def decide(self) -> Try | Found:
        """What to do next."""
        return decide(self.settings, self.start, list(self.probes.values()), self.noise)

    def pending(self) -> list[Trial]:
        """The run that comes next, alone: a size has one run under way; none where its search is over."""
        decision = self.decide()
        return [self.probe(decision.lr)] if isinstance(decision, Try) else []

    def runs(self) -> list[Trial]:
        """The runs made so far."""
        return [self.probe(probe.lr) for probe in self.probes.values()]

    def chosen(self) -> list[Trial]:
        """All seeds of the study at the rate that was found; empty while the search goes on."""
        end = self.decide()
        if isinstance(end, Try) or not end.lr:
            return []
        sweeps = (*self.base.sweeps, self.name)
        return [self.trial(end.lr, seed=seed, sweeps=sweeps, lr_status=end.status) for seed in self.seeds]

    def to_come(self) -> list[Trial]:
        """Runs that may still come, at made-up learning rates: for a quote, which does not depend on them."""
        if not self.pending():
            return []
        low, high = self.settings.low, self.settings.high
        count = self.settings.max_trials - len(self.probes)
        rates = [low * (high / low) ** ((i + 0.5) / count) for i in range(count)]
        return [self.trial(lr) for lr in rates] + [self.trial(high * 1.01, seed=seed) for seed in self.seeds]

    def trial(self, lr: float, **facts: Any) -> Trial:
        """This size at another learning rate."""
        return dataclasses.replace(self.base, train=dataclasses.replace(self.base.train, lr=lr), **facts)

    def probe(self, lr: float) -> Trial:
        """The trial that runs a rate."""
        return self.trial(lr, sweeps=(self.name,), may_stop=True, lr_status="searched")

    def see(self, rows: Rows, curves: Curves) -> None:
        """Read the records anew: which of these rows are runs of this size."""
        self.probes = {}
        for trial_id, row in rows.items():
            own = row["status"] in ENDED and row["seed"] == self.base.seed and row["lr"]
            if own and self.trial(float(row["lr"])).trial_id == trial_id:
                ends = {int(row["n_steps"] or 0): float(row["val_loss"])} if row["val_loss"] is not None else {}
                curve = tuple(sorted({**curves.get(trial_id, {}), **ends}.items()))
                self.probes[trial_id] = Probe(float(row["lr"]), row["status"], curve, row.get("val_loss_se"))

    def stops_at(self, curve: Mapping[int, float]) -> int | None:
        """The step at which a run under way is given up; None to go on."""
        return stops_at(self.settings, self.base.train, curve, list(self.probes.values()), self.noise)
