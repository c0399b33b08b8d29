"""A sweep of shapes at equal sizes: which shape is best at each size, and by how much the others fall behind.

Sizes are equal within SAME_SIZE, as in the contrasts of `analysis.findings.shape_effects`, which turn such differences into parameters.

    sweep["shapes"] = shapes.describe(cells, sweep, noise)     # None for sweeps over anything else
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from analysis.estimate import NATS, Refusal, Verdict
from analysis.findings.one_factor import RECIPE, SIZE, Sweep, spread_verdict, verdict
from analysis.table.configurations import Configurations, Noise, whole
from analysis.table.load import SAME_SIZE


def describe(cells: Configurations, sweep: Sweep, noise: Noise | Refusal) -> dict[str, Any] | None:
    """Shapes by size, the widest for its depth first; each with its loss and how far it is behind the best of its size.

    Returns:
        None where fewer than two sizes have several shapes, or where a field of the recipe varies beside the shapes (lr may follow them).
    """
    if sweep.name == "other" or sweep.factor != "size" or _recipe_varies(cells, sweep):
        return None
    groups = [_by_aspect(cells, group) for group in _sizes(cells, sweep)]
    if sum(len(group) > 1 for group in groups) < 2 or sum(map(len, groups)) < 2 * len(groups):
        return None
    blocks = [_size(cells, group, noise) for group in groups]
    return {"sizes": blocks, "unit": NATS}


def _recipe_varies(cells: Configurations, sweep: Sweep) -> bool:
    members = list(sweep.members)
    return any(len(np.unique(np.nan_to_num(cells.columns[c][members], nan=-1.0))) > 1 for c in RECIPE if c != "lr")


def _sizes(cells: Configurations, sweep: Sweep) -> list[list[int]]:
    """Members of equal size, smallest first."""
    members = sorted(sweep.members, key=lambda i: float(cells.columns[SIZE][i]))
    groups: list[list[int]] = []
    for i in members:
        near = groups and cells.columns[SIZE][i] <= cells.columns[SIZE][groups[-1][0]] * (1 + SAME_SIZE)
        groups[-1].append(i) if near else groups.append([i])
    return groups


def _by_aspect(cells: Configurations, group: list[int]) -> list[int]:
    return sorted(group, key=lambda i: (-float(cells.columns["aspect"][i]), float(cells.columns["head_dim"][i])))


def _size(cells: Configurations, group: list[int], noise: Noise | Refusal) -> dict[str, Any]:
    best = min(group, key=lambda i: float(cells.loss[i]))
    said, p = spread_verdict(cells.take(group), noise)
    middle = math.exp(float(np.mean(np.log(cells.columns[SIZE][group]))))
    return {
        "params_non_embedding": round(middle),
        "spread": float(np.max(cells.loss[group]) - cells.loss[best]),
        "p": p,
        "verdict": said,
        "best": str(cells.config_id[best]),
        "shapes": [_shape(cells, i, best, noise) for i in group],
    }


def _shape(cells: Configurations, i: int, best: int, noise: Noise | Refusal) -> dict[str, Any]:
    n, mean, behind = int(cells.n_seeds[i]), float(cells.loss[i]), float(cells.loss[i] - cells.loss[best])
    row: dict[str, Any] = {name: whole(cells.columns[name][i]) for name in ("n_layer", "n_embd", "n_head", SIZE)}
    row |= {"config_id": str(cells.config_id[i]), "aspect": float(cells.columns["aspect"][i]), "mean": mean, "losses": cells.losses(i)}
    row |= {"low": None, "high": None, "behind": behind, "behind_low": None, "behind_high": None, "verdict": Verdict.NONE}
    if isinstance(noise, Noise):
        half = noise.half_width(n)
        row |= {"low": mean - half, "high": mean + half}
        if i != best:
            pair = n, int(cells.n_seeds[best])
            row |= {"behind_low": behind - noise.half_width(*pair), "behind_high": behind + noise.half_width(*pair)}
            row["verdict"] = verdict(-behind, noise.p_value(behind, *pair))
    elif i != best:
        row["verdict"] = Verdict.NOT_TOLD
    return row
