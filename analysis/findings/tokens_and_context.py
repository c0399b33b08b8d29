"""A field of the recipe varied at fixed shapes: more training text, the same text again, a longer context.

The effect of the field is the mean, over shapes, of differences between trials of one shape and one seed. Such pairs may share most of
their run (branches of one trunk) and still be compared: what they share cancels, and seeds are the replicates.

    sweep["axis"] = axes.describe(cells, sweep)     # None for sweeps over shapes alone
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from analysis.estimate import NATS, Verdict
from analysis.findings.one_factor import SHAPE, SIZE, WORDS, Sweep, verdict
from analysis.table.configurations import LEVEL, Configurations, Floats, t_p_value, t_quantile, whole

AXES = ("n_tokens", "unique_tokens", "block_size", "batch_size", "dropout", "weight_decay")
"""Fields that can be an axis; where several vary (batch size follows a context at equal tokens per step) the first is meant."""


def axis_of(cells: Configurations, members: tuple[int, ...]) -> str | None:
    """The recipe's field that takes several values at one shape, or None."""
    chosen = list(members)
    shapes = _shapes(cells, chosen)
    for column in AXES:
        values = cells.columns[column][chosen]
        if any(len(np.unique(values[shapes == g])) > 1 for g in np.unique(shapes)):
            return column
    return None


def describe(cells: Configurations, sweep: Sweep) -> dict[str, Any] | None:
    """The effect of a sweep's axis: each step, the whole range, and whether the largest shape gains more than the smallest.

    Returns:
        None where no field of the recipe varies at a fixed shape. Gains are nats of loss; positive is better.
    """
    column = axis_of(cells, sweep.members)
    if column is None or sweep.name == "other":
        return None
    table = _losses(cells, sweep.members, column)
    values = sorted({value for value, _ in table})
    # Repetition is told as a cost against the freshest text, the rest as a gain of each step.
    pairs = [(values[-1], v) for v in values[-2::-1]] if column == "unique_tokens" else list(pairwise(values))
    steps = [found for a, b in pairs if (found := _gain(table, a, b))]
    if not steps:
        return None
    whole = _gain(table, values[0], values[-1])
    epochs = {float(cells.columns["unique_tokens"][i]): float(cells.columns["epochs"][i]) for i in sweep.members}
    for step in steps if column == "unique_tokens" else []:
        step |= {"epochs": epochs[step["to"]], "epochs_from": epochs[step["from"]]}
    return {
        "column": column,
        "word": WORDS[column],
        "values": values,
        "steps": steps,
        "whole": whole,
        "by_size": _by_size(cells, sweep.members, table, values),
        "interaction": _interaction(table, values),
        "cells": _grid(cells, sweep.members, column, values),
        "n_tokens": sorted({int(cells.columns["n_tokens"][i]) for i in sweep.members}),
        "level": LEVEL,
        "unit": NATS,
    }


def _shapes(cells: Configurations, members: list[int]) -> Any:
    return np.unique(np.stack([cells.columns[c][members] for c in SHAPE]), axis=1, return_inverse=True)[1].ravel()


Table = dict[tuple[float, int], dict[int, float]]
"""(value of the axis, shape) -> loss by seed; shapes are numbered by size."""


def _losses(cells: Configurations, members: tuple[int, ...], column: str) -> Table:
    chosen = list(members)
    label = _shapes(cells, chosen)
    by_size = sorted(np.unique(label), key=lambda g: float(cells.columns[SIZE][chosen][label == g].min()))
    rank = {int(g): place for place, g in enumerate(by_size)}
    table: Table = {}
    for i, g in zip(chosen, label, strict=True):
        own = cells.cell_config == i
        seeds = dict(zip(cells.cell_seed[own].tolist(), cells.cell_loss[own].tolist(), strict=True))
        table.setdefault((float(cells.columns[column][i]), rank[int(g)]), {}).update(seeds)
    return table


def _pairs(table: Table, before: float, after: float) -> dict[int, Floats]:
    """Loss at `before` less loss at `after` over the seeds that a shape has at both, by shape, smallest first."""
    found = {}
    for shape in sorted({g for _, g in table}):
        a, b = table.get((before, shape), {}), table.get((after, shape), {})
        seeds = sorted(a.keys() & b.keys())
        if seeds:
            found[shape] = np.array([a[s] - b[s] for s in seeds])
    return found


def _gain(table: Table, before: float, after: float) -> dict[str, Any] | None:
    """Mean gain over shapes with its t interval; variance of the pairs pooled within shapes."""
    groups = list(_pairs(table, before, after).values())
    if not groups:
        return None
    weights = [1 / len(groups)] * len(groups)
    return {"from": before, "to": after, "n_shapes": len(groups), **_contrast(groups, weights)}


def _contrast(groups: list[Floats], weights: list[float]) -> dict[str, Any]:
    """Weighted sum of group means, interval, p and verdict; without a second seed anywhere, the value alone."""
    value = float(sum(w * g.mean() for w, g in zip(weights, groups, strict=True)))
    df = sum(len(g) - 1 for g in groups)
    scatter = sum(float(np.sum((g - g.mean()) ** 2)) for g in groups)
    if df < 1 or scatter <= 0:
        return {"gain": value, "low": None, "high": None, "p": None, "verdict": Verdict.NOT_TOLD}
    error = float(np.sqrt(scatter / df * sum(w**2 / len(g) for w, g in zip(weights, groups, strict=True))))
    half, p = t_quantile(df) * error, t_p_value(value / error, df)
    return {"gain": value, "low": value - half, "high": value + half, "p": p, "df": df, "verdict": verdict(value, p)}


def _by_size(cells: Configurations, members: tuple[int, ...], table: Table, values: list[float]) -> list[dict[str, Any]]:
    """The gain of the whole range at each shape, with the variance pooled over all of them."""
    sizes, pairs = _sizes(cells, members), _pairs(table, values[0], values[-1])
    groups = list(pairs.values())
    return [{SIZE: sizes[shape], **_contrast(groups, [float(shape == other) for other in pairs])} for shape in pairs]


def _sizes(cells: Configurations, members: tuple[int, ...]) -> dict[int, int]:
    """params_non_embedding by shape number."""
    chosen = list(members)
    label = _shapes(cells, chosen)
    smallest = sorted(float(cells.columns[SIZE][chosen][label == g].min()) for g in np.unique(label))
    return {place: int(size) for place, size in enumerate(smallest)}


def _interaction(table: Table, values: list[float]) -> dict[str, Any] | None:
    """Gain of the whole range at the largest shape less that at the smallest; None with one shape."""
    groups = list(_pairs(table, values[0], values[-1]).values())
    if len(groups) < 2:
        return None
    return _contrast(groups, [-1.0] + [0.0] * (len(groups) - 2) + [1.0])


def _grid(cells: Configurations, members: tuple[int, ...], column: str, values: list[float]) -> list[dict[str, Any]]:
    """Mean loss per shape and value, for a table: one row per shape."""
    chosen = list(members)
    label = _shapes(cells, chosen)
    rows = []
    for g in sorted(np.unique(label), key=lambda g: float(cells.columns[SIZE][chosen][label == g].min())):
        own = [i for i, own_label in zip(chosen, label, strict=True) if own_label == g]
        at = {float(cells.columns[column][i]): float(cells.loss[i]) for i in own}
        shape = {name: whole(cells.columns[name][own[0]]) for name in (*SHAPE, SIZE)}
        rows.append({**shape, "loss": [at.get(value) for value in values]})
    return rows
