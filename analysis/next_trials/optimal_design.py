"""Optimal design: how much one more trial is expected to shrink the interval of a quantity, and which trials shrink it most for their cost.

A quantity q of a fitted law has an interval of half-width t(df) * sqrt(c' M^-1 c), with c the gradient of q, M = sum_i w_i f_i f_i' the
Fisher information of the law linearized at its estimate, f_i = d ln L / d theta at configuration i, and w_i = 1 / (tau^2 + s^2 / m_i) the
precision of its mean over m_i seeds (tau^2: the configuration's own lack of fit; s^2: noise between seeds; as in
`analysis.fits.profile_likelihood`).
A trial adds a seed to a mean or a row to M. Choosing it by the gain in c' M^-1 c is local c-optimality (Elfving 1952; Pukelsheim 1993,
chapter 2; Atkinson, Donev and Tobias 2007, chapters 10 and 17); several trials are chosen one after the other, each given those before.

    chosen = choose(CurveAim(rows, direction, *scatter(fitted, rows)), seeds, hours, n=5)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.findings.size_law import Fitted
from analysis.table.configurations import t_quantile

SMALLEST_GAIN = 1e-4
"""Relative shrinkage of an interval below which a trial is not suggested."""

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class CurveAim:
    """A function of a fitted curve.

    Args:
        rows: d ln L / d theta at each point, (points, parameters); rows of points outside the fit are not a number.
        direction: gradient of the quantity, (parameters,).
        lack_of_fit, seed_variance: tau^2 and s^2 in squared log loss.
    """

    rows: Floats
    direction: Floats
    lack_of_fit: float
    seed_variance: float

    def half_width(self, seeds: Counts) -> float:
        """t(df) sqrt(c' M^-1 c) on the points that have a trial."""
        used = (seeds > 0) & np.isfinite(self.rows).all(axis=1)
        df = int(used.sum()) - len(self.direction)
        if df < 1:
            return math.inf
        weight = 1 / (self.lack_of_fit + self.seed_variance / seeds[used])
        information = (self.rows[used] * weight[:, None]).T @ self.rows[used]
        values, vectors = np.linalg.eigh(information)
        share = (vectors.T @ self.direction) ** 2
        known = values > 1e-13 * values.max()
        if (share[~known] > 1e-12 * share.sum()).any():
            return math.inf
        return t_quantile(df) * math.sqrt(float(np.sum(share[known] / values[known])))


@dataclass(frozen=True)
class ContrastAim:
    """Difference of two configuration means in nats, by the noise between seeds (`Noise.standard_error`).

    Args:
        ends: the two points.
        sd, df: of that noise, as measured with `before` trials at each point.
    """

    ends: tuple[int, int]
    sd: float
    df: int
    before: Counts

    def half_width(self, seeds: Counts) -> float:
        """t(df) sd sqrt(1/m1 + 1/m2); a further seed of a configuration adds a degree of freedom."""
        if not all(seeds[i] > 0 for i in self.ends):
            return math.inf
        more = int(np.sum(np.maximum(seeds - 1, 0) - np.maximum(self.before - 1, 0)))
        return t_quantile(self.df + more) * self.sd * math.sqrt(sum(1 / seeds[i] for i in self.ends))


Aim = CurveAim | ContrastAim
"""A quantity whose interval is to shrink: its half-width with so many trials at each point, infinite where these do not determine it."""


@dataclass(frozen=True)
class Ranked:
    """A candidate with what it is expected to bring, given the trials chosen before it."""

    point: int
    gain: float
    """share by which the interval shrinks"""
    hours: float

    @property
    def rate(self) -> float:
        """Gain per device-hour."""
        return self.gain / self.hours


# ---- choosing ----


def rank(aim: Aim, seeds: Counts, hours: Sequence[float] | Floats) -> list[Ranked]:
    """Every point with one more trial, best gain per device-hour first; those without gain, or that cannot be trained, are left out."""
    now = aim.half_width(seeds)
    found = []
    for i, cost in enumerate(hours):
        more = seeds.copy()
        more[i] += 1
        then = aim.half_width(more)
        gain = (1.0 if math.isfinite(then) else 0.0) if math.isinf(now) else 1 - then / now
        if gain > SMALLEST_GAIN and math.isfinite(cost):
            found.append(Ranked(i, gain, cost))
    return sorted(found, key=lambda r: (-r.rate, r.point))


def choose(aim: Aim, seeds: Counts, hours: Sequence[float] | Floats, n: int) -> list[Ranked]:
    """Up to n trials, one after the other, each the best given those before it."""
    chosen: list[Ranked] = []
    have = seeds.copy()
    while len(chosen) < n and (ranked := rank(aim, have, hours)):
        chosen.append(ranked[0])
        have[ranked[0].point] += 1
    return chosen


# ---- noise ----


def scatter(fitted: Fitted, rows: Floats) -> tuple[float, float]:
    """tau^2 and s^2 (squared log loss) by the method of moments on the residuals of configuration means.

    Where the scatter is less than the seeds' noise, or that noise is not measured, all of it is taken as noise between seeds: intervals
    rest on the scatter.
    """
    cells = fitted.cells
    left, values, _ = np.linalg.svd(rows, full_matrices=False)
    spared = 1 - (left[:, values > 1e-9 * values.max()] ** 2).sum(axis=1)
    rss = float(np.sum(fitted.result.residuals**2))
    per_mean = float(np.sum(spared / cells.n_seeds))
    logs = np.log(cells.cell_loss)
    within = logs - (np.bincount(cells.cell_config, weights=logs) / cells.n_seeds)[cells.cell_config]
    df = len(logs) - len(cells)
    seeds = float(within @ within) / df if df > 0 else math.inf
    if fitted.df < 1 or seeds * per_mean >= rss:
        return 0.0, max(rss / max(per_mean, 1e-300), 1e-300)
    return (rss - seeds * per_mean) / fitted.df, seeds
