"""Batched damped Newton: all replicates advance together, by least squares or Huber of a given width.

Narrow Huber functions have creased objectives, so a fit descends: least squares, then widths that shrink fourfold, each stage starting
where the last one ended.

Shapes: P coordinates, R replicates, n points; theta and gradient (P, R), Hessian (P, P, R). numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.fits.coordinates import Array
from analysis.fits.objective import Objective, evaluate, spread

TOLERANCE = 1e-10  # of the scaled gradient: the stopping rule of every fit
SQUARES_TOLERANCE = 1e-7  # where only sums of squares are compared: they err by its square
CHUNK_ELEMENTS = 100_000  # replicates x points per block of work: 0.8 MB an array; measured best between 80 and 160 thousand
ROUND_STEPS = 12
MAX_STEP = 3.0  # in coordinates, which are of order 1


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


# ---- estimators ----


def least_squares(objective: Objective, theta: Array, *, rough: bool = False) -> tuple[Minimum, Array]:
    """Least squares; scale (R, 1) is the root mean square residual, at least WIDTH_FLOOR. `rough` stops early: enough for a start."""
    first = minimize(objective.at(np.inf, 0.01), theta, tolerance=1e-3, max_steps=12)
    scale = spread(objective, first.theta)
    return (first if rough else minimize(objective.at(np.inf, scale), first.theta)), scale


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
    for into, found in zip(vars(whole).values(), vars(some).values(), strict=True):
        into[..., rows[take]] = found[..., take]
    return whole


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
    """Replicates that are still moving, along the last axis."""

    rows: NDArray[np.intp]
    theta: Array
    value: Array
    gradient: Array
    hessian: Array
    norm: Array
    damping: Array
    steps: NDArray[np.intp]

    def keep(self, mask: NDArray[np.bool_]) -> _State:
        return _State(*(array.compress(mask, axis=-1) for array in vars(self).values()))


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
    whole: Objective, rows: NDArray[np.intp], result: Minimum, damping: Array, tolerance: float, max_steps: int
) -> NDArray[np.intp]:
    """Take up to ROUND_STEPS steps for some replicates, write them back, and return those that are not done.

    Stragglers of all blocks then share the next round, so that no block idles for its slowest member.
    """
    local = whole.take(rows)
    state = _state(local, rows, result.theta[:, rows], damping[rows], result.steps[rows])
    for _ in range(ROUND_STEPS):
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


def _state(objective: Objective, rows: NDArray[np.intp], theta: Array, damping: Array, steps: NDArray[np.intp]) -> _State:
    value, gradient, hessian = evaluate(objective, theta, rows)
    norm = np.abs(_free_gradient(objective, theta, gradient)).max(axis=0)
    return _State(rows, theta, value, gradient, hessian, norm, damping, steps)


def _write(result: Minimum, damping: Array, state: _State) -> None:
    own = (state.theta, state.value, state.norm, state.steps, state.damping)
    for into, array in zip((*vars(result).values(), damping), own, strict=True):
        into[..., state.rows] = array


def _within(objective: Objective, theta: Array) -> Array:
    return np.minimum(np.maximum(theta, objective.low), objective.high)


def _free_gradient(objective: Objective, theta: Array, gradient: Array) -> Array:
    """The gradient without the components that push a coordinate out of its bounds."""
    low, high = theta <= objective.low, theta >= objective.high
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
        held = (free_gradient == 0) & ((state.theta <= objective.low) | (state.theta >= objective.high))
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
    tried = _state(objective, state.rows, theta, state.damping, state.steps)
    # Residuals carry rounding errors of some 1e-16 and pull with at most 1, so the objective resolves no smaller progress; below that the
    # gradient norm decides.
    blur = 4e-15 + 1e-14 * np.abs(state.value)
    better = (tried.value < state.value - blur) | ((tried.value <= state.value + blur) & (tried.norm < state.norm))
    rounding = promised <= 10 * blur
    with np.errstate(over="ignore", invalid="ignore"):  # a promise of nothing, or a trial step where the law is not positive
        gain = np.where(rounding, tried.norm < 0.5 * state.norm, (state.value - tried.value) / np.maximum(promised, 1e-300))
    if tolerance > TOLERANCE:  # an intermediate stage: near enough is done
        done = np.where(better, tried.norm, state.norm) <= tolerance
    else:
        done = (state.norm <= tolerance) & ~(better & (tried.norm < 0.5 * state.norm))
    damping = np.where(
        ~better,
        np.maximum(state.damping, 1e-4) * 8,
        np.where(gain > 0.5, state.damping * 0.1, np.where(gain < 0.1, state.damping * 4, state.damping)),
    )
    damping = np.where(damping < 1e-9, 0.0, damping)
    if not better.all():
        done |= damping > 1e12
        for name in ("theta", "value", "gradient", "hessian", "norm"):
            setattr(tried, name, np.where(better, getattr(tried, name), getattr(state, name)))
    tried.damping, tried.steps = damping, state.steps + 1
    return tried, done
