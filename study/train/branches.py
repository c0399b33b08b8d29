"""Several training lengths from one run: which trials share a trunk, where each leaves it, and what that saves.

Under WSD (warm-up, stable, decay; Hu et al. 2024, MiniCPM; Hagele et al. 2024) the learning rate before the decay does not depend on the
length. Trials that are equal but for n_steps therefore pass through the same states until the shorter one begins to decay: that stretch,
the trunk, is trained once, and each length is a branch of it. Pure values: imports neither torch nor ray.

    family = families(trials)[0]; saved = 1 - family_steps(family) / sum(trial.train.n_steps for trial in family)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from typing import Any

from study.spec import TrainConfig, Trial

Family = tuple[Trial, ...]
"""Trials that one program trains: the lengths of one trunk, shortest first; a trial that shares nothing is a family of one."""


def decay_start(recipe: TrainConfig) -> int:
    """Steps taken before the learning rate first falls: n_steps less the decay's steps (see `TrainConfig.lr_at`)."""
    return recipe.n_steps - max(1, round(recipe.decay_fraction * recipe.n_steps))


def leaves_at(recipe: TrainConfig) -> int:
    """The step at which a shorter trial leaves the trunk: the last evaluation at or before its decay.

    Between evaluations a state is not whole (means since the last one are under way); lengths whose decay begins at a multiple of
    eval_interval lose nothing by that.
    """
    return decay_start(recipe) // recipe.eval_interval * recipe.eval_interval


def families(trials: Sequence[Trial]) -> list[Family]:
    """The trials, those that are equal but for n_steps under WSD together; in the order in which their first members come."""
    groups: dict[Any, list[Trial]] = {}
    for trial in trials:
        key = replace(trial, train=replace(trial.train, n_steps=1), sweeps=(), lr_status="") if trial.train.schedule == "wsd" else trial
        groups.setdefault(key, []).append(trial)
    return [tuple(sorted(group, key=lambda trial: trial.train.n_steps)) for group in groups.values()]


def lengths(trials: Sequence[Trial]) -> tuple[int, ...]:
    """The different n_steps, ascending."""
    return tuple(sorted({trial.train.n_steps for trial in trials}))


def bundle_key(family: Family) -> tuple[Any, ...]:
    """Families may train as replicas of one program where this is equal: as `Trial.bundle_key`, equal lengths and equal branch points."""
    return *family[-1].bundle_key, lengths(family), tuple(leaves_at(trial.train) for trial in family[:-1])


def programs(trials: Sequence[Trial]) -> list[tuple[Trial, ...]]:
    """Trials of one bundle, some of which may be left out by now, as parts that one program can train: every replica at every length."""
    groups: dict[Any, list[Family]] = {}
    for family in families(trials):
        groups.setdefault(bundle_key(family), []).append(family)
    return [tuple(trial for family in group for trial in family) for group in groups.values()]


# ---- cost ----


@dataclass(frozen=True)
class Own:
    """What one trial costs: its own branch, and its share of the trunk where it used it. Trials of a family add up to the family."""

    steps: float
    evaluations: float


def own_costs(family: Family) -> dict[str, Own]:
    """Each trial's own part, by trial_id: a stretch of the trunk is divided equally among those who pass through it."""
    leaves = sorted(leaves_at(trial.train) for trial in family[:-1])
    costs, trunk, begun = {}, Own(0.0, 1.0 / len(family)), 0  # step 0 is evaluated once for all
    for index, trial in enumerate(family):
        length, interval = trial.train.n_steps, trial.train.eval_interval
        leave = leaves[index] if index < len(leaves) else begun
        sharing = len(family) - index
        trunk = Own(trunk.steps + (leave - begun) / sharing, trunk.evaluations + (leave - begun) / interval / sharing)
        begun = leave
        # The last evaluation counts twice: it reads training windows too.
        costs[trial.trial_id] = Own(trunk.steps + length - leave, trunk.evaluations + ceil((length - leave) / interval) + 1)
    return costs


def family_steps(family: Family) -> float:
    """Optimizer steps that training the whole family takes."""
    return sum(own.steps for own in own_costs(family).values())


def saved_share(trials: Sequence[Trial]) -> float:
    """Share of all optimizer steps that shared trunks save, from 0 to 1."""
    alone = sum(trial.train.n_steps for trial in trials)
    return 1 - sum(map(family_steps, families(trials))) / alone if alone else 0.0


def own_seconds(trial: Trial, curve: Sequence[Mapping[str, Any]], family: Sequence[Trial]) -> dict[str, float]:
    """Columns of time of one trial of a family, from its whole curve: trunk intervals are divided by the number of lengths that used them.

    Args:
        curve: `curves` rows from step 0 on; `wall_s` counts from the trunk's start.
        family: one trial per length that was trained in the same program, this one included.

    Returns:
        train_s, eval_s and wall_s as shares; tokens_per_s undivided, for it is the machine's speed.
    """
    others = [leaves_at(other.train) for other in family if other.train.n_steps != trial.train.n_steps]
    longest = trial.train.n_steps == max(other.train.n_steps for other in family)
    leave = trial.train.n_steps if longest else leaves_at(trial.train)
    train = evaluation = alone = 0.0
    for before, row in pairwise([{"tokens": 0, "wall_s": 0.0}, *curve]):
        seconds = (row["tokens"] - before["tokens"]) / row["tokens_per_s"] if row["tokens_per_s"] else 0.0
        sharing = 1 + sum(row["step"] <= min(leave, other) for other in others)
        train += seconds / sharing
        evaluation += max(0.0, row["wall_s"] - before["wall_s"] - seconds) / sharing
        alone += seconds
    found = {"train_s": train, "eval_s": evaluation, "wall_s": train + evaluation}
    return found | ({"tokens_per_s": curve[-1]["tokens"] / alone} if alone else {})
