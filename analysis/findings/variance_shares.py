"""How much of the variance of loss goes with size, aspect, head dimension and tokens, how much is left over, and how much is the seed.

Each factor is a polynomial in the log of its column; R^2 of every subset of factors gives the sequential share (in the order listed) and
the Shapley share (the average over all orders: Shapley 1953; as "LMG", Lindeman, Merenda and Gold 1980). Shares describe the
configurations that were chosen: a wider range of a factor gives it a larger share. They stand beside marginal slopes, never instead.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.estimate import Code, Refusal
from analysis.table.configurations import LEVEL, Configurations

FACTORS = {
    "parameters": "params_non_embedding",
    "tokens": "n_tokens",
    "aspect (width/depth)": "aspect",
    "head dimension": "head_dim",
}
COLLINEAR = 0.95
"""R^2 of one factor on the others above which their shares cannot be told apart."""

MAX_DRAWS = 2_000_000
"""Replicates times configurations at most: of thousands of configurations fewer replicates say as much."""

Floats = NDArray[np.float64]


def variance_shares(cells: Configurations, rng: np.random.Generator, n_bootstrap: int = 500) -> list[dict[str, Any]] | Refusal:
    """Shares of the variance of log loss over trials, summing to one: factors, lack of fit, seed.

    Args:
        cells: configurations of one recipe.
        rng: for the bootstrap over configurations that gives the intervals of the Shapley shares.
        n_bootstrap: its replicates.
    """
    present = [name for name, column in FACTORS.items() if len(np.unique(cells.columns[column])) > 1]
    if not present:
        return Refusal(Code.NO_VARIATION, "neither size nor shape varies, so there is no variance to share out; add configurations")
    bases = _bases(cells, present)
    n_columns = sum(basis.shape[1] for basis in bases)
    if len(cells) < n_columns + 3:
        reason = f"variance shares of {', '.join(present)} need at least {n_columns + 3} configurations, there are {len(cells)}"
        return Refusal(Code.TOO_FEW_DF, reason)
    tied = _collinear(bases, present)
    if tied:
        reason = (
            f"{tied} follows from the other factors in these configurations, so their shares cannot be told apart; vary shape at equal size"
        )
        return Refusal(Code.UNMATCHED, reason)
    mean, within = _log_cells(cells)
    point = _shares(np.ones((1, len(cells))), cells.n_seeds, mean, within, bases)
    n_bootstrap = min(n_bootstrap, max(MAX_DRAWS // len(cells), 50))
    drawn = rng.multinomial(len(cells), np.full(len(cells), 1 / len(cells)), size=n_bootstrap).astype(float)
    drawn = drawn[(drawn > 0).sum(axis=1) >= n_columns + 2]
    resampled = _shares(drawn, cells.n_seeds, mean, within, bases) if len(drawn) else None
    return _rows(point, resampled, present, has_seeds=bool((cells.n_seeds > 1).any()))


def _bases(cells: Configurations, names: list[str]) -> list[Floats]:
    """Centered, scaled polynomials of each log column: quadratic from four levels on where configurations allow it, else linear."""
    roomy = len(cells) >= 2 * len(names) + 4
    bases = []
    for name in names:
        logs = np.log(cells.columns[FACTORS[name]])
        logs = (logs - logs.mean()) / logs.std()
        quadratic = roomy and len(np.unique(np.round(logs, 6))) >= 4
        bases.append(np.stack([logs, logs**2 - np.mean(logs**2)], axis=1) if quadratic else logs[:, None])
    return bases


def _collinear(bases: list[Floats], names: list[str]) -> str | None:
    """Name of a factor whose log is explained by the others (linear terms), or None."""
    linear = np.stack([basis[:, 0] for basis in bases], axis=1)
    for i, name in enumerate(names):
        others = np.delete(linear, i, axis=1)
        if others.shape[1]:
            fitted = others @ np.linalg.lstsq(others, linear[:, i], rcond=None)[0]
            if np.sum(fitted**2) > COLLINEAR * np.sum(linear[:, i] ** 2):
                return name
    return None


def _log_cells(cells: Configurations) -> tuple[Floats, Floats]:
    """Mean log loss of each configuration, and the sum of squares of its seeds around it."""
    logs = np.log(cells.cell_loss)
    mean = np.bincount(cells.cell_config, weights=logs, minlength=len(cells)) / cells.n_seeds
    within = np.bincount(cells.cell_config, weights=(logs - mean[cells.cell_config]) ** 2, minlength=len(cells))
    return mean, within.astype(float)


def _shares(drawn: Floats, n_seeds: Any, mean: Floats, within: Floats, bases: list[Floats]) -> dict[str, Floats]:
    """Shares of each replicate: `sequential` and `shapley` of shape (replicates, factors), `rest` and `seed` of shape (replicates,)."""
    weight = drawn * n_seeds
    center = (weight @ mean) / weight.sum(axis=1)
    between = np.einsum("rk,rk->r", weight, (mean - center[:, None]) ** 2)
    seed = drawn @ within
    total = between + seed
    explained = {s: _explained(weight, mean, [bases[i] for i in s]) for s in _subsets(len(bases))}
    n = len(bases)
    sequential = np.stack([explained[tuple(range(i + 1))] - explained[tuple(range(i))] for i in range(n)], axis=1)
    shapley = np.stack([_shapley(explained, i, n) for i in range(n)], axis=1)
    everything = explained[tuple(range(n))]
    return {
        "sequential": sequential / total[:, None],
        "shapley": shapley / total[:, None],
        "rest": (between - everything) / total,
        "seed": seed / total,
    }


def _subsets(n: int) -> list[tuple[int, ...]]:
    return [s for k in range(n + 1) for s in itertools.combinations(range(n), k)]


def _explained(weight: Floats, mean: Floats, bases: list[Floats]) -> Floats:
    """Weighted sum of squares that a linear model explains, (replicates,)."""
    if not bases:
        return np.zeros(len(weight))
    design = np.concatenate(bases, axis=1)
    share = weight / weight.sum(axis=1, keepdims=True)
    x = design - (share @ design)[:, None, :]  # (R, k, p)
    y = mean - (share @ mean)[:, None]
    gram = np.einsum("rk,rkp,rkq->rpq", weight, x, x)
    right = np.einsum("rk,rkp,rk->rp", weight, x, y)
    trace = np.trace(gram, axis1=1, axis2=2)[:, None, None]  # 0 in a resample that holds one level of every factor: explains nothing
    ridge = (1e-10 * trace + 1e-30) * np.eye(design.shape[1])
    found = np.linalg.solve(gram + ridge, right[:, :, None])[:, :, 0]
    return np.einsum("rp,rp->r", found, right)


def _shapley(explained: dict[tuple[int, ...], Floats], i: int, n: int) -> Floats:
    others = [j for j in range(n) if j != i]
    total: Floats = np.zeros_like(explained[()])
    for k in range(n):
        for s in itertools.combinations(others, k):
            weight = math.factorial(k) * math.factorial(n - k - 1) / math.factorial(n)
            total = total + weight * (explained[tuple(sorted((*s, i)))] - explained[s])
    return total


def _rows(point: dict[str, Floats], resampled: dict[str, Floats] | None, names: list[str], has_seeds: bool) -> list[dict[str, Any]]:
    tail = (1 - LEVEL) / 2

    def ends(values: Floats | None, value: float) -> dict[str, float | None]:
        if values is None:
            return {"low": None, "high": None}
        # Resamples repeat configurations, which fit more easily: a share near 0 lies below most of them. The interval keeps its value.
        low, high = np.quantile(values, [tail, 1 - tail])
        return {"low": min(float(low), value), "high": max(float(high), value)}

    rows: list[dict[str, Any]] = [
        {
            "factor": name,
            "sequential": float(point["sequential"][0, i]),
            "shapley": float(point["shapley"][0, i]),
            **ends(None if resampled is None else resampled["shapley"][:, i], float(point["shapley"][0, i])),
        }
        for i, name in enumerate(names)
    ]
    for key, label in (("rest", "lack of fit"), ("seed", "seed")):
        if key == "rest" or has_seeds:
            value = float(point[key][0])
            label = label if has_seeds else "lack of fit and seed (one seed: not separable)"
            rows.append(
                {"factor": label, "sequential": value, "shapley": value, **ends(None if resampled is None else resampled[key], value)}
            )
    return rows
