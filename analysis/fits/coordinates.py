"""Fit coordinates: a law over given columns, written so that one batched Newton method serves every law.

Every law of `analysis.fits.laws` is `E + sum_k exp(X_k theta_k + offset_k)`: a floor plus exponentials of linear predictors. Coordinates
are
dimensionless: the loss is divided by its geometric mean, logs of columns are centered at the reference and divided by their spread. A fit
therefore does not depend on the units of N or of the loss, and one gradient tolerance means the same for every law.

Shapes: P coordinates, R replicates, n points. `theta` is (P, R).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.fits.laws import Bowl, Cross, Law, Power, Proportional, Term, column_values, factor_columns

Array = NDArray[np.float64]
MIN_LOG_AMPLITUDE, MAX_LOG_AMPLITUDE = -20.0, 8.0  # relative to the mean loss: below e^-20 a term has vanished
MAX_BOWL = 30.0


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

    def blocks(self, columns: Mapping[str, ArrayLike]) -> tuple[Block, ...]:
        """The law's terms (not its floor) at points."""
        found, start = [], int(self.law.has_floor)
        for term in self.law.terms:
            features, offset = self._term_features(term, columns)
            found.append(Block(features, offset, start, start + features.shape[1]))
            start += features.shape[1]
        return tuple(found)

    def _term_features(self, term: Term, columns: Mapping[str, ArrayLike]) -> tuple[Array, Array | None]:
        logs = {c: np.log(column_values(columns, c) / self.reference[c]) for f in term.factors for c in factor_columns(f)}
        parts = [np.ones_like(next(iter(logs.values())))]
        offset = None
        for factor in term.factors:
            if isinstance(factor, Cross):
                parts.append(-logs[factor.first] * logs[factor.second] / self._cross_spread(factor))
                continue
            scaled = logs[factor.column] / self.spread[factor.column]
            if isinstance(factor, Power):
                parts.append(factor.sign * scaled)
            elif isinstance(factor, Bowl):
                parts += [scaled, scaled**2]
            else:
                offset = logs[factor.column] if offset is None else offset + logs[factor.column]
        return np.stack(parts, axis=1), offset

    def _cross_spread(self, factor: Cross) -> float:
        return self.spread[factor.first] * self.spread[factor.second]

    def bounds(self) -> tuple[Array, Array]:
        """Lowest and highest coordinates, each (P,). The floor is at least 0; exponents are as their factors say."""
        low, high = ([0.0], [10.0]) if self.law.has_floor else ([], [])
        for term in self.law.terms:
            low.append(MIN_LOG_AMPLITUDE)
            high.append(MAX_LOG_AMPLITUDE)
            for factor in term.factors:
                if isinstance(factor, Power):
                    low.append(factor.low * self.spread[factor.column])
                    high.append(factor.high * self.spread[factor.column])
                elif isinstance(factor, Bowl | Cross):
                    low += [-MAX_BOWL] * (2 if isinstance(factor, Bowl) else 1)
                    high += [MAX_BOWL] * (2 if isinstance(factor, Bowl) else 1)
        return np.array(low), np.array(high)

    def to_params(self, theta: Array) -> dict[str, Array]:
        """Named parameters, each (R,), from coordinates (P, R)."""
        params: dict[str, Array] = {}
        position = 0
        if self.law.floor:
            params[self.law.floor] = theta[0] * self.loss_scale
            position = 1
        for term in self.law.terms:
            log_amplitude = theta[position]
            position += 1
            named: dict[str, Array] = {}
            for factor in term.factors:
                if isinstance(factor, Power):
                    named[factor.exponent] = theta[position] / self.spread[factor.column]
                    position += 1
                elif isinstance(factor, Cross):
                    named[factor.coefficient] = theta[position] / self._cross_spread(factor)
                    position += 1
                elif isinstance(factor, Bowl):
                    scale = self.spread[factor.column]
                    linear, curvature = theta[position] / scale, theta[position + 1] / scale**2
                    safe = np.where(np.abs(curvature) < 1e-12, np.copysign(1e-12, curvature), curvature)
                    named[factor.curvature] = curvature
                    named[factor.optimum] = self.reference[factor.column] * np.exp(np.clip(-linear / (2 * safe), -500, 500))
                    log_amplitude = log_amplitude - np.clip(linear**2 / (4 * safe), -500, 500)
                    position += 2
            params[term.amplitude] = np.exp(log_amplitude) * self.loss_scale
            params.update(named)
        return {name: params[name] for name in self.law.parameters}

    def from_params(self, params: Mapping[str, ArrayLike]) -> Array:
        """Coordinates (P, R) from named parameters, each a number or (R,); amplitudes are at this design's reference."""
        rows: list[Array] = [np.atleast_1d(params[self.law.floor]) / self.loss_scale] if self.law.floor else []
        for term in self.law.terms:
            log_amplitude = np.log(np.maximum(np.atleast_1d(params[term.amplitude]) / self.loss_scale, 1e-300))
            named: list[Array] = []
            for factor in term.factors:
                if isinstance(factor, Power):
                    named.append(np.atleast_1d(params[factor.exponent]) * self.spread[factor.column])
                elif isinstance(factor, Cross):
                    named.append(np.atleast_1d(params[factor.coefficient]) * self._cross_spread(factor))
                elif isinstance(factor, Bowl):
                    scale, curvature = self.spread[factor.column], np.atleast_1d(params[factor.curvature])
                    center = np.log(np.atleast_1d(params[factor.optimum]) / self.reference[factor.column])
                    log_amplitude = log_amplitude + curvature * center**2
                    named += [-2 * curvature * center * scale, curvature * scale**2]
            rows += [log_amplitude, *named]
        return np.stack(np.broadcast_arrays(*rows)).astype(float)

    def log_predict(self, theta: Array, columns: Mapping[str, ArrayLike]) -> Array:
        """Log of the predicted loss, (R, points); stays finite where named parameters would not (a flat aspect bowl)."""
        return np.log(total(self.law.has_floor, theta, self.blocks(columns))) + np.log(self.loss_scale)


def total(has_floor: bool, theta: Array, blocks: tuple[Block, ...]) -> Array:
    """Predicted loss in units of the loss scale, (R, n)."""
    parts = [np.exp(theta[b.start : b.stop].T @ b.features.T + (0.0 if b.offset is None else b.offset)) for b in blocks]
    return sum(parts, start=theta[0][:, None] if has_floor else np.zeros((theta.shape[1], 1)))


def build(
    law: Law, columns: Mapping[str, ArrayLike], log_loss: Array, weights: Array, reference: Mapping[str, float] | None = None
) -> Design:
    """Choose reference and scales from the data: weighted geometric means, and the spread of each log column.

    Raises:
        ValueError: a column is missing or not positive.
        FitError: a column is constant.
    """
    share = weights / weights.sum()
    found: dict[str, float] = {}
    spread: dict[str, float] = {}
    exempt = {f.column for t in law.terms for f in t.factors if isinstance(f, Proportional)}
    for name in law.columns:
        values = column_values(columns, name)
        logs = np.log(values)
        given = (reference or {}).get(name)
        found[name] = float(np.exp(share @ logs)) if given is None else float(given)
        used = logs[share > 0]
        spread[name] = float(np.sqrt(share @ (logs - share @ logs) ** 2)) or 1.0
        if np.ptp(used) < 1e-9 and name not in exempt:
            raise FitError(
                f"column {name!r} is {values[0]:g} in every row, so law {law.name} cannot tell its effect; vary it or drop its term"
            )
    scale = float(np.exp(share @ log_loss)) if log_loss.ndim == 1 else float(np.exp(np.mean(log_loss)))
    return Design(law, found, spread, scale)
