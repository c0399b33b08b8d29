"""Sweeps as a reader sees them: levels with the gain of each step, shapes of equal size, a field of the recipe varied at fixed shapes.

A sweep is a name that the study gave to a list of configurations; where a table names none, one-factor sweeps are found in its shapes.
The factor is the one column that varies; a sweep in which several vary (a grid, matched shapes) is listed by size.

    blocks = [describe(cells, sweep, noise) for sweep in find_sweeps(cells)]
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from analysis.estimate import SIZE, Refusal, Verdict
from analysis.table.configurations import SHAPE, Configurations, Floats, Noise, t_p_value, t_quantile, whole
from analysis.table.load import SAME_SIZE

RECIPE = ("lr", "n_tokens", "unique_tokens", "batch_size", "weight_decay", "dropout", "block_size")
NAMES = {"n_layer": "depth", "n_embd": "width", "n_head": "heads"}
AXES = {
    "n_tokens": "training tokens", "unique_tokens": "unique tokens", "block_size": "context", "batch_size": "batch size",
    "dropout": "dropout", "weight_decay": "weight decay",
}  # fmt: skip
"""Fields that can be an axis; where several vary (batch size follows a context at equal tokens per step) the first is meant."""
SHOWN = 1000
"""Rows listed at most: of thousands of configurations an even selection is shown."""


@dataclass(frozen=True)
class Sweep:
    """A named list of configurations.

    Args:
        name: as the study named it, or depth, width, heads where it was found in the shapes.
        factor: the column that varies, or "size" where several do.
        members: indices into the configurations, in order of the factor.
    """

    name: str
    factor: str
    members: tuple[int, ...]


def find_sweeps(cells: Configurations, chosen: Collection[str] | None = None) -> list[Sweep]:
    """The study's sweeps, else one-factor sweeps found in the shapes; configurations in none of them follow as `other`.

    Args:
        chosen: configurations of the joint fit; where a shape was trained at several learning rates, a sweep over shapes shows only these.
    """
    usual = list(NAMES.values())
    names = sorted({n for own in cells.sweeps for n in own}, key=lambda n: (usual.index(n) if n in usual else len(usual), n))
    found = [_sweep(cells, name, [i for i, own in enumerate(cells.sweeps) if name in own]) for name in names]
    found = found or [s for factor in SHAPE if (s := _one_factor(cells, factor))]
    found = [_without_trials(cells, sweep, chosen or ()) for sweep in found]
    rest = sorted(set(range(len(cells))) - {i for sweep in found for i in sweep.members})
    return found + ([_sweep(cells, "other" if found else "all", rest)] if rest else [])


def _without_trials(cells: Configurations, sweep: Sweep, chosen: Collection[str]) -> Sweep:
    """The sweep without the learning rates that were only tried, where its shapes repeat."""
    kept = [i for i in sweep.members if cells.config_id[i] in chosen]
    shapes = grouped(sweep.members, [filled(cells, c) for c in (*SHAPE, *RECIPE) if c != "lr"])
    return _sweep(cells, sweep.name, kept) if kept and len(shapes) < len(sweep.members) and sweep.factor in (*SHAPE, "size") else sweep


def _sweep(cells: Configurations, name: str, members: list[int]) -> Sweep:
    varying = [c for c in SHAPE + RECIPE if len(np.unique(filled(cells, c)[members])) > 1]
    shapes = [c for c in varying if c in SHAPE]
    # Width sweeps may scale lr or heads with the size by rule: the factor is the shape column, and what follows it is no second factor.
    distinct = bool(shapes) and len(np.unique(cells.columns[shapes[0]][members])) == len(members)
    by_rule = len(shapes) == 1 and set(varying) == {shapes[0], "lr"} and distinct
    factor = varying[0] if len(varying) == 1 else (shapes[0] if by_rule else "size")
    key = cells.columns[SIZE if factor == "size" else factor]
    return Sweep(name, factor, tuple(sorted(members, key=lambda i: (float(key[i]), i))))


def filled(cells: Configurations, column: str) -> Floats:
    """A column in which missing values are equal to each other."""
    return np.nan_to_num(cells.columns[column], nan=-1.0)


def by_seed(cells: Configurations) -> Floats:
    """Losses in nats, shape (configurations, seeds), seeds ascending; NaN where a configuration lacks a seed."""
    seeds, column = np.unique(cells.cell_seed, return_inverse=True)
    losses = np.full((len(cells), len(seeds)), np.nan)
    losses[cells.cell_config, column] = cells.cell_loss
    return losses


def grouped(members: Sequence[int], columns: Sequence[Floats]) -> dict[tuple[float, ...], list[int]]:
    """Configurations by their values in some columns."""
    groups: dict[tuple[float, ...], list[int]] = {}
    for i in members:
        groups.setdefault(tuple(float(column[i]) for column in columns), []).append(i)
    return groups


def _one_factor(cells: Configurations, factor: str) -> Sweep | None:
    """The largest set of at least three configurations that differ in one shape column only."""
    groups = grouped(range(len(cells)), [filled(cells, c) for c in (*SHAPE, *RECIPE) if c != factor])
    levels, best = max(((len(np.unique(cells.columns[factor][own])), own) for _, own in sorted(groups.items())), key=lambda found: found[0])
    return _sweep(cells, NAMES[factor], best) if levels > 2 else None


# ---- levels ----


def describe(cells: Configurations, sweep: Sweep, noise: Noise | Refusal) -> dict[str, Any]:
    """Levels with means, intervals and the gain of each step; `shapes` of equal size and the `axis`, where it is such a sweep."""
    levels = [_level(cells, sweep.members[i], sweep.factor, noise) for i in thinned(len(sweep.members))]
    steps = [_compared("gain", a["mean"] - b["mean"], (a["n"], b["n"]), noise) for a, b in pairwise(levels)]
    nothing = dict.fromkeys(("gain", "gain_low", "gain_high")) | {"verdict": Verdict.NONE}
    levels = [level | step for level, step in zip(levels, [nothing, *steps], strict=True)]
    shapes, axis = equal_sizes(cells, sweep, noise), along_axis(cells, sweep)
    return {"name": sweep.name, "factor": sweep.factor, "levels": levels, "axis": axis, "shapes": shapes}


def thinned(n: int) -> list[int]:
    """Indices of at most SHOWN items, evenly spread: what a person can look at of thousands."""
    return [int(i) for i in (np.arange(n) if n <= SHOWN else np.unique(np.linspace(0, n - 1, SHOWN).round()))]


def shape_of(cells: Configurations, i: int) -> dict[str, Any]:
    """Depth, width, heads and size of a configuration; None where the runs do not have them."""
    return {name: whole(cells.columns[name][i]) for name in (*SHAPE, SIZE)}


def ends(value: float, half: float | None) -> dict[str, Any]:
    """An interval by its half-width, which may not be known."""
    return {"low": None, "high": None} if half is None else {"low": value - half, "high": value + half}


def mean_ends(value: float, n_seeds: int, noise: Noise | Refusal) -> dict[str, Any]:
    """The interval that the noise between seeds gives a mean."""
    return ends(value, None if isinstance(noise, Refusal) else noise.half_width(n_seeds))


def _mean(cells: Configurations, i: int, noise: Noise | Refusal) -> dict[str, Any]:
    """Shape of a configuration, its losses, and their mean with its interval."""
    mean = float(cells.loss[i])
    known = {"mean": mean, **mean_ends(mean, int(cells.n_seeds[i]), noise), "losses": cells.losses(i)}
    return {"config_id": str(cells.config_id[i]), **shape_of(cells, i), **known}


def _level(cells: Configurations, i: int, factor: str, noise: Noise | Refusal) -> dict[str, Any]:
    alone, ms = (float(cells.columns[name][i]) for name in ("ms_exclusive", "ms_per_step"))
    return {
        "value": _number(cells.columns[SIZE if factor == "size" else factor][i]),
        **_mean(cells, i, noise),
        "n": int(cells.n_seeds[i]),
        "ms_per_step": _number(alone if np.isfinite(alone) else ms),
        "exclusive_timing": bool(np.isfinite(alone)),
    }


def _number(value: float) -> float | int | None:
    """A finite value, as an integer where it is one."""
    return None if not np.isfinite(value) else int(value) if value == int(value) else float(value)


def _compared(name: str, gain: float, n_seeds: tuple[int, int], noise: Noise | Refusal, sign: int = 1) -> dict[str, Any]:
    """A difference of two means, nats, under its name with interval and verdict; `sign` is that of a lower loss."""
    half = None if isinstance(noise, Refusal) else noise.half_width(*n_seeds)
    told = Verdict.NOT_TOLD if isinstance(noise, Refusal) else _verdict(sign * gain, noise.p_value(gain, *n_seeds))
    return {name: gain, **{f"{name}_{end}": value for end, value in ends(gain, half).items()}, "verdict": told}


def _verdict(gain: float, p: float, level: float = 0.05) -> Verdict:
    """The verdict on a gain of two configurations (positive: lower loss)."""
    return Verdict.WITHIN_NOISE if p > level else Verdict.GAIN if gain > 0 else Verdict.LOSS


# ---- shapes of equal size ----


def equal_sizes(cells: Configurations, sweep: Sweep, noise: Noise | Refusal) -> dict[str, Any] | None:
    """Shapes by size, the widest for its depth first; each with its loss and how far it is behind the best of its size.

    Returns:
        None where fewer than two sizes have several shapes, or where a field of the recipe varies beside the shapes (lr may follow them).
    """
    varies = any(len(np.unique(filled(cells, c)[list(sweep.members)])) > 1 for c in RECIPE if c != "lr")
    if sweep.name == "other" or sweep.factor != "size" or varies:
        return None
    size, aspect, head_dim = (cells.columns[name] for name in (SIZE, "aspect", "head_dim"))
    groups: list[list[int]] = []
    for i in sorted(sweep.members, key=lambda i: float(size[i])):
        near = groups and size[i] <= size[groups[-1][0]] * (1 + SAME_SIZE)
        groups[-1].append(i) if near else groups.append([i])
    if sum(len(group) > 1 for group in groups) < 2 or len(sweep.members) < 2 * len(groups):
        return None
    sizes = []
    for group in groups:
        best = min(group, key=lambda i: float(cells.loss[i]))
        group.sort(key=lambda i: (-float(aspect[i]), float(head_dim[i])))
        middle = math.exp(float(np.mean(np.log(size[group]))))
        sizes.append({"params_non_embedding": round(middle), "shapes": [_shape(cells, i, best, noise) for i in group]})
    return {"sizes": sizes}


def _shape(cells: Configurations, i: int, best: int, noise: Noise | Refusal) -> dict[str, Any]:
    row = _mean(cells, i, noise) | {"aspect": float(cells.columns["aspect"][i])}
    if i == best:
        return row | {"behind": 0.0, "behind_low": None, "behind_high": None, "verdict": Verdict.NONE}
    n_seeds = int(cells.n_seeds[i]), int(cells.n_seeds[best])
    return row | _compared("behind", float(cells.loss[i] - cells.loss[best]), n_seeds, noise, sign=-1)


# ---- a field of the recipe at fixed shapes ----


def along_axis(cells: Configurations, sweep: Sweep) -> dict[str, Any] | None:
    """More training text, the same text again, a longer context: the effect of each step at fixed shapes, in nats, positive for lower loss.

    It is the mean, over shapes, of differences between trials of one shape and one seed. Such pairs may share most of their run (branches
    of one trunk) and still be compared: what they share cancels, and seeds are the replicates.

    Returns:
        None where no field of the recipe varies at a fixed shape.
    """
    groups = grouped(sweep.members if sweep.name != "other" else [], [cells.columns[c] for c in SHAPE])
    shapes = [groups[key] for key in sorted(groups, key=lambda key: (float(cells.columns[SIZE][groups[key]].min()), key))]
    column = next((c for c in AXES if any(len(np.unique(cells.columns[c][own])) > 1 for own in shapes)), None)
    if column is None:
        return None
    table = [{float(cells.columns[column][i]): i for i in own} for own in shapes]
    values = sorted({value for own in table for value in own})
    # Repetition is told as a cost against the freshest text, the rest as a gain of each step.
    pairs = [(values[-1], v) for v in values[-2::-1]] if column == "unique_tokens" else list(pairwise(values))
    losses = by_seed(cells)
    steps = [found for a, b in pairs if (found := _step(losses, table, a, b))]
    if not steps:
        return None
    epochs = {float(cells.columns["unique_tokens"][i]): float(cells.columns["epochs"][i]) for i in sweep.members}
    for step in steps if column == "unique_tokens" else []:
        step["epochs"] = epochs[step["to"]]
    rows = [
        shape_of(cells, next(iter(own.values()))) | {"loss": [float(cells.loss[own[v]]) if v in own else None for v in values]}
        for own in table
    ]
    return {"column": column, "word": AXES[column], "values": values, "steps": steps, "cells": rows}


def _step(losses: Floats, table: Sequence[dict[float, int]], before: float, after: float) -> dict[str, Any] | None:
    """Mean gain over the shapes that have both values, with its t interval; the variance of the pairs is pooled within shapes."""
    gaps = [losses[own[before]] - losses[own[after]] for own in table if before in own and after in own]
    groups = [gap[known] for gap in gaps if (known := np.isfinite(gap)).any()]
    if not groups:
        return None
    value, df = float(np.mean([g.mean() for g in groups])), sum(len(g) - 1 for g in groups)
    scatter = sum(float(np.sum((g - g.mean()) ** 2)) for g in groups)
    found: dict[str, Any] = {"from": before, "to": after, "gain": value}
    if df < 1 or scatter <= 0:
        return found | ends(value, None) | {"verdict": Verdict.NOT_TOLD}
    error = math.sqrt(scatter / df * sum(1 / len(g) for g in groups)) / len(groups)
    return found | ends(value, t_quantile(df) * error) | {"verdict": _verdict(value, t_p_value(value / error, df))}
