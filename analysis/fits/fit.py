"""Fit a law to losses, and say how far the answer can be trusted.

    result = fit(POWER_FLOOR, {"params_non_embedding": sizes}, val_loss)
    result.predict({"params_non_embedding": [1e7]})

`fit` returns one `FitResult`; `fit_batch` fits it again under many sets of weights (a bootstrap) at once. How:
starts by variable projection (`analysis.fits.grid_starts`), then damped Newton with the exact Hessian (`analysis.fits.newton`).
Nothing here reads or writes files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from analysis.fits.coordinates import Array, Design, FitError, build
from analysis.fits.fit_result import BatchResult, FitResult, FitStatus, condition_number, judge
from analysis.fits.grid_starts import grid_starts
from analysis.fits.laws import Law, column_values
from analysis.fits.newton import Minimum, huber, least_squares, merge, minimize
from analysis.fits.objective import WIDTH_FLOOR, Basis, Objective, residuals, spread

__all__ = ["BatchResult", "FitError", "FitResult", "FitStatus", "fit", "fit_batch"]

N_STARTS = 10
AGREEMENT = 1e-6  # relative: objectives closer than this are the same optimum


# ---- one fit ----


def fit(
    law: Law,
    columns: Mapping[str, ArrayLike],
    loss: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    delta: float | None = None,
    reference: Mapping[str, float] | None = None,
    n_starts: int = N_STARTS,
) -> FitResult:
    """Fit a law to losses.

    Args:
        law: the equation.
        columns: positive table columns, each (points,).
        loss: the target (nats for losses), positive and finite, (points,).
        weights: non-negative, (points,); a weight of 2 equals a repeated point.
        delta: Huber width in log loss; None takes least squares.
        reference: column values at which amplitudes are reported; None takes the weighted geometric mean of each column.
        n_starts: how many of the best grid nodes are carried to an optimum.

    Raises:
        ValueError: bad input, named.
        FitError: fewer distinct points than parameters.
    """
    if delta is not None and not (np.isfinite(delta) and delta > 0):
        raise ValueError(f"delta={delta} is not a positive number; give a width of log residuals such as 1e-3, or None for least squares")
    losses, share = _checked_losses(loss, weights)
    design, data = _prepare(law, *_merged(law, columns, losses, share), reference)
    found = _solve(data, grid_starts(design, data, n_starts)[:, 0], delta)
    return _result(design, objective_of(design, columns, losses, share), found, delta, columns, losses[0], share[0])


def _checked_losses(loss: ArrayLike, weights: ArrayLike | None) -> tuple[Array, Array]:
    """Losses (1, n) and weights (R, n).

    Raises:
        ValueError: empty, not positive and finite, or shapes that do not match.
    """
    losses = np.asarray(loss, dtype=float)
    bad = ~(np.isfinite(losses) & (losses > 0))
    if not losses.size:
        raise FitError("there are no points to fit; give at least as many distinct configurations as the law has parameters")
    if bad.any():
        raise ValueError(
            f"loss holds {losses[bad][0]} in {int(bad.sum())} of {losses.size} rows; remove rows without a positive finite loss"
        )
    share = np.ones((1, losses.size)) if weights is None else np.atleast_2d(np.asarray(weights, dtype=float))
    if share.shape[1] != losses.size or not (np.isfinite(share).all() and (share >= 0).all() and (share.sum(axis=1) > 0).all()):
        raise ValueError(
            f"weights of shape {share.shape} for {losses.size} points; give one finite non-negative weight per point, not all zero"
        )
    return losses[None], share


def _merged(law: Law, columns: Mapping[str, ArrayLike], losses: Array, weights: Array) -> tuple[dict[str, Array], Array, Array]:
    """One row, with the summed weight, for rows that are equal in every column and in loss; rows sorted.

    A repeated point then is a weight, and the order of rows does not change a single bit.
    """
    table = {name: np.atleast_1d(column_values(columns, name)) for name in law.columns}
    name, shape = next(((name, values.shape) for name, values in table.items() if values.shape != losses.shape[1:]), ("", ()))
    if name:
        raise ValueError(f"column {name!r} has shape {shape}, the loss has {losses.shape[1]} points; give one value per point")
    used = np.flatnonzero(weights.max(axis=0) > 0)
    rows = np.stack([*table.values(), losses[0]], axis=1)[used]
    _, first, group = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(group.reshape(-1), kind="stable")
    starts = np.searchsorted(group.reshape(-1)[order], np.arange(len(first)))
    kept = used[first]
    return {name: values[kept] for name, values in table.items()}, losses[:, kept], np.add.reduceat(weights[:, used[order]], starts, axis=1)


def _prepare(
    law: Law, columns: Mapping[str, ArrayLike], losses: Array, weights: Array, reference: Mapping[str, float] | None
) -> tuple[Design, Objective]:
    """The design and its objective (still without a width)."""
    _require_points(law, columns, weights)
    design = build(law, columns, np.log(losses[0]), weights.mean(axis=0), reference)
    return design, objective_of(design, columns, losses, weights)


def objective_of(design: Design, columns: Mapping[str, ArrayLike], losses: Array, weights: Array) -> Objective:
    """Losses and weights (R or 1, n) over a design, as what Newton minimizes; width and scale are set by `Objective.at`."""
    low, high = design.bounds()
    return Objective(
        basis=Basis(design.blocks(columns), design.law.has_floor),
        log_loss=np.log(losses / design.loss_scale),
        weights=weights / weights.sum(axis=1, keepdims=True),
        delta=np.array([[np.inf]]),
        scale=np.array([[1.0]]),
        low=low[:, None],
        high=high[:, None],
    )


def _require_points(law: Law, columns: Mapping[str, ArrayLike], weights: Array) -> int:
    """Number of distinct points with weight.

    Raises:
        FitError: fewer of them than parameters.
    """
    points = np.stack([column_values(columns, name) for name in law.columns], axis=1)[weights.max(axis=0) > 0]
    distinct = len(np.unique(points, axis=0))
    if distinct < len(law.parameters):
        raise FitError(
            f"law {law.name} ({law.equation}) has {len(law.parameters)} parameters but the data hold {distinct} distinct points of "
            f"{', '.join(law.columns)}; add configurations or choose a law with fewer parameters"
        )
    return distinct


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


# ---- the result ----


def _result(
    design: Design,
    data: Objective,
    found: Minimum,
    delta: float | None,
    columns: Mapping[str, ArrayLike],
    loss: Array,
    weights: Array,
) -> FitResult:
    best = int(np.argmin(np.where(found.converged, found.value, np.inf))) if found.converged.any() else int(np.argmin(found.value))
    theta = found.theta[:, best]
    agreeing = found.value <= found.value[best] * (1 + AGREEMENT) + 1e-12 * WIDTH_FLOOR
    distinct = _require_points(design.law, columns, weights[None])
    status, message = judge(design, found, best, agreeing, condition_number(data, theta), distinct)
    return FitResult(
        law=design.law,
        params={name: float(value[0]) for name, value in design.to_params(theta[:, None]).items()},
        reference=design.reference,
        delta=delta,
        objective_value=float(found.value[best] * weights.sum()),
        gradient_norm=float(found.gradient_norm[best]),
        n_points=int((weights > 0).sum()),
        n_starts=found.theta.shape[1],
        starts_agreeing=int(agreeing.sum()),
        status=status,
        message=message,
        residuals=residuals(data, theta[:, None])[0],
        columns={name: column_values(columns, name) for name in design.law.columns},
        loss=loss,
        weights=weights,
        design=design,
        theta=theta,
    )


# ---- many fits ----


def fit_batch(start: FitResult, columns: Mapping[str, ArrayLike], loss: ArrayLike, weights: ArrayLike) -> BatchResult:
    """Fit the law of a fit again under many sets of weights at once, with its width and reference.

    Args:
        loss: (points,).
        weights: (replicates, points): bootstrap counts, or 0 where a point is left out.

    Raises:
        ValueError, FitError: as `fit`.
    """
    losses, share = _checked_losses(loss, weights)
    design, data = _prepare(start.law, *_merged(start.law, columns, losses, share), start.reference)
    found = _refit(data, np.repeat(design.from_params(start.params), len(share), axis=1), start.delta)
    failed = np.flatnonzero(~found.converged)
    if failed.size:  # resamples far from the data begin at their own grid
        theirs = data.take(failed)
        cold = np.broadcast_to(grid_starts(design, theirs, 1)[:, :, 0], (design.size, failed.size)).copy()
        found = merge(found, failed, _refit(theirs, cold, start.delta))
    return BatchResult(
        params=design.to_params(found.theta),
        objective_value=found.value * share.sum(axis=1),
        converged=found.converged,
        design=design,
        theta=found.theta,
    )


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
