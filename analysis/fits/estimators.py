"""Estimators: what "best fit" means, and the stages that reach it from rough starts.

Modes: `huber` (Huber 1964; width given, or 1.345 times the MAD scale of a least-absolute-deviation pilot, then frozen), `lad`,
`quantile`, `least_squares`. All act on log residuals r = ln(loss) - ln(law), as Hoffmann et al. 2022 (app. D.2) do.

Narrow Huber functions and LAD have creased objectives, so a fit descends: least squares, then widths that shrink fourfold, each stage
starting where the last one ended. LAD ends with an exact vertex: the P points that it passes through are solved to rounding.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from analysis.fits.coordinates import Array
from analysis.fits.newton import Minimum, Objective, minimize, parts

OBJECTIVES = ("huber", "lad", "quantile", "least_squares")
HUBER_EFFICIENT = 1.345  # 95 % efficient for normal noise (Huber 1981, section 4.5)
NORMAL_MAD = 0.6745  # median of |z| for a standard normal z
WIDTH_FLOOR = 1e-5  # of log loss: far below evaluation noise; keeps rounding (1e-16 / width) under the gradient tolerance
TIGHT = 1e-7  # scaled gradient of the stages before LAD
SHRINK, FINE_SHRINK = 5.0, 1.7  # of the width, from stage to stage; the second where the first did not arrive
CREASE = 1e-6  # Huber width that stands in for LAD before its vertex is solved


def check_mode(objective: str, delta: float | None, tau: float) -> None:
    """Raises ValueError where an estimator is unknown or its numbers make no sense."""
    if objective not in OBJECTIVES:
        raise ValueError(f"objective={objective!r} is unknown; choose one of {', '.join(OBJECTIVES)}")
    if delta is not None and not (np.isfinite(delta) and delta > 0):
        raise ValueError(f"delta={delta} is not a positive number; give a width of log residuals such as 1e-3, or None to estimate it")
    if not 0 < tau < 1:
        raise ValueError(f"tau={tau} is not between 0 and 1; 0.5 is the median")


def residuals(objective: Objective, theta: Array) -> Array:
    """Log residuals (R, n)."""
    return objective.log_loss - np.log(parts(objective.basis, theta)[0])


def least_squares(objective: Objective, theta: Array, *, rough: bool = False) -> tuple[Minimum, Array]:
    """Least squares; scale (R, 1) is the root mean square residual, at least WIDTH_FLOOR. `rough` stops early: enough for a start."""
    first = minimize(objective.at(np.inf, 0.01), theta, tolerance=1e-3, max_steps=12)
    scale = spread(objective, first.theta)
    return (first if rough else minimize(objective.at(np.inf, scale), first.theta)), scale


def spread(objective: Objective, theta: Array) -> Array:
    """Root mean square log residual (R, 1), at least WIDTH_FLOOR."""
    square = np.einsum(
        "rn,rn->r", np.broadcast_to(objective.weights, (theta.shape[1], objective.weights.shape[1])), residuals(objective, theta) ** 2
    )
    return np.maximum(np.sqrt(square), WIDTH_FLOOR)[:, None]


def huber(objective: Objective, theta: Array, delta: Array | float) -> Minimum:
    """Huber at width `delta` (a number or (R, 1)) from rough coordinates, through widths that shrink fourfold from the residual spread."""
    target = np.broadcast_to(np.asarray(delta, dtype=float), (theta.shape[1], 1))
    width = np.maximum(spread(objective, theta), target)
    near = min(1e-2, 0.5 / objective.log_loss.shape[1])  # half the pull of one point: enough for the next width
    while (width > 1.001 * target).any():
        theta = minimize(objective.at(width), theta, tolerance=near, max_steps=30).theta
        width = np.maximum(width / 4, target)
    return minimize(objective.at(target), theta)


def least_absolute(objective: Objective, theta: Array) -> Minimum:
    """Least absolute deviations, or a quantile where objective.tau is not 1/2: Huber at a crease, then the exact vertex.

    Once the points in the crease are settled the optimum moves linearly with the width, so each stage starts from the line through the
    last two. Starting from the last one instead puts every point outside the narrower crease, where the Hessian is singular.
    """
    found = _descend(objective, theta, SHRINK)
    failed = np.flatnonzero(~found.converged)
    if failed.size:
        found = merge(found, failed, _descend(objective.take(failed), theta[:, failed], FINE_SHRINK))
    return found


def _descend(objective: Objective, theta: Array, shrink: float) -> Minimum:
    width = np.maximum(spread(objective, theta), CREASE)
    before, wider = theta, np.full_like(width, np.inf)
    while (width > CREASE).any():
        here = minimize(objective.at(width), theta, tolerance=TIGHT, max_steps=60).theta
        narrower = np.maximum(width / shrink, CREASE)
        share = np.where(np.isfinite(wider) & (wider > width), (width - narrower) / np.maximum(wider - width, CREASE), 0.0)
        before, theta = here, here + (here - before) * share[:, 0]
        wider, width = width, narrower
    return _vertex(objective, minimize(objective.at(CREASE), theta))


def merge(whole: Minimum, rows: NDArray[np.intp], some: Minimum) -> Minimum:
    """Put another attempt at some replicates in place wherever it converged and the first did not, or ended lower."""
    take = (some.converged & ~whole.converged[rows]) | ((some.converged == whole.converged[rows]) & (some.value < whole.value[rows]))
    picked = rows[take]
    merged = replace(whole, theta=whole.theta.copy(), value=whole.value.copy(), gradient_norm=whole.gradient_norm.copy())
    merged.theta[:, picked] = some.theta[:, take]
    merged.value[picked] = some.value[take]
    merged.gradient_norm[picked] = some.gradient_norm[take]
    return merged


def _vertex(objective: Objective, near: Minimum) -> Minimum:
    """Where exactly P residuals lie in the crease, solve those P equations and keep the result if it is optimal.

    At a vertex the pulls of the other points must be balanced by multipliers within the crease; that balance is the gradient then.
    """
    theta = near.theta.copy()
    size = len(theta)
    free = ((theta > objective.low) & (theta < objective.high)).all(axis=0)
    inside = np.abs(residuals(objective, theta)) <= CREASE
    inside &= np.broadcast_to(objective.weights > 0, inside.shape)
    rows = np.flatnonzero(free & (inside.sum(axis=1) == size))
    if not rows.size:
        return near
    local = objective.take(rows)
    points = np.flatnonzero(inside[rows])  # in row order: P per row
    points = (points % inside.shape[1]).reshape(len(rows), size)
    solved = theta[:, rows]
    for _ in range(4):
        slope = jacobians(local, solved)  # (rows, n, P)
        at = np.take_along_axis(slope, points[:, :, None], axis=1)
        gap = np.take_along_axis(residuals(local, solved), points, axis=1)
        solved = solved + _solve_rows(at, gap).T
    norm, good = _multipliers(local, solved, points)
    better = good & np.isfinite(solved).all(axis=0)
    theta[:, rows[better]] = solved[:, better]
    gradient_norm = near.gradient_norm.copy()
    gradient_norm[rows[better]] = norm[better]
    return replace(near, theta=theta, gradient_norm=gradient_norm)


def _solve_rows(matrices: Array, right: Array) -> Array:
    """Solve (rows, P, P) systems; not a number where one is singular."""
    matrices = np.where(np.isfinite(matrices).all(axis=(1, 2), keepdims=True), matrices, 0.0)
    fine = np.linalg.cond(matrices) < 1e14
    safe = np.where(fine[:, None, None], matrices, np.eye(matrices.shape[1]))
    return np.where(fine[:, None], np.linalg.solve(safe, right[:, :, None])[:, :, 0], np.nan)


def _multipliers(objective: Objective, theta: Array, points: NDArray[np.intp]) -> tuple[Array, NDArray[np.bool_]]:
    """How far the vertex is from balance, (rows,), and whether all multipliers are admissible."""
    residual, slope = residuals(objective, theta), jacobians(objective, theta)
    weights = np.broadcast_to(objective.weights, residual.shape).copy()
    tilt = np.where(residual > 0, 2 * objective.tau, -2 * (1 - objective.tau))
    others = weights * tilt
    np.put_along_axis(others, points, 0.0, axis=1)
    pull = np.einsum("rn,rnp->rp", others, slope)
    at = np.take_along_axis(slope, points[:, :, None], axis=1)
    multiplier = _solve_rows(at.transpose(0, 2, 1), -pull)
    share = multiplier / np.take_along_axis(weights, points, axis=1)
    admissible: NDArray[np.bool_] = np.asarray(
        ((share <= 2 * objective.tau + 1e-9) & (share >= -2 * (1 - objective.tau) - 1e-9)).all(axis=1)
    )
    balance = np.abs(np.einsum("rkp,rk->rp", at, multiplier) + pull).max(axis=1)
    return balance, admissible


def jacobians(objective: Objective, theta: Array) -> Array:
    """d ln(law) / d theta, (R, n, P)."""
    shares = parts(objective.basis, theta)[1]
    columns = [shares[0][:, :, None]] if objective.basis.has_floor else []
    terms = shares[1:] if objective.basis.has_floor else shares
    columns += [share[:, :, None] * block.features for share, block in zip(terms, objective.basis.blocks, strict=True)]
    return np.concatenate(columns, axis=2)


def jacobian(objective: Objective, theta: Array) -> Array:
    """d ln(law) / d theta of one set of coordinates (P,), shape (n, P)."""
    return jacobians(objective, theta[:, None])[0]


# ---- scale ----


def mad_scale(residual: Array, weights: Array, crease: float = 0.0) -> Array:
    """Median of |r| over residuals beyond `crease`, divided by 0.6745: the standard deviation if noise is normal, (R, 1).

    A LAD fit passes through P points; counting those zeros would halve the scale of small studies (Maronna et al. 2006, section 4.4.2).
    """
    size = np.abs(residual)
    weights = np.where(size > crease, np.broadcast_to(weights, size.shape), 0.0)
    return weighted_median(size, weights)[:, None] / NORMAL_MAD


def weighted_median(values: Array, weights: Array) -> Array:
    """Median along the last axis, (R,); a weight of 2 equals a repeated value; 0 where no weight is positive."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    reached = np.cumsum(np.take_along_axis(weights, order, axis=1), axis=1)
    half = 0.5 * reached[:, -1:]
    lower = np.argmax(reached >= half * (1 - 1e-12), axis=1)
    upper = np.argmax(reached > half * (1 + 1e-12), axis=1)
    rows = np.arange(len(values))
    return np.where(half[:, 0] > 0, 0.5 * (ordered[rows, lower] + ordered[rows, upper]), 0.0)


def pilot_width(objective: Objective, theta: Array) -> tuple[Minimum, Array]:
    """LAD pilot and the default Huber width from it, (R, 1)."""
    pilot = least_absolute(replace(objective, tau=0.5), theta)
    scale = mad_scale(residuals(objective, pilot.theta), objective.weights, crease=1.01 * CREASE)
    return pilot, np.maximum(HUBER_EFFICIENT * scale, WIDTH_FLOOR)
