"""Would the conclusion survive? Sizes left out, the largest forecast from the rest, lack of fit, trends, leverage, robustness of delta.

block = diagnostics.examine(fitted, noise)          # fitted: analysis.findings.size_law.Fitted
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.estimate import Code, Refusal
from analysis.findings.size_law import BESIDE_STARTS, Fitted
from analysis.fits import fit as fits
from analysis.fits.fit import BatchResult
from analysis.fits.laws import Power
from analysis.fits.resampling import distinct_points
from analysis.table.configurations import Noise, f_p_value, t_p_value, t_quantile
from analysis.table.load import SAME_SIZE

Floats = NDArray[np.float64]
MAX_LEAVE_OUT = 200
"""Sizes left out one at a time at most: of thousands of sizes none matters by itself."""


def examine(fitted: Fitted, noise: Noise | Refusal) -> dict[str, Any]:
    """All diagnostics of one fit."""
    groups = size_groups(fitted)
    return {
        "fit": fitted.fit_id,
        "leave_one_size_out": leave_one_size_out(fitted, groups),
        "leave_largest_out": leave_largest_out(fitted, groups),
        "lack_of_fit": lack_of_fit(fitted, noise),
        "trends": trends(fitted),
        "leverage": leverage(fitted),
        "delta_sensitivity": objective_sensitivity(fitted),
        "drop_size": drop_size(fitted, groups),
    }


def size_groups(fitted: Fitted) -> NDArray[np.int64]:
    """Index of the size of each configuration, 0 the smallest; sizes within SAME_SIZE are one."""
    sizes = fitted.cells.columns[fitted.column]
    order = np.argsort(sizes, kind="stable")
    steps = np.concatenate([[0], np.diff(np.log(sizes[order])) > math.log1p(SAME_SIZE)])
    groups = np.empty(len(sizes), dtype=np.int64)
    groups[order] = np.cumsum(steps)
    return groups


# ---- leaving sizes out ----


def _refit(fitted: Fitted, keep: NDArray[np.bool_]) -> BatchResult | None:
    """One fit per row of `keep` (replicates, configurations), all as one batch; None where no row keeps enough sizes."""
    if not len(keep):
        return None
    return fits.fit_batch(fitted.result.law, fitted.cells.columns, fitted.cells.loss, weights=keep.astype(float), start=fitted.result)


def _enough(fitted: Fitted, keep: NDArray[np.bool_], groups: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Rows of `keep` that leave more sizes than the law has parameters in N, and as many distinct points as parameters."""
    left = np.array([len(np.unique(groups[row])) for row in keep])
    needed = 1 + int(fitted.result.law.has_floor) + 1
    columns = {name: fitted.cells.columns[name] for name in fitted.result.law.columns}
    return (left >= needed) & (distinct_points(columns, keep.astype(float)) >= len(fitted.result.params))


def _drops(fitted: Fitted, groups: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The sizes that can be left out, and the configurations kept without each."""
    present = np.unique(groups)[:MAX_LEAVE_OUT]
    keep = groups[None, :] != present[:, None]
    usable = _enough(fitted, keep, groups)
    return present[usable], keep[usable]


def leave_one_size_out(fitted: Fitted, groups: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Each size predicted from all others: signed error of log loss, observed less predicted (positive: worse than predicted)."""
    dropped, keep = _drops(fitted, groups)
    return _predicted(fitted, groups, dropped, keep)


def leave_largest_out(fitted: Fitted, groups: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Each size predicted from the smaller ones only, rolling up to the largest: the error that an extrapolation would have made."""
    targets = np.unique(groups)[1:][-MAX_LEAVE_OUT:]
    keep = groups[None, :] < targets[:, None]
    usable = _enough(fitted, keep, groups)
    return _predicted(fitted, groups, targets[usable], keep[usable])


def _predicted(fitted: Fitted, groups: NDArray[np.int64], targets: NDArray[np.int64], keep: NDArray[np.bool_]) -> list[dict[str, Any]]:
    batch = _refit(fitted, keep)
    if batch is None:
        return []
    logs = np.log(batch.predict(fitted.cells.columns))  # (replicates, configurations)
    rows = []
    for r, target in enumerate(targets):
        held = groups == target
        error = float(np.mean(np.log(fitted.cells.loss[held]) - logs[r, held]))
        rows.append(
            {
                "size": float(np.exp(np.mean(np.log(fitted.cells.columns[fitted.column][held])))),
                "observed": float(np.mean(fitted.cells.loss[held])),
                "predicted": float(np.exp(np.mean(logs[r, held]))),
                "error": error,
                "error_percent": 100 * math.expm1(error),
                "from_sizes": len(np.unique(groups[keep[r]])),
                "converged": bool(batch.converged[r]),
            }
        )
    return rows


def drop_size(fitted: Fitted, groups: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Exponents, floor and slope at the reference with each size left out: does any single size carry the conclusion?"""
    dropped, keep = _drops(fitted, groups)
    batch = _refit(fitted, keep)
    if batch is None:
        return []
    law = fitted.result.law
    shown = [f.exponent for term in law.terms for f in term.factors if isinstance(f, Power)] + ([law.floor] if law.floor else [])
    at, step = float(fitted.result.reference[fitted.column]), 1e-4
    up, down = np.log(batch.predict(fitted.at(at * np.exp([step, -step])))).T
    slopes = (up - down) / (2 * step)
    sizes = fitted.cells.columns[fitted.column]
    return [
        {
            "size": float(np.exp(np.mean(np.log(sizes[groups == target])))),
            "slope": float(slopes[r]),
            **{name: float(batch.params[name][r]) for name in shown},
            "converged": bool(batch.converged[r]),
        }
        for r, target in enumerate(dropped)
    ]


# ---- lack of fit ----


def lack_of_fit(fitted: Fitted, noise: Noise | Refusal) -> dict[str, Any]:
    """F test of the means' scatter around the curve against pure seed error (Draper and Smith 1998, section 2.1)."""
    if isinstance(noise, Refusal):
        return Refusal(Code.ONE_SEED, "lack of fit cannot be tested: with one seed there is no pure error to test against").to_dict()
    if fitted.df < 1:
        return Refusal(Code.TOO_FEW_DF, "lack of fit cannot be tested: as many parameters as configurations").to_dict()
    cells, left = fitted.cells, fitted.result.residuals
    weight = cells.n_seeds * (cells.loss / noise.difference_sd) ** 2
    f = float(np.sum(weight * left**2) / fitted.df)
    p = f_p_value(f, fitted.df, noise.difference_df)
    spread = float(np.sqrt(np.mean(left**2) * len(left) / fitted.df))
    seeds = float(noise.difference_sd / np.sqrt(np.median(cells.n_seeds)) / np.exp(np.mean(np.log(cells.loss))))
    return {
        "f": f,
        "df": [fitted.df, noise.difference_df],
        "p": p,
        "residual_sd": spread,
        "seed_sd_of_means": seeds,
        "verdict": "misses" if p < 0.05 else "fits",
    }


def trends(fitted: Fitted) -> list[dict[str, Any]]:
    """Straight-line trend of log residuals against ln N, ln D, ln aspect and ln head_dim: slope, t interval, p."""
    rows = []
    for column in (fitted.column, "n_tokens", "aspect", "head_dim"):
        x = np.log(fitted.cells.columns[column])
        df = len(x) - len(fitted.result.params) - 1
        if not np.ptp(x) > 1e-9 or df < 1:  # it does not vary, or the runs do not have it
            continue
        x = x - x.mean()
        y = fitted.result.residuals - fitted.result.residuals.mean()
        slope = float(x @ y / (x @ x))
        error = float(np.sqrt(max(np.sum((y - slope * x) ** 2), 1e-300) / df / (x @ x)))
        half = t_quantile(df) * error
        p = t_p_value(slope / error, df)
        verdict = "drifts" if p < 0.05 else "no_trend"
        rows.append({"column": column, "slope": slope, "low": slope - half, "high": slope + half, "p": p, "verdict": verdict})
    return rows


def leverage(fitted: Fitted) -> list[dict[str, Any]]:
    """Hat values of the linearized fit (sum = number of parameters); above twice their mean a configuration steers the curve."""
    jacobian = fitted.jacobian({name: fitted.cells.columns[name] for name in fitted.result.law.columns})
    basis = np.linalg.svd(jacobian, full_matrices=False)[0]
    hat = np.sum(basis**2, axis=1)
    limit = min(2 * len(fitted.result.params) / len(hat), 0.99)
    order = np.argsort(-hat, kind="stable")[:50]
    return [{"config_id": str(fitted.cells.config_id[i]), "leverage": float(hat[i]), "high": bool(hat[i] > limit)} for i in order]


# ---- other estimators ----


def objective_sensitivity(fitted: Fitted) -> list[dict[str, Any]]:
    """The same law by least squares and by Huber with the delta of Hoffmann et al. 2022."""
    law = fitted.result.law
    shown = [f.exponent for term in law.terms for f in term.factors if isinstance(f, Power)] + ([law.floor] if law.floor else [])
    at = float(fitted.result.reference[fitted.column])
    rows = []
    for name, delta in (("least squares", None), ("huber, delta 0.001", 1e-3)):
        result = fits.fit(law, fitted.cells.columns, fitted.cells.loss, delta=delta, n_starts=BESIDE_STARTS)
        refitted = Fitted(fitted.fit_id, fitted.title, result, fitted.cells, fitted.column, fitted.sweep)
        values = {p: result.params[p] for p in shown}
        rows.append({"objective": name, "delta": delta, "slope": refitted.slope(at), **values, "status": result.status.name})
    return rows
