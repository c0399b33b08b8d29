"""Fit a law to losses, and say how far the answer can be trusted.

    result = fit(POWER_FLOOR, {"params_non_embedding": sizes}, val_loss)
    result.predict({"params_non_embedding": [1e7]})

`fit` returns one `FitResult`, whose status is the most serious doubt about it; `fit_batch` fits it again under many sets of weights (a
bootstrap) at once. How: starts by variable projection (`analysis.fits.grid_starts`), then damped Newton with the exact Hessian
(`analysis.fits.newton`). Nothing here reads or writes files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.fits.coordinates import Array, Design, FitError, build
from analysis.fits.grid_starts import grid_starts
from analysis.fits.laws import Law, column_values
from analysis.fits.newton import TOLERANCE, Minimum, huber, least_squares, merge, minimize
from analysis.fits.objective import WIDTH_FLOOR, Objective, jacobians, residuals, spread

N_STARTS = 10
AGREEMENT = 1e-6  # relative: objectives closer than this are the same optimum
ILL_CONDITIONED = 1e6  # of the scaled Jacobian: noise of 1e-4 then moves parameters by more than their size


class FitStatus(Enum):
    """How to treat an estimate; the value is the sentence that reports print."""

    CONVERGED = "converged: the estimate is the optimum; its interval says how sure it is"
    SATURATED = "as many parameters as distinct points: the curve passes through the data and says nothing about its error"
    BOUND_HIT = "a parameter is at its bound: report the bound, not the value, and use the local slope instead"
    STARTS_DISAGREE = "starts end in different places: the data do not single out one curve; do not report parameters"
    ILL_CONDITIONED = "parameters trade off against each other: predictions inside the data may hold, single parameters do not"
    NOT_CONVERGED = "the optimizer did not reach the optimum: use nothing of this fit"


@dataclass(frozen=True)
class FitResult:
    """One fitted law with what is needed to judge it.

    Losses are in nats (or the unit of the law's target), residuals and widths in log loss. `objective_value` is the weighted sum over
    points: r^2/2 inside delta and delta (|r| - delta/2) outside (Huber, as Hoffmann et al. 2022); r^2/2 everywhere where delta is None
    (least squares). `starts_agreeing` is the number of starts that ended at the best objective.
    """

    law: Law
    params: dict[str, float]
    reference: dict[str, float]
    delta: float | None
    objective_value: float
    starts_agreeing: int
    status: FitStatus
    message: str
    residuals: Array = field(repr=False, compare=False)
    loss: Array = field(repr=False, compare=False)
    design: Design = field(repr=False, compare=False)
    theta: Array = field(repr=False, compare=False)

    def predict(self, columns: Mapping[str, ArrayLike]) -> Array:
        """Predicted target at points, (points,)."""
        return np.exp(self.design.log_predict(self.theta[:, None], columns)[0])

    @property
    def fitted(self) -> Array:
        """Predicted target at the data, (points,)."""
        return self.loss * np.exp(-self.residuals)


@dataclass(frozen=True)
class BatchResult:
    """Many fits of one law at one reference; arrays have one entry per replicate, (R,); `theta` is (P, R)."""

    objective_value: Array
    converged: NDArray[np.bool_]
    design: Design
    theta: Array

    @property
    def params(self) -> dict[str, Array]:
        """Named parameters, each (R,)."""
        return self.design.to_params(self.theta)

    def predict(self, columns: Mapping[str, ArrayLike]) -> Array:
        """Predicted target at points, (R, points)."""
        return np.exp(self.design.log_predict(self.theta, columns))


# ---- one fit ----


def fit(law: Law, columns: Mapping[str, ArrayLike], loss: ArrayLike, *, delta: float | None = None, n_starts: int = N_STARTS) -> FitResult:
    """Fit a law to losses; amplitudes are reported at the geometric mean of each column.

    Args:
        columns: positive table columns, each (points,).
        loss: the target (nats for losses), positive and finite, (points,).
        delta: Huber width in log loss; None takes least squares.
        n_starts: how many of the best grid nodes are carried to an optimum.

    Raises:
        ValueError: bad input, named.
        FitError: fewer distinct points than parameters.
    """
    if delta is not None and not (np.isfinite(delta) and delta > 0):
        raise ValueError(f"delta={delta} is not a positive number; give a width of log residuals such as 1e-3, or None for least squares")
    losses = np.asarray(loss, dtype=float)
    bad = ~(np.isfinite(losses) & (losses > 0))
    if not losses.size:
        raise FitError("there are no points to fit; give at least as many distinct configurations as the law has parameters")
    if bad.any():
        raise ValueError(
            f"loss holds {losses[bad][0]} in {int(bad.sum())} of {losses.size} rows; remove rows without a positive finite loss"
        )
    equal = np.ones((1, losses.size))
    design, data, distinct = _prepare(law, columns, losses[None], equal, None)
    found = _solve(data, grid_starts(design, data, n_starts)[:, 0], delta)
    best = int(np.lexsort((found.value, ~found.converged))[0])
    theta = found.theta[:, best]
    agreeing = found.value <= found.value[best] * (1 + AGREEMENT) + 1e-12 * WIDTH_FLOOR
    whole = objective_of(design, columns, losses[None], equal)
    status, detail = _judged(design, found, best, agreeing, whole, distinct)
    return FitResult(
        law=law,
        params={name: float(value[0]) for name, value in design.to_params(theta[:, None]).items()},
        reference=design.reference,
        delta=delta,
        objective_value=float(found.value[best] * losses.size),
        starts_agreeing=int(agreeing.sum()),
        status=status,
        message=f"{status.value} ({detail})" if detail else status.value,
        residuals=residuals(whole, theta[:, None])[0],
        loss=losses,
        design=design,
        theta=theta,
    )


def _prepare(
    law: Law, columns: Mapping[str, ArrayLike], losses: Array, weights: Array, reference: Mapping[str, float] | None
) -> tuple[Design, Objective, int]:
    """The design, its objective (still without a width) and the number of distinct points, for losses (1, n) and weights (R, n).

    Rows that are equal in every column and in loss become one, with the summed weight, and rows are sorted: a repeated point then is a
    weight, and the order of rows does not change a single bit.

    Raises:
        FitError: fewer distinct points than parameters.
    """
    table = {name: np.atleast_1d(column_values(columns, name)) for name in law.columns}
    used = np.flatnonzero(weights.max(axis=0) > 0)
    rows = np.stack([*table.values(), losses[0]], axis=1)[used]
    _, first, group = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(group.reshape(-1), kind="stable")
    starts = np.searchsorted(group.reshape(-1)[order], np.arange(len(first)))
    own = {name: values[used[first]] for name, values in table.items()}
    losses, weights = losses[:, used[first]], np.add.reduceat(weights[:, used[order]], starts, axis=1)
    distinct = int(distinct_points(own, np.ones_like(losses))[0])
    if distinct < len(law.parameters):
        raise FitError(
            f"law {law.name} ({law.equation}) has {len(law.parameters)} parameters but the data hold {distinct} distinct points of "
            f"{', '.join(law.columns)}; add configurations or choose a law with fewer parameters"
        )
    design = build(law, own, np.log(losses[0]), weights.mean(axis=0), reference)
    return design, objective_of(design, own, losses, weights), distinct


def distinct_points(columns: Mapping[str, Array], weights: Array) -> NDArray[np.intp]:
    """Distinct design points with weight, per replicate."""
    _, point = np.unique(np.stack(list(columns.values()), axis=1), axis=0, return_inverse=True)
    order = np.argsort(point.reshape(-1), kind="stable")
    first = np.flatnonzero(np.diff(point.reshape(-1)[order], prepend=-1))
    return (np.add.reduceat(weights[:, order], first, axis=1) > 0).sum(axis=1)


def objective_of(design: Design, columns: Mapping[str, ArrayLike], losses: Array, weights: Array) -> Objective:
    """Losses and weights (R or 1, n) over a design, as what Newton minimizes; width and scale are set by `Objective.at`."""
    low, high = design.bounds()
    return Objective(
        basis=design.basis(columns),
        log_loss=np.log(losses / design.loss_scale),
        weights=weights / weights.sum(axis=1, keepdims=True),
        delta=np.array([[np.inf]]),
        scale=np.array([[1.0]]),
        low=low[:, None],
        high=high[:, None],
    )


def _solve(data: Objective, theta: Array, delta: float | None) -> Minimum:
    """Carry starts (P, R) to the optimum: of least squares where there is no width."""
    rough, scale = least_squares(data, theta, rough=delta is not None)
    if delta is not None:
        return _in_units(huber(data, rough.theta, delta), np.array([[delta]]))
    scale = scale[[np.argmin(rough.value)]]
    return _in_units(minimize(data.at(np.inf, scale), rough.theta), scale)


def _in_units(found: Minimum, scale: Array) -> Minimum:
    """The objective as a mean over points in the units of `FitResult.objective_value`."""
    return replace(found, value=found.value * scale[:, 0])


def _judged(
    design: Design, found: Minimum, best: int, agreeing: NDArray[np.bool_], data: Objective, distinct: int
) -> tuple[FitStatus, str]:
    """The most serious doubt about a fit, and what shows it."""
    theta = found.theta[:, best]
    if not found.converged[best]:
        return FitStatus.NOT_CONVERGED, f"scaled gradient {found.gradient_norm[best]:.1e} exceeds {TOLERANCE:.0e}"
    if bounds := _bounds_hit(design, theta):
        return FitStatus.BOUND_HIT, "; ".join(bounds)
    if (agreeing.sum() < 2 and len(agreeing) > 1) or float(np.ptp(found.theta[:, agreeing], axis=1).max()) > 0.01:
        return FitStatus.STARTS_DISAGREE, f"{int(agreeing.sum())} of {len(agreeing)} starts reach the best objective"
    slope = jacobians(data, theta[:, None])[0] * np.sqrt(data.weights[0])[:, None]
    length = np.linalg.norm(slope, axis=0)  # a coordinate without effect has none
    condition = float(np.linalg.cond(slope / length)) if (length > 1e-12).all() else np.inf
    if condition > ILL_CONDITIONED:
        return FitStatus.ILL_CONDITIONED, f"condition number {condition:.1e} of the scaled Jacobian"
    if distinct == design.size:
        return FitStatus.SATURATED, f"{distinct} distinct points, {distinct} parameters"
    return FitStatus.CONVERGED, ""


def _bounds_hit(design: Design, theta: Array) -> list[str]:
    """Sentences naming each coordinate that is at its bound."""
    sentences = []
    for name, value, low, high in zip(design.law.parameters, theta, *design.bounds(), strict=True):
        if value <= low and name in design.law.amplitudes:
            sentences.append(f"the term of {name} vanishes")
        elif value <= low or value >= high:
            sentences.append(f"{name} is at its {'lower' if value <= low else 'upper'} bound")
    return sentences


# ---- many fits ----


def fit_batch(start: FitResult, columns: Mapping[str, ArrayLike], loss: ArrayLike, weights: ArrayLike) -> BatchResult:
    """Fit the law of a fit again under many sets of weights at once, with its width and reference.

    Args:
        loss: (points,).
        weights: non-negative, (replicates, points): bootstrap counts, or 0 where a point is left out.

    Raises:
        ValueError, FitError: as `fit`.
    """
    losses, share = np.asarray(loss, dtype=float)[None], np.asarray(weights, dtype=float)
    design, data, _ = _prepare(start.law, columns, losses, share, start.reference)
    found = _refit(data, np.repeat(design.from_params(start.params), len(share), axis=1), start.delta)
    failed = np.flatnonzero(~found.converged)
    if failed.size:  # resamples far from the data begin at their own grid
        theirs = data.take(failed)
        cold = np.broadcast_to(grid_starts(design, theirs, 1)[:, :, 0], (design.size, failed.size)).copy()
        found = merge(found, failed, _refit(theirs, cold, start.delta))
    return BatchResult(found.value * share.sum(axis=1), found.converged, design, found.theta)


def _refit(data: Objective, theta: Array, delta: float | None) -> Minimum:
    """From coordinates that are already close: no least-squares stage before a narrow width."""
    if delta is None:
        scale = np.array([[float(np.median(spread(data, theta)))]])
        return _in_units(minimize(data.at(np.inf, scale), theta), scale)
    width = np.array([[delta]])
    found = minimize(data.at(width), theta)  # straight at the width: two thirds of the steps of a descent, and the same optima
    failed = np.flatnonzero(~found.converged)
    if failed.size:
        found = merge(found, failed, huber(data.take(failed), theta[:, failed], width))
    return _in_units(found, width)
