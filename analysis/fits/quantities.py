"""What an interval can be asked for: a parameter, a predicted loss, a local slope, a difference of two predictions.

Each quantity, bound to a design by `read`, gives value, gradient and exact Hessian in a working scale (logs of positive quantities) for any
number of replicates, and maps the working value to the reported one. Losses and slopes are linear combinations of log predictions at a few
points, so that one formula serves both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from analysis.estimate import SIZE
from analysis.fits.coordinates import Array, Design
from analysis.fits.laws import Bowl, Cross, Power, column_values
from analysis.fits.objective import Basis, parts, reduce_points

SLOPE_STEP = 0.01  # of ln x; the five-point formula then errs by about 1e-9 of the slope and rounding by 1e-14


@dataclass(frozen=True)
class Parameter:
    """A named parameter of the law (amplitudes at the reference, and none of a term with an optimum)."""

    name: str


@dataclass(frozen=True)
class Loss:
    """The law's value, in nats, at the given columns."""

    at: Mapping[str, float]


@dataclass(frozen=True)
class Slope:
    """d ln(loss) / d ln(column) at the given columns: by how many percent loss changes for one percent more of the column."""

    at: Mapping[str, float]
    column: str = SIZE


@dataclass(frozen=True)
class Gain:
    """loss at `other` - loss at `at`, in nats: what going from `other` to `at` buys."""

    at: Mapping[str, float]
    other: Mapping[str, float]


@dataclass(frozen=True)
class Sum:
    """A weighted sum of exponents, for example b - 2 a."""

    weights: Mapping[str, float]


Quantity = Parameter | Loss | Slope | Gain | Sum


class Reading(Protocol):
    """A quantity bound to a design."""

    def evaluate(self, theta: Array) -> tuple[Array, Array, Array]:
        """Working value (R,), gradient (P, R), Hessian (P, P, R)."""

    def report(self, value: ArrayLike) -> Array:
        """Reported values from working values; increasing."""


@dataclass(frozen=True)
class _Coordinate:
    """A single coordinate, times a scale, or exp of it."""

    position: int
    scale: float
    exponential: bool

    def evaluate(self, theta: Array) -> tuple[Array, Array, Array]:
        gradient = np.zeros_like(theta)
        gradient[self.position] = 1.0
        return theta[self.position].copy(), gradient, np.zeros((len(theta), *theta.shape))

    def report(self, value: ArrayLike) -> Array:
        working = np.asarray(value, dtype=float)
        return self.scale * (np.exp(working) if self.exponential else working)


@dataclass(frozen=True)
class _BowlOptimum:
    """ln(optimum / reference) = -h1 / (2 h2), the coordinates being h1 and h2 of scaled logs."""

    position: int
    spread: float
    reference: float

    def evaluate(self, theta: Array) -> tuple[Array, Array, Array]:
        h1, h2 = theta[self.position], theta[self.position + 1]
        gradient = np.zeros_like(theta)
        hessian = np.zeros((len(theta), *theta.shape))
        i, j = self.position, self.position + 1
        gradient[i], gradient[j] = -0.5 / h2, 0.5 * h1 / h2**2
        hessian[i, j] = hessian[j, i] = 0.5 / h2**2
        hessian[j, j] = -h1 / h2**3
        return -0.5 * h1 / h2, gradient, hessian

    def report(self, value: ArrayLike) -> Array:
        return self.reference * np.exp(np.asarray(value, dtype=float) * self.spread)


@dataclass(frozen=True)
class _Combination:
    """sum_j coefficient_j ln f(x_j) + constant; reported as it is, or its exp."""

    basis: Basis
    coefficients: Array
    constant: float
    exponential: bool

    def evaluate(self, theta: Array) -> tuple[Array, Array, Array]:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            value, shares = parts(self.basis, theta)
            logs = np.log(value)
        force = np.broadcast_to(-self.coefficients, value.shape)
        gradient, hessian = reduce_points(self.basis, theta.shape, shares, force, force)
        return logs @ self.coefficients + self.constant, gradient, hessian

    def report(self, value: ArrayLike) -> Array:
        working = np.asarray(value, dtype=float)
        return np.exp(working) if self.exponential else working


@dataclass(frozen=True)
class _Difference:
    """sum_j coefficient_j f(x_j), in nats."""

    basis: Basis
    coefficients: Array
    scale: float

    def evaluate(self, theta: Array) -> tuple[Array, Array, Array]:
        with np.errstate(over="ignore", invalid="ignore"):
            value, shares = parts(self.basis, theta)
        force = -self.coefficients * value  # of rho(r) = exp(-r) at log loss 0: psi = -f, psi' = f, so psi' + psi = 0
        gradient, hessian = reduce_points(self.basis, theta.shape, shares, force, np.zeros_like(force))
        return value @ self.coefficients, gradient, hessian

    def report(self, value: ArrayLike) -> Array:
        return self.scale * np.asarray(value, dtype=float)


@dataclass(frozen=True)
class _Sum:
    """A weighted sum of coordinates."""

    weights: Array

    def evaluate(self, theta: Array) -> tuple[Array, Array, Array]:
        return self.weights @ theta, np.repeat(self.weights[:, None], theta.shape[1], axis=1), np.zeros((len(theta), *theta.shape))

    def report(self, value: ArrayLike) -> Array:
        return np.asarray(value, dtype=float)


def read(quantity: Quantity, design: Design) -> Reading:
    """Bind a quantity to a design.

    Raises:
        ValueError: the law has no such parameter, or a column is missing.
    """
    if isinstance(quantity, Parameter):
        return _read_parameter(quantity.name, design)
    if isinstance(quantity, Loss):
        return _combine(design, [quantity.at], [1.0], np.log(design.loss_scale), exponential=True)
    if isinstance(quantity, Sum):
        weights = np.zeros(design.size)
        for name, weight in quantity.weights.items():
            own = _read_parameter(name, design)
            if not isinstance(own, _Coordinate) or own.exponential:
                raise ValueError(f"{name!r} is not an exponent of law {design.law.name}; a sum takes exponents only")
            weights[own.position] += weight * own.scale
        return _Sum(weights)
    if isinstance(quantity, Gain):
        both = _combine(design, [quantity.other, quantity.at], [1.0, -1.0], 0.0, exponential=False)
        return _Difference(both.basis, both.coefficients, design.loss_scale)
    center = float(column_values(quantity.at, quantity.column))
    steps = np.array([-2, -1, 1, 2]) * SLOPE_STEP
    places = [{**quantity.at, quantity.column: center * np.exp(step)} for step in steps]
    return _combine(design, places, np.array([1, -8, 8, -1]) / (12 * SLOPE_STEP), 0.0, exponential=False)


def _combine(
    design: Design, places: Sequence[Mapping[str, float]], coefficients: ArrayLike, constant: float, exponential: bool
) -> _Combination:
    columns = {name: np.array([float(column_values(place, name)) for place in places]) for name in design.law.columns}
    return _Combination(Basis(design.blocks(columns), design.law.has_floor), np.asarray(coefficients, dtype=float), constant, exponential)


def _read_parameter(name: str, design: Design) -> Reading:
    law, position = design.law, int(design.law.has_floor)
    if name == law.floor:
        return _Coordinate(0, design.loss_scale, exponential=False)
    for term in law.terms:
        amplitude, position = position, position + 1
        for factor in term.factors:
            if isinstance(factor, Power):
                if factor.exponent == name:
                    return _Coordinate(position, 1 / design.spread[factor.column], exponential=False)
                position += 1
            elif isinstance(factor, Cross):
                if factor.coefficient == name:
                    return _Coordinate(position, 1 / (design.spread[factor.first] * design.spread[factor.second]), exponential=False)
                position += 1
            elif isinstance(factor, Bowl):
                if factor.curvature == name:
                    return _Coordinate(position + 1, design.spread[factor.column] ** -2, exponential=False)
                if factor.optimum == name:
                    return _BowlOptimum(position, design.spread[factor.column], design.reference[factor.column])
                position += 2
        if term.amplitude == name and not any(isinstance(factor, Bowl) for factor in term.factors):
            return _Coordinate(amplitude, design.loss_scale, exponential=True)
    raise ValueError(f"law {law.name} has no parameter {name!r}; it has {', '.join(law.parameters)}")
