"""Searches over shapes with two objectives: validation loss against parameters, FLOPs, memory or time per token.

Trials come in batches. A batch follows from the results of those before it, by multi-objective TPE (Ozaki et al. 2022) with a fixed seed,
so that replaying it from the records gives the same trials again: nothing is kept beside the tables. Shapes that break a limit that is
known beforehand are never trained; limits that must be measured (time) guide the batches after it.

    chain, pending = unfold(search, results)   # all trials known by now, and those to run
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.config import Shape
from study.search.learning_rate import rounded
from study.search_settings import COSTS, WHOLE, ShapeSettings
from study.spec import Study, Trial, changed

BATCH = 4
"""Trials that are made at once: so many workers have work, whatever the machine, and the chain of trials stays the same everywhere."""
ATTEMPTS = 60
CHARACTERS = 64
"""Vocabulary of characters that FLOPs and memory are counted with: whatever a text has, and another number would be another search."""


@dataclass
class ShapeSearch:
    """One search over shapes.

    Args:
        base: the study's center with the first seed.
        results: recorded (val_loss, cost, within limits) by trial_id; an infinite loss where the run diverged.
    """

    name: str
    settings: ShapeSettings
    study: Study
    base: Trial
    vocab_size: int = CHARACTERS
    results: dict[str, tuple[float, float, bool]] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)

    def trial(self, point: Mapping[str, float]) -> Trial | None:
        """The trial at a point; None where no such shape exists or a limit that is known beforehand forbids it."""
        change = {name: value if name in ("lr", "weight_decay") else int(value) for name, value in point.items()}
        try:
            shape, train = changed(self.study, change, self.name)
        except ValueError:
            return None
        trial = dataclasses.replace(self.base, shape=shape, train=train, sweeps=(self.name,))
        known = {name: cost for name in COSTS if (cost := self.cost(trial, name)) is not None}
        return trial if all(known[name] <= limit for name, limit in self.settings.limits.items() if name in known) else None

    def cost(self, trial: Trial, name: str) -> float | None:
        """A cost that is known before training; None for time, which must be measured."""
        model = trial.model(self.vocab_size)
        if name == "memory":
            from study.plan.packing import memory_bytes

            return float(memory_bytes(trial, self.vocab_size, "cpu", "float32"))
        exact = {"params": model.params_non_embedding, "flops": model.flops_per_token * trial.n_tokens}
        return float(exact[name]) if name in exact else None

    def see(self, row: Mapping[str, Any], trial: Trial) -> None:
        """Take a recorded row of a trial of the chain into account."""
        if row["status"] not in ("COMPLETED", "DIVERGED"):
            return
        loss = float(row["val_loss"]) if row["status"] == "COMPLETED" else math.inf
        tokens = trial.train.batch_size * trial.shape.block_size
        time = float(row["ms_per_step"]) / tokens if row.get("ms_per_step") else math.inf
        costs = {name: time if (known := self.cost(trial, name)) is None else known for name in COSTS}
        within = all(costs[name] <= limit for name, limit in self.settings.limits.items())
        self.results[trial.trial_id] = (loss, costs[self.settings.against], within)


def unfold(search: ShapeSearch, rows: Mapping[str, Mapping[str, Any]]) -> tuple[list[Trial], list[Trial]]:
    """All trials of a search as far as the records tell, and those of the last batch that are to run.

    Args:
        rows: recorded rows by trial_id.
    """
    chain: list[tuple[dict[str, float], Trial]] = []
    while len(chain) < search.settings.max_trials:
        batch = suggest(search, chain)
        chain += batch
        for _, trial in batch:
            if trial.trial_id in rows:
                search.see(rows[trial.trial_id], trial)
        pending = [trial for _, trial in batch if trial.trial_id not in search.results]
        if pending or not batch:
            return [trial for _, trial in chain], pending
    return [trial for _, trial in chain], []


def suggest(search: ShapeSearch, chain: Sequence[tuple[dict[str, float], Trial]]) -> list[tuple[dict[str, float], Trial]]:
    """The next batch: new shapes within the limits; fewer, or none, where the space holds no more."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = _space(search.settings)
    seed = (int(search.base.config_id[:7], 16) + len(chain)) % 2**31
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=2 * BATCH)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    for point, trial in chain:
        loss, cost, within = search.results[trial.trial_id]
        study.enqueue_trial(point)
        told = study.ask(space)
        told.set_constraint("limits", 0.0 if within else 1.0)
        study.tell(told, [min(loss, 1e3), math.log(min(cost, 1e300))])
    seen = {trial.trial_id for _, trial in chain}
    found: list[tuple[dict[str, float], Trial]] = []
    for _ in range(ATTEMPTS):
        if len(found) == min(BATCH, search.settings.max_trials - len(chain)):
            break
        point = repaired(study.ask(space).params, search.settings)
        new = search.trial(point)
        if new and new.trial_id not in seen:
            seen.add(new.trial_id)
            found.append((point, new))
    return found


def _space(settings: ShapeSettings) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space: dict[str, Any] = {}
    for name, (low, high) in settings.ranges.items():
        whole = name in WHOLE or hasattr(Shape(), name)
        space[name] = IntDistribution(int(low), int(high), log=True) if whole else FloatDistribution(low, high, log=True)
    if settings.heads:
        space["n_head"] = CategoricalDistribution(list(settings.heads))
    return space


def repaired(point: Mapping[str, Any], settings: ShapeSettings) -> dict[str, float]:
    """The point with three digits, and the width at the nearest multiple of the heads inside its range."""
    found = {name: rounded(value, float(value).is_integer()) for name, value in point.items()}
    if "n_head" in found and "n_embd" in found:
        low, high = settings.ranges["n_embd"]
        heads = found["n_head"]
        nearest = max(1, round(found["n_embd"] / heads)) * heads
        nearest = nearest - heads if nearest > high else nearest + heads if nearest < low else nearest
        found["n_embd"] = nearest
    return {name: int(value) if isinstance(point[name], int) else value for name, value in found.items()}


def most_expensive(search: ShapeSearch, rows: Mapping[str, Mapping[str, Any]]) -> list[Trial]:
    """Stand-ins for the runs that may still come, each the largest shape of a grid over the ranges that the limits allow: for a quote."""
    left = search.settings.max_trials - sum(trial.trial_id in rows for trial in unfold(search, rows)[0])
    grid: list[dict[str, float]] = [{}]
    for name, (low, high) in search.settings.ranges.items():
        steps = [low * (high / low) ** (i / 12) for i in range(13)] if hasattr(Shape(), name) else [low]
        grid = [{**point, name: round(v) if hasattr(Shape(), name) else v} for point in grid for v in steps]
    grid = [{**point, "n_head": heads} for point in grid for heads in search.settings.heads or (0,)]
    if not search.settings.heads:
        grid = [{name: v for name, v in point.items() if name != "n_head"} for point in grid]
    shapes = [trial for point in grid if (trial := search.trial(repaired(point, search.settings)))]
    largest = max(shapes, key=lambda trial: search.cost(trial, "flops") or 0.0, default=search.base)
    rates = [largest.train.lr * (1 + 1e-3 * i) for i in range(left)]
    return [dataclasses.replace(largest, train=dataclasses.replace(largest.train, lr=lr)) for lr in rates]
