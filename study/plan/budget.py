"""A budget: which of the missing trials are worth it, chosen before anything runs, by what they add to what the study will know.

The ends of every sweep come first. Then, one after the other, the trial that adds most information per second: greedy D-optimal design
(Atkinson, Donev and Tobias 2007, chapter 12) over log N, its square and the logs of the sweeps' factors, with a weak prior so that any
number of trials has a determinant (Bayesian D-optimality: Chaloner and Verdinelli 1995). Seeds of one configuration add less and less,
which spreads them. What trials take is the quote's; completed ones count as known.

    chosen = choose(found.missing, trials, done, quoted.plan, Budget(7200, 0), replan); chosen.trials; chosen.lines(True)
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from study.options import Budget
from study.plan.packing import END_S, START_S, WORKER_START_S, Plan
from study.spec import Trial

PRIOR = 0.01
"""Information that the prior holds on each standardized feature, in trials."""
SEED_SHARE = 0.5
"""Share of a single trial's variance that is noise between seeds; the rest stays however many seeds there are."""

LEAST_S = 1.0
"""Training time that a budget grants when it is used up before training begins."""

Replan = Callable[[Sequence[Trial]], Plan]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Chosen:
    """What a budget buys."""

    trials: tuple[Trial, ...]
    """to be trained, in the study's order"""
    left_out: tuple[Trial, ...]
    cut_sweeps: tuple[str, ...]
    """sweeps of which not both ends are among the done and chosen ones"""
    budget: Budget

    def lines(self, detailed: bool) -> list[str]:
        """One line with count and reason; with `detailed`, the configurations that are left out."""
        n = len(self.trials) + len(self.left_out)
        if not self.left_out:
            return [f"budget {self.budget}: {'it' if n == 1 else f'all {n}'} fit{'s' if n == 1 else ''}"]
        lines = [
            f"budget {self.budget}: the {len(self.trials)} most informative of {n} missing trials fit by the quote, "
            f"{len(self.left_out)} are left out; the same command without --budget trains them"
        ]
        if self.cut_sweeps:
            lines.append(f"the budget does not reach both ends of {', '.join(self.cut_sweeps)}: slopes will rest on a shorter range")
        if detailed:
            counted = Counter(label(trial) for trial in self.left_out)
            lines.append("left out: " + ", ".join(f"{name}{f' ({k} seeds)' if k > 1 else ''}" for name, k in counted.items()))
        return lines


def label(trial: Trial) -> str:
    """2x64h4 with its steps."""
    return f"{trial.shape.n_layer}x{trial.shape.n_embd}h{trial.shape.n_head}, {trial.train.n_steps:,} steps"


def choose(
    missing: Sequence[Trial],
    trials: Sequence[Trial],
    done: Mapping[str, Any],
    plan: Plan,
    budget: Budget,
    replan: Replan,
    stretch: float = 1.0,
) -> Chosen:
    """The most informative missing trials whose plan stays within a budget; ValueError where not even the cheapest fits.

    Args:
        trials: all of the study, for the range of its factors.
        done: completed trials by trial_id: what is known already.
        plan: of all missing trials: what each takes.
        replan: makes the plan of fewer trials.
        stretch: how much longer than planned everything takes beside other work.
    """
    wall, device = budget.wall_s / stretch, budget.device_s / stretch

    def fits(part: Sequence[Trial]) -> bool:
        found = replan(part)
        return found.seconds <= wall if wall else found.device_hours * 3600 <= device

    if fits(missing):
        return Chosen(tuple(missing), (), (), budget)
    costs: dict[str, float] = {}  # seconds that one trial of a configuration keeps a slot (or, times its reserved share, a device)
    for bundle in plan.bundles:
        share = (bundle.gpus or bundle.cpus) if device else 1.0
        costs |= {trial.config_id: bundle.seconds_each[trial.trial_id] * share for trial in bundle.trials}
    room = device or plan.slots * (wall - START_S - WORKER_START_S - END_S)
    order = _most_informative(trials, missing, done, costs, room, math.inf if device else room / plan.slots)
    while order and not fits(order):
        order.pop()
    if not order:
        raise ValueError(_too_small(missing, costs, budget, replan, stretch))
    kept = {trial.trial_id for trial in order}
    known = {trial.config_id for trial in trials if trial.trial_id in kept or trial.trial_id in done}
    cut = tuple(name for name, ends in sweep_ends(trials).items() if not known.issuperset(ends))
    chosen = tuple(trial for trial in missing if trial.trial_id in kept)
    return Chosen(chosen, tuple(trial for trial in missing if trial.trial_id not in kept), cut, budget)


def guard_seconds(budget: Budget | None, plan: Plan | None, spent_s: float = 0.0) -> float:
    """Wall time from now on after which training stops whatever was planned; 0 means never.

    For device time: when the planned bundles, all taking longer by one factor, would have used it up.

    Args:
        spent_s: what the command has taken so far; a wall time holds for all of it, with the report at its end.
    """
    if budget is None:
        return 0.0
    if budget.wall_s:
        return max(LEAST_S, budget.wall_s - spent_s - END_S)
    if plan is None or not plan.device_hours:
        return 0.0
    start = START_S + WORKER_START_S
    return start + (plan.seconds - start - END_S) * budget.device_s / 3600 / plan.device_hours


def _too_small(missing: Sequence[Trial], costs: Mapping[str, float], budget: Budget, replan: Replan, stretch: float) -> str:
    cheapest = min(missing, key=lambda trial: costs[trial.config_id])
    alone = replan([cheapest])
    hours = math.ceil(alone.device_hours * stretch * 1e4) / 1e4
    cost = f"{math.ceil(alone.seconds * stretch)}s" if budget.wall_s else f"{hours:g} device-hours"
    what = "with Ray's start and the report" if budget.wall_s else "of device time"
    return f"budget={budget} is too small for one trial: the cheapest ({label(cheapest)}) is quoted at {cost} {what}; give at least that"


def sweep_ends(trials: Sequence[Trial]) -> dict[str, tuple[str, ...]]:
    """config_ids of the first and the last level of every sweep: by size where that varies, else by what does."""
    members: dict[str, dict[str, Trial]] = {}
    for trial in trials:
        for name in trial.sweeps:
            members.setdefault(name, {})[trial.config_id] = trial
    ends = {}
    for name, own in members.items():
        levels = sorted(own.values(), key=lambda t: (t.shape.params_non_embedding, t.n_tokens, *_numbers(t).values()))
        ends[name] = tuple(dict.fromkeys((levels[0].config_id, levels[-1].config_id)))
    return ends


# ---- the design ----


def _numbers(trial: Trial) -> dict[str, float]:
    """Every numeric field of a trial that may be a factor."""
    values = {f.name: getattr(group, f.name) for group in (trial.shape, trial.train) for f in fields(group)}
    return {name: float(v) for name, v in values.items() if isinstance(v, (int, float)) and name not in ("eval_interval", "eval_windows")}


def features(trials: Sequence[Trial]) -> Floats:
    """(trials, features): 1, log N, its square, and the log (or value, where it reaches 0) of every varying factor, each standardized."""
    size = np.log([float(trial.shape.params_non_embedding) for trial in trials])
    columns = [size, (size - size.mean()) ** 2]
    table = [_numbers(trial) for trial in trials]
    for name in table[0]:
        values = np.array([row[name] for row in table])
        columns.append(np.log(values) if (values > 0).all() else values)
    kept = [(c - c.mean()) / c.std() for c in columns if c.std() > 1e-9 * (1 + np.abs(c).max())]
    return np.stack([np.ones(len(trials)), *kept], axis=1)


def _most_informative(
    trials: Sequence[Trial], missing: Sequence[Trial], done: Mapping[str, Any], costs: Mapping[str, float], room: float, longest: float
) -> list[Trial]:
    """Missing trials, most wanted first, while their costs fit into `room` and none is longer than `longest`."""
    first = {trial.config_id: trial for trial in reversed(trials)}
    place = {config: i for i, config in enumerate(first)}
    waiting: list[list[Trial]] = [[] for _ in place]  # by configuration, the next one last
    for trial in reversed(missing):
        waiting[place[trial.config_id]].append(trial)
    known = Counter(place[trial.config_id] for trial in trials if trial.trial_id in done)
    price = np.array([costs.get(config, math.inf) for config in place])
    rows = features(list(first.values()))
    counts, spread, leverage = np.zeros(len(place)), np.eye(rows.shape[1]) / PRIOR, (rows**2).sum(axis=1) / PRIOR
    # spread is the inverse of the information, leverage x' spread x of each configuration

    def add(i: int) -> None:
        """Count one more trial of a configuration (Sherman and Morrison 1950)."""
        nonlocal spread, leverage
        weight = float(_weight(counts[i] + 1) - _weight(counts[i]))
        moved = spread @ rows[i]
        shrink = weight / (1 + weight * float(rows[i] @ moved))
        spread, leverage = spread - shrink * np.outer(moved, moved), leverage - shrink * (rows @ moved) ** 2
        counts[i] += 1

    for i in known.elements():
        add(i)
    ends = {place[config] for pair in sweep_ends(trials).values() for config in pair}
    firsts = sorted((i for i in ends if not known[i]), key=lambda i: (price[i], i))
    taken: list[Trial] = []
    while (possible := np.array([bool(own) for own in waiting]) & (price <= min(room, longest))).any():
        firsts = [i for i in firsts if possible[i]]
        gain = np.log1p((_weight(counts + 1) - _weight(counts)) * leverage)  # growth of ln det of the information by one more trial
        i = firsts.pop(0) if firsts else int(np.argmax(np.where(possible, gain / price, -np.inf)))
        taken.append(waiting[i].pop())
        room -= price[i]
        add(i)
    return taken


def _weight(n_seeds: Any) -> Any:
    """Information of a mean of so many seeds, in units of a single trial's: 1 / (lack of fit + seed noise / seeds)."""
    return n_seeds / ((1 - SEED_SHARE) * n_seeds + SEED_SHARE)
