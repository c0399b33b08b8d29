"""What an interval can be asked for: a parameter, a predicted loss, a local slope, a difference of two predictions.

Each quantity, bound to a design by `read`, gives value, gradient and exact Hessian in a working scale (logs of positive quantities) for any
number of replicates, and maps the working value to the reported one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from analysis.estimate import SIZE
from analysis.fits.coordinates import Array, Basis, Design
from analysis.fits.laws import column_values
from analysis.fits.objective import reduce_points

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
Derivatives = tuple[Array, Array, Array]


@dataclass(frozen=True)
class Reading:
    """A quantity bound to a design.

    Args:
        evaluate: from theta (P, R) the working value (R,), its gradient (P, R) and Hessian (P, P, R).
        report: reported values from working values; increasing.
        lowest: least reported value that the quantity can take.
    """

    evaluate: Callable[[Array], Derivatives]
    report: Callable[[Array], Array]
    lowest: float = -np.inf


def read(quantity: Quantity, design: Design) -> Reading:
    """Bind a quantity to a design.

    Raises:
        ValueError: the law has no such parameter, or a column is missing.
    """
    if isinstance(quantity, Parameter):
        return _read_parameter(quantity.name, design)
    if isinstance(quantity, Sum):
        weights = np.zeros(design.size)
        for name, weight in quantity.weights.items():
            if name not in design.law.powers:
                raise ValueError(f"{name!r} is not an exponent of law {design.law.name}; a sum takes exponents only")
            weights[design.law.parameters.index(name)] += weight * (1 / design.units[name])
        return Reading(partial(_linear, weights), _unchanged)
    if isinstance(quantity, Loss):
        logs = partial(_logs, _basis(design, [quantity.at]), np.ones(1), np.log(design.loss_scale))
        return Reading(logs, np.exp, lowest=0.0)
    if isinstance(quantity, Gain):
        difference = partial(_values, _basis(design, [quantity.other, quantity.at]), np.array([1.0, -1.0]))
        return Reading(difference, lambda value: design.loss_scale * value)
    center = float(column_values(quantity.at, quantity.column))
    steps = np.array([-2, -1, 1, 2]) * SLOPE_STEP
    places = [{**quantity.at, quantity.column: center * np.exp(step)} for step in steps]
    return Reading(partial(_logs, _basis(design, places), np.array([1, -8, 8, -1]) / (12 * SLOPE_STEP), 0.0), _unchanged)


def _basis(design: Design, places: Sequence[Mapping[str, float]]) -> Basis:
    return design.basis({name: np.array([float(column_values(place, name)) for place in places]) for name in design.law.columns})


def _read_parameter(name: str, design: Design) -> Reading:
    law = design.law
    if name not in law.parameters or any(name == term.amplitude and term.bowl for term in law.terms):
        raise ValueError(f"law {law.name} has no parameter {name!r}; it has {', '.join(law.parameters)}")
    position = law.parameters.index(name)
    if bowl := next((term.bowl for term in law.terms if term.bowl and term.bowl.optimum == name), None):
        reference, spread = design.reference[bowl.column], design.spread[bowl.column]
        return Reading(partial(_optimum, position), lambda value: reference * np.exp(value * spread))
    coordinate = partial(_linear, np.eye(design.size)[position])
    if name in law.amplitudes:
        return Reading(coordinate, lambda value: design.loss_scale * np.exp(value), lowest=0.0)
    scale, lowest = (design.loss_scale, 0.0) if name == law.floor else (1 / design.units[name], law.powers[name].low)
    return Reading(coordinate, lambda value: scale * value, lowest)


def _unchanged(value: Array) -> Array:
    return value


# ---- working values with their derivatives ----


def _linear(weights: Array, theta: Array) -> Derivatives:
    """A weighted sum of coordinates."""
    return weights @ theta, np.repeat(weights[:, None], theta.shape[1], axis=1), np.zeros((len(theta), *theta.shape))


def _optimum(i: int, theta: Array) -> Derivatives:
    """ln(optimum / reference) = -h1 / (2 h2) of a bowl, h1 and h2 being coordinates i and i + 1."""
    h1, h2 = theta[i], theta[i + 1]
    gradient = np.zeros_like(theta)
    hessian = np.zeros((len(theta), *theta.shape))
    gradient[i], gradient[i + 1] = -0.5 / h2, 0.5 * h1 / h2**2
    hessian[i, i + 1] = hessian[i + 1, i] = 0.5 / h2**2
    hessian[i + 1, i + 1] = -h1 / h2**3
    return -0.5 * h1 / h2, gradient, hessian


def _logs(basis: Basis, coefficients: Array, constant: float, theta: Array) -> Derivatives:
    """sum_j coefficient_j ln f(x_j) + constant."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        value, shares = basis.parts(theta)
        logs = np.log(value)
    force = np.broadcast_to(-coefficients, value.shape)
    return logs @ coefficients + constant, *reduce_points(basis, theta.shape, shares, force, force)


def _values(basis: Basis, coefficients: Array, theta: Array) -> Derivatives:
    """sum_j coefficient_j f(x_j), over the loss scale."""
    with np.errstate(over="ignore", invalid="ignore"):
        value, shares = basis.parts(theta)
    force = -coefficients * value  # of rho(r) = exp(-r) at log loss 0: psi = -f, psi' = f, so psi' + psi = 0
    return value @ coefficients, *reduce_points(basis, theta.shape, shares, force, np.zeros_like(force))
