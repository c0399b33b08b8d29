"""Estimators: what "best fit" means, and the stages that reach it from rough starts.

Least squares, or Huber (1964) of a given width, both on log residuals r = ln(loss) - ln(law), as Hoffmann et al. 2022 (app. D.2) have it.

Narrow Huber functions have creased objectives, so a fit descends: least squares, then widths that shrink fourfold, each stage starting
where the last one ended.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from analysis.fits.coordinates import Array
from analysis.fits.newton import Minimum, Objective, minimize, parts

NORMAL_MAD = 0.6745  # median of |z| for a standard normal z
WIDTH_FLOOR = 1e-5  # of log loss: far below evaluation noise; keeps rounding (1e-16 / width) under the gradient tolerance


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


def merge(whole: Minimum, rows: NDArray[np.intp], some: Minimum) -> Minimum:
    """Put another attempt at some replicates in place wherever it converged and the first did not, or ended lower."""
    take = (some.converged & ~whole.converged[rows]) | ((some.converged == whole.converged[rows]) & (some.value < whole.value[rows]))
    picked = rows[take]
    merged = replace(whole, theta=whole.theta.copy(), value=whole.value.copy(), gradient_norm=whole.gradient_norm.copy())
    merged.theta[:, picked] = some.theta[:, take]
    merged.value[picked] = some.value[take]
    merged.gradient_norm[picked] = some.gradient_norm[take]
    return merged


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


def mad_scale(residual: Array, weights: Array) -> Array:
    """Median of |r| divided by 0.6745: the standard deviation if noise is normal, (R, 1)."""
    return weighted_median(np.abs(residual), np.broadcast_to(weights, residual.shape))[:, None] / NORMAL_MAD


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
