"""Least squares on configuration means, for one study or many over the same configurations: what profiles start from.

A mean of m seeds scatters around the curve with variance tau^2 + s^2 / m: the configuration's own lack of fit, and seed noise. With equal
numbers of seeds all means weigh the same. With unequal numbers (large models often get fewer seeds) equal weights would treat a single
seed at the largest size as if it were as exact as the mean of five; simulated coverage then drops to 90 %. So tau^2 is estimated from
an unweighted fit by the method of moments (DerSimonian and Laird 1986), and the means are weighted by 1 / (tau^2 + s^2 / m).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.fits import estimators as modes
from analysis.fits.coordinates import Array, Design, FitError, build
from analysis.fits.fit import objective_of
from analysis.fits.grid_starts import grid_starts
from analysis.fits.laws import Law, column_values
from analysis.fits.newton import SQUARES_TOLERANCE, Objective

PROFILE_STARTS = 8


@dataclass(frozen=True)
class SeedNoise:
    """Seeds of each configuration, (configurations,), and the pooled variance of log loss among seeds, (studies,)."""

    counts: NDArray[np.intp]
    variance: Array


@dataclass(frozen=True)
class MeansFit:
    """The fit of R studies: coordinates (P, R), least-squares objective, residual degrees of freedom."""

    design: Design
    data: Objective
    theta: Array
    df: int
    converged: NDArray[np.bool_]


def fit_means(
    law: Law, columns: Mapping[str, ArrayLike], means: Array, reference: Mapping[str, float] | None, noise: SeedNoise | None = None
) -> MeansFit:
    """Fit geometric mean losses (studies, configurations).

    Raises:
        ValueError: a loss that is not positive and finite.
        FitError: fewer distinct configurations than parameters.
    """
    bad = ~(np.isfinite(means) & (means > 0))
    if bad.any():
        raise ValueError(f"loss holds {means[bad][0]} in {int(bad.sum())} configurations; remove rows without a positive finite loss")
    distinct = len(np.unique(np.stack([column_values(columns, name) for name in law.columns], axis=1), axis=0))
    if distinct < len(law.parameters):
        raise FitError(f"law {law.name} has {len(law.parameters)} parameters but there are {distinct} distinct configurations; add some")
    equal = np.ones((1, means.shape[1]))
    design = build(law, columns, np.log(means[0] if len(means) == 1 else means), equal[0], reference)
    data = objective_of(design, columns, means, equal)
    theta, scale, norm = _best_of_starts(data, grid_starts(design, data, PROFILE_STARTS))
    df = means.shape[1] - design.size
    if noise is not None and df > 0:
        data = objective_of(design, columns, means, _precisions(data, theta, noise, df))
        found, scale = modes.least_squares(data, theta)
        theta, norm = found.theta, found.gradient_norm
    return MeansFit(design, data.at(np.inf, scale), theta, df, norm <= SQUARES_TOLERANCE)


def _precisions(data: Objective, theta: Array, noise: SeedNoise, df: int) -> Array:
    """1 / (tau^2 + s^2 / m) up to a factor, (R, configurations), tau^2 being what the scatter exceeds seed noise by."""
    residual = modes.residuals(data, theta)
    left, values, _ = np.linalg.svd(modes.jacobians(data, theta), full_matrices=False)
    fixed = values[:, None, :] > 1e-9 * values[:, None, :1]
    spared = 1 - (left**2 * fixed).sum(axis=2)  # 1 - leverage: the share of its noise that a mean keeps as residual
    seeds = noise.variance[:, None] / noise.counts
    tau2 = np.maximum(((residual**2).sum(axis=1) - (spared * seeds).sum(axis=1)) / df, 0.0)
    total = tau2[:, None] + seeds
    return np.where(total > 0, 1.0 / np.where(total > 0, total, 1.0), 1.0)


def _best_of_starts(data: Objective, starts: Array) -> tuple[Array, Array, Array]:
    """Least squares from several starts (P, R, K) per replicate: coordinates (P, R), scale (R, 1), gradient norm (R,)."""
    size, n_replicates, n_starts = starts.shape
    repeated = data.take(np.repeat(np.arange(n_replicates), n_starts))
    rough, _ = modes.least_squares(repeated, starts.reshape(size, -1), rough=True)
    best = rough.value.reshape(n_replicates, n_starts).argmin(axis=1)
    theta = rough.theta.reshape(size, n_replicates, n_starts)[:, np.arange(n_replicates), best]
    found, scale = modes.least_squares(data, theta)
    return found.theta, scale, found.gradient_norm
