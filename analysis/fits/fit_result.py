"""What a fit hands back: its parameters, predictions, and a status, which is the most serious doubt about it.

Made by `analysis.fits.fit`; import these names from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.fits.coordinates import MAX_LOG_AMPLITUDE, MIN_LOG_AMPLITUDE, Array, Design
from analysis.fits.laws import Bowl, Cross, Law, column_values
from analysis.fits.newton import TOLERANCE, Minimum
from analysis.fits.objective import Objective, jacobian

ILL_CONDITIONED = 1e6  # of the scaled Jacobian: noise of 1e-4 then moves parameters by more than their size


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
    points: r^2/2 inside delta and delta (|r| - delta/2) outside (Huber, as Hoffmann et al. 2022); r^2/2 everywhere where delta is None
    (least squares). `gradient_norm` is scaled (`analysis.fits.newton`).
    """

    law: Law
    params: dict[str, float]
    reference: dict[str, float]
    delta: float | None
    objective_value: float
    gradient_norm: float
    n_points: int
    n_starts: int
    starts_agreeing: int
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


@dataclass(frozen=True)
class BatchResult:
    """Many fits of one law at one reference; every array has one entry per replicate, (R,); `theta` is (P, R)."""

    params: dict[str, Array]
    objective_value: Array
    converged: NDArray[np.bool_]
    design: Design = field(repr=False, compare=False)
    theta: Array = field(repr=False, compare=False)

    def predict(self, columns: Mapping[str, ArrayLike]) -> Array:
        """Predicted target at points, (R, points)."""
        arrays = {name: np.atleast_1d(column_values(columns, name)) for name in self.design.law.columns}
        return np.exp(self.design.log_predict(self.theta, arrays))


# ---- judging ----


def condition_number(data: Objective, theta: Array) -> float:
    """Condition number of the weighted Jacobian with unit columns; infinite where a coordinate has no effect."""
    slope = jacobian(data, theta) * np.sqrt(data.weights[0])[:, None]
    length = np.linalg.norm(slope, axis=0)
    return float(np.linalg.cond(slope / length)) if (length > 1e-12).all() else float("inf")


def judge(design: Design, found: Minimum, best: int, agreeing: NDArray[np.bool_], condition: float, distinct: int) -> tuple[FitStatus, str]:
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
            elif isinstance(factor, Cross):
                names.append(factor.coefficient)
            elif hasattr(factor, "exponent"):
                names.append(factor.exponent)
    return names
