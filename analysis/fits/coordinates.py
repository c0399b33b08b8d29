"""Fit coordinates: a law over given columns, written so that one batched Newton method serves every law.

Every law of `analysis.fits.laws` is `E + sum_k exp(X_k theta_k + offset_k)`: a floor plus exponentials of linear predictors. Coordinates
are dimensionless: the loss is divided by its geometric mean, logs of columns are centered at the reference and divided by their spread.
A fit therefore does not depend on the units of N or of the loss, and one gradient tolerance means the same for every law.

Shapes: P coordinates, in the order of the law's parameters, R replicates, n points. `theta` is (P, R).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.fits.laws import Law, Term, column_values

Array = NDArray[np.float64]
MIN_LOG_AMPLITUDE, MAX_LOG_AMPLITUDE = -20.0, 8.0  # relative to the mean loss: below e^-20 a term has vanished
MAX_FLOOR = 10.0  # relative to the mean loss
MAX_BOWL = 30.0  # of a coefficient that its factor leaves free


class FitError(ValueError):
    """No usable estimate: the data do not reach what the law needs."""


@dataclass(frozen=True)
class Block:
    """One additive part of a law at given points: features (n, q), offset (n,), and its slice of theta."""

    features: Array
    offset: Array | None
    start: int
    stop: int


@dataclass(frozen=True)
class Basis:
    """The features of a law at its points, and their products, which every Hessian needs; the floor's block, of ones, is the first."""

    blocks: tuple[Block, ...]
    has_floor: bool

    @cached_property
    def products(self) -> dict[tuple[int, int], Array]:
        """For blocks i <= j: the outer products of their features, (n, q_i q_j)."""
        features = [block.features for block in self.blocks]
        return {
            (i, j): (features[i][:, :, None] * features[j][:, None, :]).reshape(len(features[i]), -1)
            for i in range(len(features))
            for j in range(i, len(features))
        }

    @cached_property
    def terms(self) -> tuple[Block, ...]:
        """The blocks without that of the floor."""
        return self.blocks[int(self.has_floor) :]

    def parts(self, theta: Array) -> tuple[Array, list[Array]]:
        """Law value f (R, n) and the shares [1/f, t_1/f, ...] (the first only with a floor), each (R, n)."""
        terms = []
        for block in self.terms:
            predictor = theta[block.start : block.stop].T @ block.features.T
            if block.offset is not None:
                predictor += block.offset
            terms.append(np.exp(predictor, out=predictor))
        value = terms[0] + theta[0][:, None] if self.has_floor else terms[0].copy()
        for term in terms[1:]:
            value += term
        inverse = 1.0 / value
        for term in terms:
            term *= inverse
        return value, [inverse, *terms] if self.has_floor else terms


@dataclass(frozen=True)
class Design:
    """A law, its reference and its scales; translates between named parameters and coordinates."""

    law: Law
    reference: dict[str, float]
    spread: dict[str, float]
    loss_scale: float

    @property
    def size(self) -> int:
        """Number of coordinates P."""
        return len(self.law.parameters)

    @cached_property
    def units(self) -> dict[str, float]:
        """What a coordinate is divided by to give its parameter: of an exponent the spread of its logs, of floor and amplitudes 1."""
        spreads = {name: math.prod(self.spread[c] for c in power.columns) for name, power in self.law.powers.items()}
        return {name: spreads.get(name, 1.0) for name in self.law.parameters}

    def basis(self, columns: Mapping[str, ArrayLike]) -> Basis:
        """The law at points."""
        blocks: list[Block] = []
        for term in self.law.terms:
            features, offset = self._term_features(term, columns)
            if self.law.has_floor and not blocks:
                blocks.append(Block(np.ones((len(features), 1)), None, 0, 1))
            start = blocks[-1].stop if blocks else 0
            blocks.append(Block(features, offset, start, start + features.shape[1]))
        return Basis(tuple(blocks), self.law.has_floor)

    def _term_features(self, term: Term, columns: Mapping[str, ArrayLike]) -> tuple[Array, Array | None]:
        logs = {name: np.log(np.atleast_1d(column_values(columns, name)) / self.reference[name]) for name in term.columns}
        parts = [np.ones_like(logs[term.columns[0]])]
        for power in term.factors:
            parts.append(np.asarray(power.sign * math.prod(logs[name] for name in power.columns) / self.units[power.exponent]))
        if term.bowl:
            scaled = logs[term.bowl.column] / self.spread[term.bowl.column]
            parts += [scaled, scaled**2]
        offset = sum((logs[name] for name in term.proportional), start=np.zeros(1)) if term.proportional else None
        return np.stack(parts, axis=1), offset

    def bounds(self) -> tuple[Array, Array]:
        """Lowest and highest coordinates, each (P,). The floor is at least 0; exponents are as their factors say."""
        limits = {self.law.floor: (0.0, MAX_FLOOR)} | dict.fromkeys(self.law.amplitudes, (MIN_LOG_AMPLITUDE, MAX_LOG_AMPLITUDE))
        limits |= {name: (power.low * self.units[name], power.high * self.units[name]) for name, power in self.law.powers.items()}
        low, high = np.nan_to_num([limits[name] for name in self.law.parameters], neginf=-MAX_BOWL, posinf=MAX_BOWL).T
        return low, high

    def to_params(self, theta: Array) -> dict[str, Array]:
        """Named parameters, each (R,), from coordinates (P, R)."""
        params = {name: row / unit for (name, unit), row in zip(self.units.items(), theta, strict=True)}
        for term in self.law.terms:
            log_amplitude = params[term.amplitude]
            if bowl := term.bowl:
                linear, curvature = params[bowl.optimum], params[bowl.curvature]
                safe = np.where(np.abs(curvature) < 1e-12, np.copysign(1e-12, curvature), curvature)
                params[bowl.optimum] = self.reference[bowl.column] * np.exp(np.clip(-linear / (2 * safe), -500, 500))
                log_amplitude = log_amplitude - np.clip(linear**2 / (4 * safe), -500, 500)
            params[term.amplitude] = np.exp(log_amplitude) * self.loss_scale
        return params | ({self.law.floor: params[self.law.floor] * self.loss_scale} if self.law.floor else {})

    def from_params(self, params: Mapping[str, float]) -> Array:
        """Coordinates (P, 1) from named parameters; amplitudes are at this design's reference."""
        theta = {name: params[name] * unit for name, unit in self.units.items()}
        for term in self.law.terms:
            theta[term.amplitude] = np.log(max(params[term.amplitude] / self.loss_scale, 1e-300))
            if bowl := term.bowl:
                center = np.log(params[bowl.optimum] / self.reference[bowl.column])
                theta[bowl.optimum] = -2 * params[bowl.curvature] * center * self.spread[bowl.column]
                theta[term.amplitude] += params[bowl.curvature] * center**2
        if self.law.floor:
            theta[self.law.floor] = params[self.law.floor] / self.loss_scale
        return np.array(list(theta.values()))[:, None]

    def log_predict(self, theta: Array, columns: Mapping[str, ArrayLike]) -> Array:
        """Log of the predicted loss, (R, points); stays finite where named parameters would not (a flat aspect bowl)."""
        return np.log(self.basis(columns).parts(theta)[0]) + np.log(self.loss_scale)


def build(
    law: Law, columns: Mapping[str, ArrayLike], log_loss: Array, weights: Array, reference: Mapping[str, float] | None = None
) -> Design:
    """Choose reference and scales from the data: weighted geometric means, and the spread of each log column.

    Args:
        log_loss: (n,), or (R, n) of several studies.
        weights: (n,).

    Raises:
        ValueError: a column is missing or not positive.
        FitError: a column is constant.
    """
    share = weights / weights.sum()
    found: dict[str, float] = {}
    spread: dict[str, float] = {}
    exempt = {name for term in law.terms for name in term.proportional}
    for name in law.columns:
        values = column_values(columns, name)
        logs = np.log(values)
        found[name] = float(reference[name] if reference else np.exp(share @ logs))
        spread[name] = float(np.sqrt(share @ (logs - share @ logs) ** 2)) or 1.0
        if np.ptp(logs[share > 0]) < 1e-9 and name not in exempt:
            raise FitError(
                f"column {name!r} is {values[0]:g} in every row, so law {law.name} cannot tell its effect; vary it or drop its term"
            )
    scale = float(np.exp(share @ log_loss)) if log_loss.ndim == 1 else float(np.exp(np.mean(log_loss)))
    return Design(law, found, spread, scale)
