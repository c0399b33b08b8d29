"""What a fit hands back: numbers that judge it, a status, predictions and a JSON-ready card.

Made by `analysis.fits.fit`; import these names from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.fits.coordinates import Array, Design
from analysis.fits.laws import Law, column_values


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
    (least squares). `gradient_norm` is scaled (`analysis.fits.newton`). `scale` is the MAD standard deviation of the
    residuals.
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

    @property
    def objective(self) -> str:
        """The estimator: "huber" or "least_squares"."""
        return "least_squares" if self.delta is None else "huber"

    def predict(self, columns: Mapping[str, ArrayLike]) -> Array:
        """Predicted target at points, (points,)."""
        arrays = {name: np.atleast_1d(column_values(columns, name)) for name in self.law.columns}
        return np.exp(self.design.log_predict(self.theta[:, None], arrays)[0])

    @property
    def fitted(self) -> Array:
        """Predicted target at the data, (points,)."""
        return self.loss * np.exp(-self.residuals)

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
    delta: float | None
    design: Design = field(repr=False, compare=False)
    theta: Array = field(repr=False, compare=False)

    def predict(self, columns: Mapping[str, ArrayLike]) -> Array:
        """Predicted target at points, (R, points)."""
        arrays = {name: np.atleast_1d(column_values(columns, name)) for name in self.law.columns}
        return np.exp(self.design.log_predict(self.theta, arrays))
