"""Fit a law to losses, and say how far the answer can be trusted.

    result = fit(POWER_FLOOR, {"params_non_embedding": sizes}, val_loss)
    print(result.summary())
    result.predict({"params_non_embedding": [1e7]})

`fit` returns one `FitResult`; `fit_batch` fits many replicates (bootstrap weights, or simulated losses) at once. How:
starts by variable projection (`analysis.starts`), then damped Newton with the exact Hessian (`analysis.newton`), the estimators being those
of `analysis.modes`. Nothing here reads or writes files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis import modes
from analysis.design import MAX_LOG_AMPLITUDE, MIN_LOG_AMPLITUDE, Array, Design, build
from analysis.laws import Bowl, Law, column_values
from analysis.newton import TOLERANCE, Basis, Minimum, Objective, minimize
from analysis.starts import grid_starts

N_STARTS = 12
AGREEMENT = 1e-6  # relative: objectives closer than this are the same optimum
ILL_CONDITIONED = 1e6  # of the scaled Jacobian: noise of 1e-4 then moves parameters by more than their size


class FitError(ValueError):
    """No usable estimate: the data do not reach what the law needs."""


class FitStatus(Enum):
    """How to treat an estimate; the value is the sentence that reports print."""

    CONVERGED = "converged: the estimate is the optimum; its interval says how sure it is"
    SATURATED = "as many parameters as distinct points: the curve passes through the data and says nothing about its error"
    BOUND_HIT = "a parameter is at its bound: report the bound, not the value, and use the local slope instead"
    STARTS_DISAGREE = "starts end in different places: the data do not single out one curve; do not report parameters"
    ILL_CONDITIONED = "parameters trade off against each other: predictions inside the data may hold, single parameters do not"
    NO_OPTIMUM = "the shape term has no minimum: report no optimal aspect"
    NOT_CONVERGED = "the optimizer did not reach the optimum: use nothing of this fit"

    @property
    def usable(self) -> bool:
        """Whether parameters may be reported (with their intervals)."""
        return self is FitStatus.CONVERGED


@dataclass(frozen=True)
class FitResult:
    """One fitted law with what is needed to judge it.

    Losses are in nats (or the unit of the law's target), residuals and widths in log loss. `objective_value` is the weighted sum over
    points: r^2/2 inside delta and delta (|r| - delta/2) outside (huber, as Hoffmann et al. 2022), |r| (lad), 2 tau or 2 (1 - tau) times
    |r| (quantile), r^2/2 (least_squares). `gradient_norm` is scaled (`analysis.newton`). `scale` is the MAD standard deviation of the
    residuals.
    """

    law: Law
    params: dict[str, float]
    reference: dict[str, float]
    objective: str
    delta: float | None
    tau: float
    objective_value: float
    gradient_norm: float
    n_points: int
    n_starts: int
    starts_agreeing: int
    inlier_fraction: float
    condition: float
    scale: float
    status: FitStatus
    message: str
    residuals: Array = field(repr=False, compare=False)
    columns: dict[str, Array] = field(repr=False, compare=False)
    loss: Array = field(repr=False, compare=False)
    weights: Array = field(repr=False, compare=False)
    design: Design = field(repr=False, compare=False)
    theta: Array = field(repr=False, compare=False)

    def predict(self, columns: Mapping[str, ArrayLike]) -> Array:
        """Predicted target at points, (points,)."""
        arrays = {name: np.atleast_1d(column_values(columns, name)) for name in self.law.columns}
        return np.exp(self.design.log_predict(self.theta[:, None], arrays)[0])

    @property
    def fitted(self) -> Array:
        """Predicted target at the data, (points,)."""
        return self.loss * np.exp(-self.residuals)

    def summary(self) -> str:
        """Plain text in blocks: law, parameters, fit, status."""
        at = ", ".join(f"{name} = {value:.4g}" for name, value in self.reference.items())
        width = max(len(name) for name in self.params)
        lines = [f"{self.law.name}: {self.law.target} = {self.law.equation}", f"  source     {self.law.source}", f"  reference  {at}"]
        lines += [f"  {name:<{width}}  {value:.6g}" for name, value in self.params.items()]
        delta = "" if self.delta is None else f", delta = {self.delta:.3g}"
        lines += [
            f"  objective  {self.objective}{delta}: {self.objective_value:.6g} over {self.n_points} points",
            f"  residuals  sd {self.scale:.3g} of log loss (MAD), {100 * self.inlier_fraction:.0f} % inliers",
            f"  optimizer  scaled gradient {self.gradient_norm:.1e}, {self.starts_agreeing} of {self.n_starts} starts agree, "
            f"condition {self.condition:.1e}",
            f"  status     {self.status.name}: {self.message}",
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """JSON-ready card of the fit."""
        return {
            "law": self.law.name,
            "equation": self.law.equation,
            "source": self.law.source,
            "target": self.law.target,
            "columns": list(self.law.columns),
            "params": dict(self.params),
            "reference": dict(self.reference),
            "objective": self.objective,
            "delta": self.delta,
            "tau": self.tau,
            "objective_value": self.objective_value,
            "gradient_norm": self.gradient_norm,
            "n_points": self.n_points,
            "n_starts": self.n_starts,
            "starts_agreeing": self.starts_agreeing,
            "inlier_fraction": self.inlier_fraction,
            "condition": self.condition,
            "scale": self.scale,
            "status": self.status.name,
            "message": self.message,
            "residuals": [float(r) for r in self.residuals],
        }


@dataclass(frozen=True)
class BatchResult:
    """Many fits of one law at one reference; every array has one entry per replicate, (R,); `theta` is (P, R)."""

    law: Law
    reference: dict[str, float]
    params: dict[str, Array]
    objective_value: Array
    gradient_norm: Array
    converged: NDArray[np.bool_]
    delta: Array | None
    design: Design = field(repr=False, compare=False)
    theta: Array = field(repr=False, compare=False)

    def predict(self, columns: Mapping[str, ArrayLike]) -> Array:
        """Predicted target at points, (R, points)."""
        arrays = {name: np.atleast_1d(column_values(columns, name)) for name in self.law.columns}
        return np.exp(self.design.log_predict(self.theta, arrays))


# ---- one fit ----


def fit(
    law: Law,
    columns: Mapping[str, ArrayLike],
    loss: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    objective: str = "huber",
    delta: float | None = None,
    tau: float = 0.5,
    reference: Mapping[str, float] | None = None,
    n_starts: int = N_STARTS,
) -> FitResult:
    """Fit a law to losses.

    Args:
        law: the equation.
        columns: positive table columns, each (points,).
        loss: the target (nats for losses), positive and finite, (points,).
        weights: non-negative, (points,); a weight of 2 equals a repeated point.
        objective: "huber", "lad", "quantile" or "least_squares", all on log residuals.
        delta: Huber width in log loss; None takes 1.345 times the MAD scale of a LAD pilot.
        tau: the quantile (only for objective="quantile").
        reference: column values at which amplitudes are reported; None takes the weighted geometric mean of each column.
        n_starts: how many of the best grid nodes are carried to an optimum.

    Raises:
        ValueError: bad input, named.
        FitError: fewer distinct points than parameters.
    """
    modes.check_mode(objective, delta, tau)
    losses, share = _checked_losses(loss, weights)
    design, data = _prepare(law, columns, losses, share, reference, tau if objective == "quantile" else 0.5)
    starts = grid_starts(design, data, n_starts)[:, 0]
    found, width = _solve(data, starts, objective, delta, one_data_set=True)
    return _result(design, data, found, width, objective, columns, losses[0], share[0])


def _checked_losses(loss: ArrayLike, weights: ArrayLike | None) -> tuple[Array, Array]:
    """Losses and weights as (R or 1, n).

    Raises:
        ValueError: empty, not positive and finite, or shapes that do not match.
    """
    losses = np.atleast_2d(np.asarray(loss, dtype=float))
    bad = ~(np.isfinite(losses) & (losses > 0))
    if losses.shape[1] == 0:
        raise FitError("there are no points to fit; give at least as many distinct configurations as the law has parameters")
    if bad.any():
        raise ValueError(
            f"loss holds {losses[bad][0]} in {int(bad.sum())} of {losses.size} rows; remove rows without a positive finite loss"
        )
    share = np.ones((1, losses.shape[1])) if weights is None else np.atleast_2d(np.asarray(weights, dtype=float))
    if share.shape[1] != losses.shape[1] or not (np.isfinite(share).all() and (share >= 0).all() and (share.sum(axis=1) > 0).all()):
        raise ValueError(
            f"weights of shape {share.shape} for {losses.shape[1]} points; give one finite non-negative weight per point, not all zero"
        )
    return losses, share


def _prepare(
    law: Law, columns: Mapping[str, ArrayLike], losses: Array, weights: Array, reference: Mapping[str, float] | None, tau: float
) -> tuple[Design, Objective]:
    """The design and its objective (still without a width)."""
    design = build(law, columns, np.log(losses[0] if len(losses) == 1 else losses), weights.mean(axis=0), reference)
    _require_points(law, columns, weights)
    return design, objective_of(design, columns, losses, weights, tau)


def objective_of(design: Design, columns: Mapping[str, ArrayLike], losses: Array, weights: Array, tau: float = 0.5) -> Objective:
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
        tau=tau,
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


def _solve(data: Objective, theta: Array, objective: str, delta: float | Array | None, one_data_set: bool) -> tuple[Minimum, Array | None]:
    """Carry starts (P, R) to the optimum of a mode; the width is (R, 1), or (1, 1) where all starts see the same data."""
    rough, scale = modes.least_squares(data, theta, rough=objective != "least_squares")
    if objective == "least_squares":
        if one_data_set:
            scale = scale[[np.argmin(rough.value)]]
            rough = minimize(data.at(np.inf, scale), rough.theta)
        return _in_units(rough, scale), None
    if objective in ("lad", "quantile"):
        found = modes.least_absolute(data, rough.theta)
        return replace(found, value=_absolute(data, found.theta)), None
    width = np.atleast_2d(np.asarray(delta, dtype=float)) if delta is not None else None
    theta = rough.theta
    if width is None:
        pilot, width = modes.pilot_width(data, theta)
        theta = pilot.theta
        if one_data_set:
            width = width[[np.argmin(_absolute(data, theta))]]
    return _in_units(modes.huber(data, theta, width), width), width


def _in_units(found: Minimum, scale: Array) -> Minimum:
    """The objective as a mean over points in the units of `FitResult.objective_value`."""
    return replace(found, value=found.value * scale[:, 0])


def _absolute(data: Objective, theta: Array) -> Array:
    """Weighted mean of a(r) |r|, (R,)."""
    residual = modes.residuals(data, theta)
    tilt = np.where(residual > 0, 2 * data.tau, 2 * (1 - data.tau))
    return (data.weights * tilt * np.abs(residual)).sum(axis=1)


# ---- judging a fit ----


def _result(
    design: Design,
    data: Objective,
    found: Minimum,
    width: Array | None,
    objective: str,
    columns: Mapping[str, ArrayLike],
    loss: Array,
    weights: Array,
) -> FitResult:
    best = int(np.argmin(np.where(found.converged, found.value, np.inf))) if found.converged.any() else int(np.argmin(found.value))
    theta = found.theta[:, best]
    residual = modes.residuals(data, theta[:, None])[0]
    crease = 1.01 * modes.CREASE if objective in ("lad", "quantile") else 0.0
    scale = float(modes.mad_scale(residual[None], weights[None], crease)[0, 0])
    delta = None if width is None else float(width[0, 0])
    edge = delta if delta is not None else 3 * max(scale, modes.WIDTH_FLOOR)
    agreeing = found.value <= found.value[best] * (1 + AGREEMENT) + 1e-12 * modes.WIDTH_FLOOR
    condition = _condition(data, theta)
    distinct = _require_points(design.law, columns, weights[None])
    status, message = _judge(design, found, best, agreeing, condition, distinct)
    return FitResult(
        law=design.law,
        params={name: float(value[0]) for name, value in design.to_params(theta[:, None]).items()},
        reference=design.reference,
        objective=objective,
        delta=delta,
        tau=data.tau,
        objective_value=float(found.value[best] * weights.sum()),
        gradient_norm=float(found.gradient_norm[best]),
        n_points=int((weights > 0).sum()),
        n_starts=found.theta.shape[1],
        starts_agreeing=int(agreeing.sum()),
        inlier_fraction=float(weights[np.abs(residual) <= edge].sum() / weights.sum()),
        condition=condition,
        scale=scale,
        status=status,
        message=message,
        residuals=residual,
        columns={name: column_values(columns, name) for name in design.law.columns},
        loss=loss,
        weights=weights,
        design=design,
        theta=theta,
    )


def _condition(data: Objective, theta: Array) -> float:
    """Condition number of the weighted Jacobian with unit columns; infinite where a coordinate has no effect."""
    slope = modes.jacobian(data, theta) * np.sqrt(data.weights[0])[:, None]
    length = np.linalg.norm(slope, axis=0)
    return float(np.linalg.cond(slope / length)) if (length > 1e-12).all() else float("inf")


def _judge(
    design: Design, found: Minimum, best: int, agreeing: NDArray[np.bool_], condition: float, distinct: int
) -> tuple[FitStatus, str]:
    """The most serious doubt about a fit, and the sentence for it."""
    theta = found.theta[:, best]
    apart = float(np.ptp(found.theta[:, agreeing], axis=1).max())
    bounds = bounds_hit(design, theta)
    bowls = [f for t in design.law.terms for f in t.factors if isinstance(f, Bowl)]
    params = design.to_params(theta[:, None])
    if not found.converged[best]:
        status, detail = FitStatus.NOT_CONVERGED, f"scaled gradient {found.gradient_norm[best]:.1e} exceeds {TOLERANCE:.0e}"
    elif bounds:
        status, detail = FitStatus.BOUND_HIT, "; ".join(bounds)
    elif (agreeing.sum() < 2 and len(agreeing) > 1) or apart > 0.01:
        status, detail = FitStatus.STARTS_DISAGREE, f"{int(agreeing.sum())} of {len(agreeing)} starts reach the best objective"
    elif any(params[f.curvature][0] <= 0 for f in bowls):
        status, detail = FitStatus.NO_OPTIMUM, "the curvature in ln aspect is not positive"
    elif condition > ILL_CONDITIONED:
        status, detail = FitStatus.ILL_CONDITIONED, f"condition number {condition:.1e} of the scaled Jacobian"
    elif distinct == len(design.law.parameters):
        status, detail = FitStatus.SATURATED, f"{distinct} distinct points, {distinct} parameters"
    else:
        return FitStatus.CONVERGED, FitStatus.CONVERGED.value
    return status, f"{status.value} ({detail})"


def bounds_hit(design: Design, theta: Array) -> list[str]:
    """Sentences naming each coordinate that is at its bound."""
    low, high = design.bounds()
    names = coordinate_names(design.law)
    sentences = []
    for j in np.flatnonzero((theta <= low) | (theta >= high)):
        side = "lower" if theta[j] <= low[j] else "upper"
        vanished = low[j] == MIN_LOG_AMPLITUDE and high[j] == MAX_LOG_AMPLITUDE and side == "lower"
        sentences.append(f"the term of {names[j]} vanishes" if vanished else f"{names[j]} is at its {side} bound")
    return sentences


def coordinate_names(law: Law) -> list[str]:
    """The parameter that each coordinate belongs to, in coordinate order."""
    names = [law.floor] if law.floor else []
    for term in law.terms:
        names.append(term.amplitude)
        for factor in term.factors:
            if isinstance(factor, Bowl):
                names += [factor.optimum, factor.curvature]
            elif hasattr(factor, "exponent"):
                names.append(factor.exponent)
    return names


# ---- many fits ----


def fit_batch(
    law: Law,
    columns: Mapping[str, ArrayLike],
    loss: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    objective: str = "huber",
    delta: float | None = None,
    tau: float = 0.5,
    reference: Mapping[str, float] | None = None,
    start: FitResult | None = None,
) -> BatchResult:
    """Fit many replicates at once over the same columns.

    Args:
        loss: (points,), or (replicates, points).
        weights: None, (points,), or (replicates, points): bootstrap counts, for example.
        start: a fit of the same law to start from; its objective, width, tau and reference are then used (a frozen width is what a
            bootstrap needs). Without it every replicate starts from its own grid, and estimates its own width.

    Raises:
        ValueError, FitError: as `fit`.
    """
    losses, share = _checked_losses(loss, weights)
    if start is not None:
        objective, delta, tau, reference = start.objective, start.delta, start.tau, start.reference
    modes.check_mode(objective, delta, tau)
    if len(losses) != len(share) and 1 not in (len(losses), len(share)):
        raise ValueError(f"{len(losses)} replicates of losses but {len(share)} of weights; give as many, or one of either")
    design, data = _prepare(law, columns, losses, share, reference, tau if objective == "quantile" else 0.5)
    n_replicates = max(len(losses), len(share))
    if start is None:
        theta = grid_starts(design, data, 1)[:, :, 0]
        theta = np.broadcast_to(theta, (design.size, n_replicates))
        found, width = _solve(data, theta.copy(), objective, delta, one_data_set=False)
    else:
        if start.law != law:
            raise ValueError(f"start is a fit of law {start.law.name}, not of {law.name}; fit the same law first")
        theta = np.repeat(design.from_params({k: np.array([v]) for k, v in start.params.items()}), n_replicates, axis=1)
        found, width = _refit(data, theta, objective, delta)
    return BatchResult(
        law=law,
        reference=design.reference,
        params=design.to_params(found.theta),
        objective_value=found.value * np.broadcast_to(share.sum(axis=1), found.value.shape),
        gradient_norm=found.gradient_norm,
        converged=found.converged,
        delta=None if width is None else np.broadcast_to(width[:, 0], (n_replicates,)),
        design=design,
        theta=found.theta,
    )


def _refit(data: Objective, theta: Array, objective: str, delta: float | None) -> tuple[Minimum, Array | None]:
    """From coordinates that are already close: no least-squares stage, no pilot."""
    if objective == "huber" and delta is not None:
        width = np.array([[delta]])
        return _in_units(modes.huber(data, theta, width), width), width
    if objective == "least_squares":
        scale = np.array([[float(np.median(modes.spread(data, theta)))]])
        return _in_units(minimize(data.at(np.inf, scale), theta), scale), None
    found = modes.least_absolute(data, theta)
    return replace(found, value=_absolute(data, found.theta)), None
