"""Least squares on configuration means, and profile likelihood: how far a quantity can move before the fit becomes significantly worse.

A mean of m seeds scatters around the curve with variance tau^2 + s^2 / m: the configuration's own lack of fit, and seed noise. With equal
numbers of seeds all means weigh the same. With unequal numbers (large models often get fewer seeds) equal weights would treat a single
seed at the largest size as if it were as exact as the mean of five; simulated coverage then drops to 90 %. So tau^2 is estimated from
an unweighted fit by the method of moments (DerSimonian and Laird 1986), and the means are weighted by 1 / (tau^2 + s^2 / m).

The values of a quantity q that pass the F test against the best fit form its interval:
(S(q) - S_min) / (S_min / df) <= F(1, df), S(q) being the smallest sum of squares among curves with that q (Bates and Watts 1988,
section 6.1). S_min / df measures the scatter of the means around the curve, so seed noise and lack of fit are both in it. Simulated
coverage is 93.5 to 95.7 % (`benchmarks.fits --coverage`); where a bound is near, such as a floor close to 0, it is 96 to 98 %.

A tilt instead of a constraint: the minimum of S + k (q - q0)^2 is the minimum of S among curves with the q that it *reaches*, whatever k
is. So every solve yields an exact point of the profile, and a secant on the signed root of the F statistic finds the end.

Shapes: P coordinates, R studies (one, or many over the same configurations), n configuration means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from analysis.estimate import LEVEL
from analysis.fits.coordinates import Array, Design, FitError, build
from analysis.fits.fit import distinct_points, objective_of
from analysis.fits.grid_starts import grid_starts
from analysis.fits.laws import Law, column_values
from analysis.fits.newton import SQUARES_TOLERANCE, least_squares, minimize, solve
from analysis.fits.objective import Objective, evaluate, jacobians, residuals, spared
from analysis.fits.quantities import Derivatives, Reading

if TYPE_CHECKING:
    from analysis.table.configurations import Configurations

PROFILE_STARTS = 8
STIFFNESS = 1e3  # of the tilt relative to the profile's own curvature: the reached q is then within 0.1 % of the asked one
ROOT_TOLERANCE = 1e-5  # of the signed root, in units of its critical value
MAX_SOLVES = 25
RESIDUAL_FLOOR = 1e-18  # of S_min: noise-free data would otherwise have intervals of rounding errors


# ---- means ----


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


def fit_to(law: Law, cells: Configurations, reference: Mapping[str, float] | None = None) -> MeansFit:
    """Fit one study: a law to the geometric mean loss of each configuration.

    Raises:
        FitError: fewer distinct configurations than parameters.
    """
    seeds, group = cells.n_seeds, cells.cell_config
    columns = {name: np.exp(np.bincount(group, weights=np.log(column_values(cells.columns, name))[group]) / seeds) for name in law.columns}
    noise = None
    if (seeds != seeds[0]).any():
        deviations = cells.log_deviations()
        noise = SeedNoise(seeds, np.array([deviations @ deviations / (len(group) - len(seeds))]))
    return fit_means(law, columns, np.exp(cells.log_means())[None], reference, noise)


def fit_means(
    law: Law, columns: Mapping[str, ArrayLike], means: Array, reference: Mapping[str, float] | None = None, noise: SeedNoise | None = None
) -> MeansFit:
    """Fit geometric mean losses (studies, configurations); without `noise` every configuration weighs the same.

    Raises:
        FitError: fewer distinct configurations than parameters.
    """
    equal = np.ones((1, means.shape[1]))
    distinct = int(distinct_points({name: column_values(columns, name) for name in law.columns}, equal)[0])
    if distinct < len(law.parameters):
        raise FitError(f"law {law.name} has {len(law.parameters)} parameters but there are {distinct} distinct configurations; add some")
    design = build(law, columns, np.log(means[0] if len(means) == 1 else means), equal[0], reference)
    data = objective_of(design, columns, means, equal)
    found, scale = least_squares(data, _best_start(data, grid_starts(design, data, PROFILE_STARTS)))
    df = means.shape[1] - design.size
    if noise is not None and df > 0:
        data = objective_of(design, columns, means, _precisions(data, found.theta, noise, df))
        found, scale = least_squares(data, found.theta)
    return MeansFit(design, data.at(np.inf, scale), found.theta, df, found.gradient_norm <= SQUARES_TOLERANCE)


def _precisions(data: Objective, theta: Array, noise: SeedNoise, df: int) -> Array:
    """1 / (tau^2 + s^2 / m) up to a factor, (R, configurations), tau^2 being what the scatter exceeds seed noise by."""
    seeds = noise.variance[:, None] / noise.counts
    own = (spared(jacobians(data, theta)) * seeds).sum(axis=1)
    tau2 = np.maximum(((residuals(data, theta) ** 2).sum(axis=1) - own) / df, 0.0)
    total = tau2[:, None] + seeds
    return np.where(total > 0, 1.0 / np.where(total > 0, total, 1.0), 1.0)


def _best_start(data: Objective, starts: Array) -> Array:
    """Where the best of several starts (P, R, K) leads each replicate by rough least squares, (P, R)."""
    size, n_replicates, n_starts = starts.shape
    repeated = data.take(np.repeat(np.arange(n_replicates), n_starts))
    rough, _ = least_squares(repeated, starts.reshape(size, -1), rough=True)
    best = rough.value.reshape(n_replicates, n_starts).argmin(axis=1)
    return rough.theta.reshape(starts.shape)[:, np.arange(n_replicates), best]


# ---- profiles ----


def profile_ends(batch: MeansFit, reading: Reading, *, new_run: bool = False) -> tuple[Array, Array, Array]:
    """Point, lower and upper end of the profile interval of every study, as reported, (R,).

    An end that is never reached is open: it is the end of the range that the quantity can take.

    Args:
        new_run: interval for the mean log loss of a configuration not yet run, instead of for the curve: the new point joins the sum of
            squares with its own residual (the exact prediction interval where the law is linear).
    """
    ends, is_open = _Search(batch, reading, new_run).run()
    (low, high), (low_open, high_open) = reading.report(ends).reshape(2, -1), is_open.reshape(2, -1)
    point = reading.report(reading.evaluate(batch.theta)[0])
    return point, np.where(low_open, reading.lowest, low), np.where(high_open, np.inf, high)


class _Search:
    """The ends of all studies and both sides at once: column r of every array is one end, those below the point first."""

    def __init__(self, batch: MeansFit, reading: Reading, new_run: bool) -> None:
        n_studies = batch.theta.shape[1]
        self.data = data = batch.data.take(np.tile(np.arange(n_studies), 2))
        self.theta = theta = np.concatenate([batch.theta, batch.theta], axis=1)
        self.sides = np.repeat([-1.0, 1.0], n_studies)
        self.reading, self.new_run, self.critical = reading, new_run, float(stdtrit(batch.df, 0.5 + LEVEL / 2))
        value, _, hessian = evaluate(data, theta, np.arange(2 * n_studies))
        self.scale = np.broadcast_to(data.scale[:, 0], self.sides.shape)
        self.lowest = 2 * self.scale * value
        self.variance = np.maximum(self.lowest, RESIDUAL_FLOOR) / batch.df
        self.center, gradient, _ = reading.evaluate(theta)
        held = (theta <= data.low) | (theta >= data.high)
        hessian = np.where(held[:, None] | held[None, :], 0.0, hessian)
        index = np.arange(len(theta))
        hessian[index, index] += held + 1e-9 * np.abs(hessian[index, index])
        free = np.where(held, 0.0, gradient)
        spread = np.maximum(np.einsum("pr,pr->r", free, solve(hessian, free)), 1e-12)
        share = 1.0 / data.log_loss.shape[1]
        self.stiffness = share / self.scale if new_run else STIFFNESS / spread
        width = self.variance / self.scale * (spread + (self.scale / share if new_run else 0.0))
        self.guess = self.critical * np.sqrt(width)

    def root(self, active: NDArray[np.intp], theta: Array, target: Array) -> tuple[Array, Array, Array]:
        """Solve tilted fits; returns coordinates, the reached value, and the root of the F statistic in units of the critical value."""
        stiffness = self.stiffness[active]

        def tilt(theta: Array, rows: NDArray[np.intp]) -> Derivatives:
            """The penalty stiffness / 2 (q - target)^2 with its derivatives."""
            value, gradient, hessian = self.reading.evaluate(theta)
            gap, hard = value - target[rows], stiffness[rows]
            outer = gradient[:, None] * gradient[None, :]
            return 0.5 * hard * gap**2, hard * gap * gradient, hard * (outer + gap * hessian)

        found = minimize(replace(self.data.take(active), penalty=tilt), theta, tolerance=SQUARES_TOLERANCE, max_steps=60)
        reached, _, _ = self.reading.evaluate(found.theta)
        total = found.value if self.new_run else found.value - 0.5 * stiffness * (reached - target) ** 2
        excess = np.maximum(2 * self.scale[active] * total - self.lowest[active], 0.0) / self.variance[active]
        return found.theta, target if self.new_run else reached, np.sqrt(excess) / self.critical

    def run(self) -> tuple[Array, NDArray[np.bool_]]:
        """Secant within a bracket of asked distances; an end is open when asking for more no longer moves the quantity, or when
        twenty-five solves, each asking for up to three times more, did not reach it."""
        count = len(self.sides)
        inner, inner_root = np.zeros(count), np.zeros(count)  # asked distance from the center, and the root there
        outer, outer_root = np.full(count, np.inf), np.full(count, np.inf)
        moved = np.zeros(count)
        warm, ends = self.theta.copy(), self.center.copy()
        active, distance = np.arange(count), self.guess.copy()
        for _ in range(MAX_SOLVES):
            asked = distance[active]
            theta, reached, root = self.root(active, warm[:, active], self.center[active] + self.sides[active] * asked)
            below, here = root < 1, self.sides[active] * (reached - self.center[active])
            stuck = below & (here - moved[active] < 1e-3 * (asked - inner[active])) & ~np.isfinite(outer[active])
            rows = active[below]
            inner[rows], inner_root[rows], moved[rows], warm[:, rows] = asked[below], root[below], here[below], theta[:, below]
            outer[active[~below]], outer_root[active[~below]] = asked[~below], root[~below]
            ends[active] = reached
            close = np.abs(root - 1) <= ROOT_TOLERANCE
            outer[active[close]] = asked[close]  # reached, from whichever side
            active = active[~(close | stuck)]
            if not active.size:
                break
            distance = _next_distance(inner, inner_root, outer, outer_root)
        return ends, ~np.isfinite(outer)


def _next_distance(inner: Array, inner_root: Array, outer: Array, outer_root: Array) -> Array:
    """Where the root should be 1: by interpolation within a bracket (kept off its ends), else by bounded extrapolation."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (1 - inner_root) / (outer_root - inner_root)
        between = inner + np.clip(share, 0.02, 0.98) * (outer - inner)
        beyond = inner * np.clip(1.02 / np.maximum(inner_root, 1e-9), 1.01, 3.0)
    return np.where(np.isfinite(outer), between, beyond)
