"""Sweeps as a reader sees them: levels, the gain of each step with its interval, where further steps stop paying, and a verdict.

A sweep is a name that the study gave to a list of configurations; where a table names none, one-factor sweeps are found in its shapes.
The factor is the one column that varies; a sweep in which several vary (a grid, matched shapes) is listed by size.

    described = describe_all(cells, noise)
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from analysis.estimate import Refusal, Verdict
from analysis.table.configurations import Configurations, Noise, f_p_value, whole

SHAPE = ("n_layer", "n_embd", "n_head")
RECIPE = ("lr", "n_tokens", "unique_tokens", "batch_size", "weight_decay", "dropout", "block_size")
NAMES = {"n_layer": "depth", "n_embd": "width", "n_head": "heads"}
WORDS = {
    "n_layer": "layers",
    "n_embd": "width",
    "n_head": "heads",
    "lr": "learning rate",
    "n_tokens": "training tokens",
    "unique_tokens": "unique tokens",
    "batch_size": "batch size",
    "weight_decay": "weight decay",
    "dropout": "dropout",
    "block_size": "context",
    "size": "size",
}
SIZE = "params_non_embedding"
SHOWN = 1000
"""Levels listed at most: of thousands of configurations an even selection is shown."""


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
    names = list(dict.fromkeys(name for sweeps in cells.sweeps for name in sweeps))
    found = [_sweep(cells, name, [i for i, own in enumerate(cells.sweeps) if name in own]) for name in sorted(names, key=_order)]
    found = found or [s for factor in SHAPE if (s := _one_factor(cells, factor))]
    found = [_without_trials(cells, sweep, chosen or ()) for sweep in found]
    rest = sorted(set(range(len(cells))) - {i for sweep in found for i in sweep.members})
    return found + ([_sweep(cells, "other" if found else "all", rest)] if rest else [])


def _without_trials(cells: Configurations, sweep: Sweep, chosen: Collection[str]) -> Sweep:
    """The sweep without the learning rates that were only tried, where its shapes repeat."""
    kept = [i for i in sweep.members if cells.config_id[i] in chosen]
    given = [_filled(cells, c) for c in (*SHAPE, *RECIPE) if c != "lr"]
    shapes = {tuple(float(column[i]) for column in given) for i in sweep.members}
    return _sweep(cells, sweep.name, kept) if kept and len(shapes) < len(sweep.members) and sweep.factor in (*SHAPE, "size") else sweep


def _order(name: str) -> tuple[int, str]:
    usual = list(NAMES.values())
    return (usual.index(name) if name in usual else len(usual), name)


def _sweep(cells: Configurations, name: str, members: list[int]) -> Sweep:
    varying = [c for c in SHAPE + RECIPE if len(np.unique(_filled(cells, c)[members])) > 1]
    shapes = [c for c in varying if c in SHAPE]
    # Width sweeps may scale lr or heads with the size by rule: the factor is the shape column, and what follows it is no second factor.
    distinct = bool(shapes) and len(np.unique(cells.columns[shapes[0]][members])) == len(members)
    by_rule = len(shapes) == 1 and set(varying) == {shapes[0], "lr"} and distinct
    factor = varying[0] if len(varying) == 1 else (shapes[0] if by_rule else "size")
    key = cells.columns[SIZE if factor == "size" else factor]
    return Sweep(name, factor, tuple(sorted(members, key=lambda i: (float(key[i]), i))))


def _filled(cells: Configurations, column: str) -> Any:
    return np.nan_to_num(cells.columns[column], nan=-1.0)


def _one_factor(cells: Configurations, factor: str) -> Sweep | None:
    """The largest set of at least three configurations that differ in one shape column only."""
    others = np.stack([_filled(cells, c) for c in (*SHAPE, *RECIPE) if c != factor])
    _, group = np.unique(others, axis=1, return_inverse=True)
    groups = [np.flatnonzero(group.ravel() == g) for g in range(group.max() + 1)]
    best = max(groups, key=lambda g: len(np.unique(cells.columns[factor][g])), default=np.array([], dtype=int))
    if len(np.unique(cells.columns[factor][best])) < 3:
        return None
    return _sweep(cells, NAMES[factor], [int(i) for i in best])


# ---- levels ----


def describe_all(cells: Configurations, noise: Noise | Refusal) -> list[dict[str, Any]]:
    """JSON blocks of all sweeps (the keys of `sweeps` in fits.json)."""
    return [describe(cells, sweep, noise) for sweep in find_sweeps(cells)]


def describe(cells: Configurations, sweep: Sweep, noise: Noise | Refusal) -> dict[str, Any]:
    """Levels with means, intervals and the gain of each step; spread and verdict."""
    shown = sweep.members
    if len(shown) > SHOWN:
        shown = tuple(shown[int(j)] for j in np.unique(np.linspace(0, len(shown) - 1, SHOWN).round()))
    levels = [_level(cells, i, sweep.factor, noise) for i in shown]
    for previous, level in pairwise(levels):
        level |= gain(previous, level, sweep.factor, noise)
    best = min(levels, key=lambda v: float(v["mean"]))
    worst = max(levels, key=lambda v: float(v["mean"]))
    spread = worst["mean"] - best["mean"]
    verdict, p = spread_verdict(cells.take(list(sweep.members)), noise)
    return {
        "name": sweep.name,
        "factor": sweep.factor,
        "word": WORDS[sweep.factor],
        "levels": levels,
        "spread": spread,
        "best": best["value"],
        "p": p,
        "verdict": verdict,
        "levelling": levelling(levels),
        "params_per_unit": _params_per_unit(levels, sweep.factor),
    }


def _level(cells: Configurations, i: int, factor: str, noise: Noise | Refusal) -> dict[str, Any]:
    column = {name: values[i] for name, values in cells.columns.items()}
    n = int(cells.n_seeds[i])
    half = noise.half_width(n) if isinstance(noise, Noise) else None
    mean = float(cells.loss[i])
    return {
        "value": _number(column[SIZE if factor == "size" else factor]),
        "config_id": str(cells.config_id[i]),
        **{name: whole(column[name]) for name in ("n_layer", "n_embd", "n_head", SIZE, "params_total", "n_tokens")},
        "n": n,
        "mean": mean,
        "low": None if half is None else mean - half,
        "high": None if half is None else mean + half,
        "losses": cells.losses(i),
        "ms_per_step": _number(column.get("ms_exclusive", np.nan), column["ms_per_step"]),
        "exclusive_timing": bool(np.isfinite(column.get("ms_exclusive", np.nan))),
        "gain": None,
        "gain_low": None,
        "gain_high": None,
        "gain_per_million": None,
        "verdict": Verdict.NONE,
    }


def _number(*values: float) -> float | int | None:
    """The first finite value, as an integer where it is one."""
    finite = [float(v) for v in values if np.isfinite(v)]
    if not finite:
        return None
    return int(finite[0]) if finite[0] == int(finite[0]) else finite[0]


def gain(previous: dict[str, Any], level: dict[str, Any], factor: str, noise: Noise | Refusal) -> dict[str, Any]:
    """What the step from the previous level bought, nats, with its interval, per unit of the factor and per added million parameters."""
    bought = previous["mean"] - level["mean"]
    step = level["value"] - previous["value"]
    millions = (level[SIZE] - previous[SIZE]) / 1e6
    found: dict[str, Any] = {"gain": bought, "gain_per_unit": bought / step if step and factor != "size" else None}
    found["gain_per_million"] = bought / millions if millions > 0 else None
    if isinstance(noise, Refusal):
        return found | {"verdict": Verdict.NOT_TOLD}
    half, p = noise.half_width(previous["n"], level["n"]), noise.p_value(bought, previous["n"], level["n"])
    found |= {"gain_low": bought - half, "gain_high": bought + half, "p": p, "verdict": verdict(bought, p)}
    if millions > 0:
        found |= {"gain_per_million_low": (bought - half) / millions, "gain_per_million_high": (bought + half) / millions}
    if step and factor != "size":
        found |= {"gain_per_unit_low": (bought - half) / step, "gain_per_unit_high": (bought + half) / step}
    return found


def verdict(gain: float, p: float, level: float = 0.05) -> Verdict:
    """The verdict on a gain of two configurations (positive: lower loss)."""
    return Verdict.WITHIN_NOISE if p > level else Verdict.GAIN if gain > 0 else Verdict.LOSS


def spread_verdict(members: Configurations, noise: Noise | Refusal) -> tuple[Verdict, float | None]:
    """Whether the members differ at all: one-way F of their means against the noise (not the largest pair, which noise alone spreads)."""
    if isinstance(noise, Refusal):
        return Verdict.NOT_TOLD, None
    df = len(members) - 1
    if df < 1:
        return Verdict.NONE, None
    weight = members.n_seeds / noise.difference_sd**2
    center = np.sum(weight * members.loss) / np.sum(weight)
    p = f_p_value(float(np.sum(weight * (members.loss - center) ** 2)) / df, df, noise.difference_df)
    return Verdict.WITHIN_NOISE if p > 0.05 else Verdict.DIFFER, p


def levelling(levels: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The first step whose gain is within noise or negative: where paying more stops showing. None where every step pays."""
    for previous, level in pairwise(levels):
        if level["verdict"] in (Verdict.WITHIN_NOISE, Verdict.LOSS):
            return {"from": previous["value"], "to": level["value"], "gain": level["gain"], "verdict": level["verdict"]}
    return None


def _params_per_unit(levels: list[dict[str, Any]], factor: str) -> float | None:
    """Parameters that one more layer (or other unit) adds, where every step adds equally many per unit."""
    if factor == "size":
        return None
    added = [(b[SIZE] - a[SIZE]) / (b["value"] - a["value"]) for a, b in pairwise(levels) if b["value"] != a["value"]]
    return added[0] if added and np.allclose(added, added[0], rtol=1e-9) else None
