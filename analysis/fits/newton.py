"""Batched damped Newton for robust fits of `E + sum_k exp(X_k theta_k)` to log losses, all replicates at once.

The objective of a replicate is the weighted mean of `a(r) * h(r)`, r = log(loss) - log(law): h is Huber's function divided by delta (Huber
1964), or r^2 / (2 scale) for least squares; a(r) is 2 tau or 2 (1 - tau) by the sign of r (quantiles; 1 for tau = 1/2). Divided so, each
point pulls with at most its weight, so the gradient is dimensionless and at most about 1: a bound of 1e-10 on it means the same for every
fit. Gradient and Hessian are exact; both reduce to matrix products because the features are common to all replicates.

Shapes: P coordinates, R replicates, n points; theta and gradient (P, R), Hessian (P, P, R). numpy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from analysis.fits.coordinates import Array, Block

TOLERANCE = 1e-10  # of the scaled gradient: the stopping rule of every fit
SQUARES_TOLERANCE = 1e-7  # where only sums of squares are compared: they err by its square
CHUNK_ELEMENTS = 100_000  # replicates x points per block of work: 0.8 MB an array; measured best between 80 and 160 thousand
MAX_STEP = 3.0  # in coordinates, which are of order 1

Penalty = Callable[[Array, NDArray[np.intp]], tuple[Array, Array, Array]]  # (theta, replicate indices) -> value, gradient, Hessian


@dataclass(frozen=True)
class Basis:
    """The features of a law at its points, and their products, which every Hessian needs."""

    blocks: tuple[Block, ...]
    has_floor: bool

    @cached_property
    def all_blocks(self) -> tuple[Block, ...]:
        """The blocks, after one of ones for the floor if the law has one."""
        if not self.has_floor:
            return self.blocks
        return (Block(np.ones((self.blocks[0].features.shape[0], 1)), None, 0, 1), *self.blocks)

    @cached_property
    def products(self) -> dict[tuple[int, int], Array]:
        """For blocks i <= j: the outer products of their features, (n, q_i q_j)."""
        features = [block.features for block in self.all_blocks]
        return {
            (i, j): (features[i][:, :, None] * features[j][:, None, :]).reshape(len(features[i]), -1)
            for i in range(len(features))
            for j in range(i, len(features))
        }


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

        def pick(array: Array, axis: int = 0) -> Array:
            return array if array.shape[axis] == 1 else array.take(rows, axis=axis)

        return replace(
            self,
            log_loss=pick(self.log_loss),
            weights=pick(self.weights),
            delta=pick(self.delta),
            scale=pick(self.scale),
            low=pick(self.low, 1),
            high=pick(self.high, 1),
        )


@dataclass(frozen=True)
class Minimum:
    """Where a batch ended: coordinates (P, R), objective (R,), scaled gradient norm (R,), Newton steps (R,)."""

    theta: Array
    value: Array
    gradient_norm: Array
    steps: NDArray[np.intp]

    @property
    def converged(self) -> NDArray[np.bool_]:
        return self.gradient_norm <= TOLERANCE


# ---- objective, gradient, Hessian ----


def parts(basis: Basis, theta: Array) -> tuple[Array, list[Array]]:
    """Law value f (R, n) and the shares [1/f, t_1/f, ...] (the first only with a floor), each (R, n)."""
    terms = []
    for block in basis.blocks:
        predictor = theta[block.start : block.stop].T @ block.features.T
        if block.offset is not None:
            predictor += block.offset
        terms.append(np.exp(predictor, out=predictor))
    value = terms[0] + theta[0][:, None] if basis.has_floor else terms[0].copy()
    for term in terms[1:]:
        value += term
    inverse = 1.0 / value
    for term in terms:
        term *= inverse
    return value, [inverse, *terms] if basis.has_floor else terms


def evaluate(objective: Objective, theta: Array, rows: NDArray[np.intp]) -> tuple[Array, Array, Array]:
    """Objective (R,), gradient (P, R) and exact Hessian (P, P, R); infinite objective where the law is not positive."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        value, shares = parts(objective.basis, theta)
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
    blocks = basis.all_blocks
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


# ---- linear algebra over the last axis ----


def solve(matrix: Array, right: Array) -> Array:
    """Solve symmetric systems (P, P, R) x = (P, R) by LDL^T, each pivot replaced by its absolute value (at least 1e-14).

    Vectorized over R: for the 2 to 9 coordinates of a law this costs a tenth of LAPACK's one-matrix-at-a-time calls, and the
    changed pivots make an indefinite Hessian give a descent direction.
    """
    rest, x = matrix.copy(), right.copy()
    size = len(x)
    columns: list[Array] = []
    for j in range(size):
        pivot = np.maximum(np.abs(rest[j, j]), 1e-14)
        below = rest[j + 1 :, j]
        scaled = below / pivot
        rest[j + 1 :, j + 1 :] -= scaled[:, None] * below
        x[j + 1 :] -= scaled * x[j]
        x[j] /= pivot
        columns.append(scaled)
    for j in range(size - 2, -1, -1):
        x[j] -= (columns[j] * x[j + 1 :]).sum(axis=0)
    return x


# ---- the batched minimizer ----


@dataclass
class _State:
    """Replicates that are still moving."""

    rows: NDArray[np.intp]
    theta: Array
    value: Array
    gradient: Array
    hessian: Array
    damping: Array
    norm: Array
    steps: NDArray[np.intp]

    def keep(self, mask: NDArray[np.bool_]) -> _State:
        return _State(
            self.rows[mask],
            self.theta[:, mask],
            self.value[mask],
            self.gradient[:, mask],
            self.hessian[:, :, mask],
            self.damping[mask],
            self.norm[mask],
            self.steps[mask],
        )


def minimize(objective: Objective, theta: Array, *, tolerance: float = TOLERANCE, max_steps: int = 200) -> Minimum:
    """Advance all replicates from their starts (P, R) until the scaled gradient passes the tolerance and stops shrinking."""
    n_replicates = theta.shape[1]
    theta = _within(objective, theta)
    result = Minimum(theta, np.full(n_replicates, np.inf), np.full(n_replicates, np.inf), np.zeros(n_replicates, dtype=np.intp))
    damping = np.full(n_replicates, 1e-3)
    chunk = max(8, CHUNK_ELEMENTS // objective.log_loss.shape[1])
    pending = np.arange(n_replicates)
    while pending.size:
        rest = [_advance(objective, pending[i : i + chunk], result, damping, tolerance, max_steps) for i in range(0, pending.size, chunk)]
        pending = np.concatenate(rest)
    return result


def _advance(
    whole: Objective, rows: NDArray[np.intp], result: Minimum, damping: Array, tolerance: float, max_steps: int, round_steps: int = 12
) -> NDArray[np.intp]:
    """Take up to `round_steps` steps for some replicates, write them back, and return those that are not done.

    Stragglers of all blocks then share the next round, so that no block idles for its slowest member.
    """
    local = whole.take(rows)
    theta = result.theta[:, rows]
    value, gradient, hessian = evaluate(local, theta, rows)
    norm = np.abs(_free_gradient(local, theta, gradient)).max(axis=0)
    state = _State(rows, theta, value, gradient, hessian, damping[rows], norm, result.steps[rows])
    for _ in range(round_steps):
        state, finished = _step(local, state, tolerance)
        finished |= state.steps >= max_steps
        if finished.any():
            _write(result, damping, state.keep(finished))
            state = state.keep(~finished)
            if not state.rows.size:
                return state.rows
            local = local.take(np.flatnonzero(~finished))
    _write(result, damping, state)
    return state.rows


def _write(result: Minimum, damping: Array, state: _State) -> None:
    result.theta[:, state.rows] = state.theta
    result.value[state.rows] = state.value
    result.gradient_norm[state.rows] = state.norm
    result.steps[state.rows] = state.steps
    damping[state.rows] = state.damping


def _within(objective: Objective, theta: Array) -> Array:
    return np.minimum(np.maximum(theta, objective.low), objective.high)


def _at_bound(objective: Objective, theta: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return theta <= objective.low, theta >= objective.high


def _free_gradient(objective: Objective, theta: Array, gradient: Array) -> Array:
    """The gradient without the components that push a coordinate out of its bounds."""
    low, high = _at_bound(objective, theta)
    if not (low.any() or high.any()):
        return gradient
    return np.where((low & (gradient > 0)) | (high & (gradient < 0)), 0.0, gradient)


def _direction(objective: Objective, state: _State) -> tuple[Array, Array]:
    """Damped Newton step within the bounds, and the decrease that the quadratic model promises."""
    free_gradient = _free_gradient(objective, state.theta, state.gradient)
    hessian = state.hessian.copy()
    index = np.arange(len(hessian))
    diagonal = state.hessian[index, index]
    hessian[index, index] += state.damping * (np.abs(diagonal) + 1e-9)
    if free_gradient is not state.gradient:
        low, high = _at_bound(objective, state.theta)
        held = (free_gradient == 0) & (low | high)
        hessian = np.where(held[:, None] | held[None, :], 0.0, hessian)
        hessian[index, index] += held
    step = -solve(hessian, free_gradient)
    longest = np.abs(step).max(axis=0)
    if longest.max() > MAX_STEP:
        step *= np.minimum(1.0, MAX_STEP / np.maximum(longest, 1e-300))
    step = _within(objective, state.theta + step) - state.theta
    bent = (step * (state.hessian * step).sum(axis=1)).sum(axis=0)
    promised = -(step * free_gradient).sum(axis=0) - 0.5 * bent
    return step, promised


def _step(objective: Objective, state: _State, tolerance: float) -> tuple[_State, NDArray[np.bool_]]:
    """One trial step for every replicate; accepted where it improves. Returns the state and who is done."""
    step, promised = _direction(objective, state)
    theta = _within(objective, state.theta + step)  # again: rounding may have left the bounds
    value, gradient, hessian = evaluate(objective, theta, state.rows)
    norm = np.abs(_free_gradient(objective, theta, gradient)).max(axis=0)
    # Residuals carry rounding errors of some 1e-16 and pull with at most 1, so the objective resolves no smaller progress; below that the
    # gradient norm decides.
    blur = 4e-15 + 1e-14 * np.abs(state.value)
    better = (value < state.value - blur) | ((value <= state.value + blur) & (norm < state.norm))
    rounding = promised <= 10 * blur
    with np.errstate(over="ignore", invalid="ignore"):  # a promise of nothing, or a trial step where the law is not positive
        gain = np.where(rounding, norm < 0.5 * state.norm, (state.value - value) / np.maximum(promised, 1e-300))
    if tolerance > TOLERANCE:  # an intermediate stage: near enough is done
        polished = np.where(better, norm, state.norm) <= tolerance
    else:
        polished = (state.norm <= tolerance) & ~(better & (norm < 0.5 * state.norm))
    damping = np.where(
        ~better,
        np.maximum(state.damping, 1e-4) * 8,
        np.where(gain > 0.5, state.damping * 0.1, np.where(gain < 0.1, state.damping * 4, state.damping)),
    )
    damping = np.where(damping < 1e-9, 0.0, damping)
    if better.all():
        return _State(state.rows, theta, value, gradient, hessian, damping, norm, state.steps + 1), polished
    new = _State(
        state.rows,
        np.where(better, theta, state.theta),
        np.where(better, value, state.value),
        np.where(better, gradient, state.gradient),
        np.where(better, hessian, state.hessian),
        damping,
        np.where(better, norm, state.norm),
        state.steps + 1,
    )
    return new, polished | (damping > 1e12)
