"""Searches over shapes with two objectives: validation loss against parameters, FLOPs, memory or time per token.

Trials come in batches. A batch follows from the results of those before it, by multi-objective TPE with a fixed seed, so that the records
give the same trials again: nothing is kept beside the tables. Shapes that break a limit that is known beforehand are never trained;
limits that must be measured (time) guide the batches after it.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from models.config import Shape
from study.plan.memory import memory_bytes
from study.search.learning_rate import Curves, Rows, rounded
from study.search.settings import RATES, ShapeSettings
from study.spec import Study, Trial, changed

optuna.logging.set_verbosity(optuna.logging.WARNING)

BATCH = 4
"""Trials that are made at once: so many workers have work, whatever the machine, and the chain of trials stays the same everywhere."""

ATTEMPTS = 60
"""Suggestions asked for before the space counts as empty: close to its best, TPE repeats itself."""

CHARACTERS = 64
"""Vocabulary of characters that FLOPs and memory are counted with: whatever a text has, and another number would be another search."""

Point = dict[str, Any]


@dataclass
class ShapeSearch:
    """One search over shapes."""

    name: str
    settings: ShapeSettings
    study: Study
    base: Trial
    """the study's center with the first seed"""
    vocab_size: int = CHARACTERS
    results: dict[str, tuple[float, float, bool]] = field(default_factory=dict)
    """recorded (val_loss, cost, within limits) by trial_id; an infinite loss where the run diverged"""
    chain: list[tuple[Point, Trial]] = field(default_factory=list)
    """points and trials as far as the records tell, batch after batch"""
    recorded: set[str] = field(default_factory=set)

    def see(self, rows: Rows, curves: Curves) -> None:
        """Read the records anew: follow the chain of batches until one is not finished."""
        self.results, self.chain, self.recorded = {}, [], set(rows)
        while len(self.chain) < self.settings.max_trials and all(trial.trial_id in self.results for _, trial in self.chain):
            batch = list(itertools.islice(self._new(), min(BATCH, self.settings.max_trials - len(self.chain))))
            if not batch:
                break
            self.chain += batch
            for _, trial in batch:
                if trial.trial_id in rows:
                    self._result(rows[trial.trial_id], trial)

    def pending(self) -> list[Trial]:
        """Trials of the last batch that are to run."""
        return [trial for _, trial in self.chain if trial.trial_id not in self.results]

    def runs(self) -> list[Trial]:
        """The runs made so far."""
        return [trial for _, trial in self.chain if trial.trial_id in self.recorded]

    def chosen(self) -> list[Trial]:
        """None: the front is made of the runs themselves."""
        return []

    def stops_at(self, curve: Mapping[int, float]) -> int | None:
        """No run is given up: shapes have nothing to be compared with on their way."""
        return None

    def to_come(self) -> list[Trial]:
        """Stand-ins for the runs that may still come, each the largest shape of a grid over the ranges that the limits allow."""
        axes: dict[str, list[Any]] = {name: [low] for name, (low, _) in self.settings.ranges.items()}
        for name in axes.keys() & vars(Shape()).keys():
            low, high = self.settings.ranges[name]
            axes[name] = [round(low * (high / low) ** (i / 12)) for i in range(13)]
        if self.settings.heads:
            axes["n_head"] = list(self.settings.heads)
        grid = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        shapes = [trial for point in grid if (trial := self.trial(repaired(point, self.settings)))]
        largest = max(shapes, key=lambda trial: self.costs(trial)["flops"], default=self.base)
        rates = [largest.train.lr * (1 + 1e-3 * i) for i in range(self.settings.max_trials - len(self.runs()))]
        return [dataclasses.replace(largest, train=dataclasses.replace(largest.train, lr=lr)) for lr in rates]

    def trial(self, point: Mapping[str, float]) -> Trial | None:
        """The trial at a point; None where no such shape exists or a limit that is known beforehand forbids it."""
        change = {name: value if name in RATES else int(value) for name, value in point.items()}
        try:
            shape, train = changed(self.study, change, self.name)
        except ValueError:
            return None
        trial = dataclasses.replace(self.base, shape=shape, train=train, sweeps=(self.name,))
        known = self.costs(trial)
        return trial if all(known.get(name, 0.0) <= limit for name, limit in self.settings.limits.items()) else None

    def costs(self, trial: Trial) -> dict[str, float]:
        """What is known before training: `COSTS` but for time, which must be measured."""
        model, memory = trial.model(self.vocab_size), memory_bytes(trial, self.vocab_size, "cpu", "float32")
        exact = {"params": model.params_non_embedding, "flops": model.flops_per_token * trial.n_tokens, "memory": memory}
        return {name: float(cost) for name, cost in exact.items()}

    def _result(self, row: Mapping[str, Any], trial: Trial) -> None:
        if row["status"] not in ("COMPLETED", "DIVERGED"):
            return
        loss = float(row["val_loss"]) if row["status"] == "COMPLETED" else math.inf
        tokens = trial.train.batch_size * trial.shape.block_size
        costs = self.costs(trial) | {"ms_per_token": float(row["ms_per_step"]) / tokens if row.get("ms_per_step") else math.inf}
        within = all(costs[name] <= limit for name, limit in self.settings.limits.items())
        self.results[trial.trial_id] = (loss, costs[self.settings.against], within)

    def _new(self) -> Iterator[tuple[Point, Trial]]:
        """New shapes within the limits, as Optuna suggests them from the chain's runs; none where the space holds no more."""
        space, seed = _space(self.settings), (int(self.base.config_id[:7], 16) + len(self.chain)) % 2**31
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=2 * BATCH)
        study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        for point, trial in self.chain:
            loss, cost, within = self.results[trial.trial_id]
            study.enqueue_trial(point)
            told = study.ask(space)
            told.set_constraint("limits", 0.0 if within else 1.0)
            study.tell(told, [min(loss, 1e3), math.log(min(cost, 1e300))])
        seen = {trial.trial_id for _, trial in self.chain}
        for _ in range(ATTEMPTS):
            point = repaired(study.ask(space).params, self.settings)
            new = self.trial(point)
            if new and new.trial_id not in seen:
                seen.add(new.trial_id)
                yield point, new


def _space(settings: ShapeSettings) -> dict[str, Any]:
    space: dict[str, Any] = {}
    for name, (low, high) in settings.ranges.items():
        space[name] = FloatDistribution(low, high, log=True) if name in RATES else IntDistribution(int(low), int(high), log=True)
    return space | ({"n_head": CategoricalDistribution(list(settings.heads))} if settings.heads else {})


def repaired(point: Mapping[str, Any], settings: ShapeSettings) -> dict[str, float]:
    """The point with three digits, and the width at the nearest multiple of the heads inside its range."""
    found = {name: rounded(value, float(value).is_integer()) for name, value in point.items()}
    if "n_head" in found and "n_embd" in found:
        low, high = settings.ranges["n_embd"]
        heads = found["n_head"]
        nearest = max(1, round(found["n_embd"] / heads)) * heads
        found["n_embd"] = nearest - heads if nearest > high else nearest + heads if nearest < low else nearest
    return {name: int(value) if isinstance(point[name], int) else value for name, value in found.items()}
