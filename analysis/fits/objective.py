"""What a batch of fits minimizes: `E + sum_k exp(X_k theta_k)` against log losses, with exact gradient and Hessian, all replicates at once.

The objective of a replicate is the weighted mean of h(r), r = log(loss) - log(law), as Hoffmann et al. 2022 (app. D.2) have it: h is
Huber's function divided by delta (Huber 1964), or r^2 / (2 scale) for least squares. Divided so, each point pulls with at most its weight,
so the gradient is dimensionless and at most about 1: a bound of 1e-10 on it means the same for every fit. Gradient and Hessian reduce to
matrix products because the features are common to all replicates.

Shapes: P coordinates, R replicates, n points; theta and gradient (P, R), Hessian (P, P, R). numpy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.fits.coordinates import Array, Basis

WIDTH_FLOOR = 1e-5  # of log loss: far below evaluation noise; keeps rounding (1e-16 / width) under the gradient tolerance

Penalty = Callable[[Array, NDArray[np.intp]], tuple[Array, Array, Array]]  # (theta, replicate indices) -> value, gradient, Hessian


@dataclass(frozen=True)
class Objective:
    """What a batch minimizes. Arrays are (R, n), or (1, n) where all replicates share them.

    `delta` and `scale` are (R, 1) or (1, 1); `weights` sum to 1 over points; `low`, `high` are (P, R) or (P, 1).
    """

    basis: Basis
    log_loss: Array
    weights: Array
    delta: Array
    scale: Array
    low: Array
    high: Array
    penalty: Penalty | None = None

    def at(self, delta: Array | float, scale: Array | float | None = None) -> Objective:
        """The same data under another width (and scale, by default equal to the width)."""
        width = np.atleast_2d(np.asarray(delta, dtype=float))
        return replace(self, delta=width, scale=width if scale is None else np.atleast_2d(np.asarray(scale, dtype=float)))

    def take(self, rows: NDArray[np.intp]) -> Objective:
        """The objective of some replicates."""
        axes = {"log_loss": 0, "weights": 0, "delta": 0, "scale": 0, "low": 1, "high": 1}
        own = {name: array.take(rows, axis) for name, axis in axes.items() if (array := getattr(self, name)).shape[axis] > 1}
        return replace(self, **own)


# ---- objective, gradient, Hessian ----


def evaluate(objective: Objective, theta: Array, rows: NDArray[np.intp]) -> tuple[Array, Array, Array]:
    """Objective (R,), gradient (P, R) and exact Hessian (P, P, R); infinite objective where the law is not positive."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        value, shares = objective.basis.parts(theta)
        residual = objective.log_loss - np.log(value)
        clipped = np.minimum(np.maximum(residual, -objective.delta), objective.delta)
        inside = clipped == residual
        pull = objective.weights / objective.scale
        force = pull * clipped  # w psi(r)
        height = (force * (residual - 0.5 * clipped)).sum(axis=1)
        curvature = pull * inside
        curvature += force
        gradient, hessian = reduce_points(objective.basis, theta.shape, shares, force, curvature)
    height = np.where(np.isfinite(height) & (value.min(axis=1) > 0), height, np.inf)
    if objective.penalty is not None:
        extra = objective.penalty(theta, rows)
        height, gradient, hessian = height + extra[0], gradient + extra[1], hessian + extra[2]
    return height, gradient, hessian


def reduce_points(basis: Basis, shape: tuple[int, ...], shares: list[Array], force: Array, curvature: Array) -> tuple[Array, Array]:
    """Sum point contributions into gradient and Hessian, one matrix product for each pair of blocks.

    With `force` w psi and `curvature` w psi' + w psi these are the derivatives of sum w rho(log_loss - ln f).
    """
    gradient = np.empty(shape)
    hessian = np.empty((shape[0], *shape))
    blocks = basis.blocks
    for i, (share, first) in enumerate(zip(shares, blocks, strict=True)):
        here = slice(first.start, first.stop)
        pulled = force * share
        gradient[here] = -(pulled @ first.features).T
        bent = curvature * share
        for j in range(i, len(blocks)):
            second = blocks[j]
            there = slice(second.start, second.stop)
            mixed = bent * shares[j]
            if j == i and not (basis.has_floor and i == 0):
                mixed -= pulled
            summed = (mixed @ basis.products[i, j]).T.reshape(here.stop - here.start, there.stop - there.start, -1)
            hessian[here, there] = summed
            if j != i:
                hessian[there, here] = summed.transpose(1, 0, 2)
    return gradient, hessian


# ---- residuals ----


def residuals(objective: Objective, theta: Array) -> Array:
    """Log residuals (R, n)."""
    return objective.log_loss - np.log(objective.basis.parts(theta)[0])


def spread(objective: Objective, theta: Array) -> Array:
    """Root mean square log residual (R, 1), at least WIDTH_FLOOR."""
    square = np.einsum(
        "rn,rn->r", np.broadcast_to(objective.weights, (theta.shape[1], objective.weights.shape[1])), residuals(objective, theta) ** 2
    )
    return np.maximum(np.sqrt(square), WIDTH_FLOOR)[:, None]


def jacobians(objective: Objective, theta: Array) -> Array:
    """d ln(law) / d theta, (R, n, P)."""
    shares = objective.basis.parts(theta)[1]
    slopes = [share[:, :, None] * block.features for share, block in zip(shares, objective.basis.blocks, strict=True)]
    return np.concatenate(slopes, axis=2)


def spared(slopes: Array) -> Array:
    """1 - leverage (R, n) of points with Jacobians (R, n, P): the share of its own noise that a point keeps as residual."""
    left, values, _ = np.linalg.svd(slopes, full_matrices=False)
    return np.asarray(1 - (left**2 * (values[:, None, :] > 1e-9 * values[:, None, :1])).sum(axis=2))
