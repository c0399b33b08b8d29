"""Intervals for parameters, slopes and predicted losses of a fitted law.

    seen = Observations(POWER_FLOOR, cells)
    profile(seen, Parameter("alpha"))     # profile likelihood, F calibration on configuration means
    bootstrap(seen, fit(...), {"alpha": Parameter("alpha")}, np.random.default_rng(0))     # for fits by Huber, which have no profile

Seeds of one configuration are averaged first: they share the configuration's own deviation from the curve, and counting them as
independent makes intervals too short. numpy and scipy.special only; reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.estimate import LEVEL
from analysis.fits.coordinates import Array
from analysis.fits.fit import BatchResult, FitError, FitResult, distinct_points, fit_batch
from analysis.fits.laws import Law, column_values
from analysis.fits.profile_likelihood import MeansFit, fit_to, profile_ends
from analysis.fits.quantities import Loss, Quantity, read

if TYPE_CHECKING:
    from analysis.table.configurations import Configurations

RESAMPLE_ELEMENTS = 4_000_000  # drawn at a time: 32 MB an array, so that large studies resample in bounded memory


@dataclass(frozen=True)
class Interval:
    """A 95 % interval with its point estimate, in the unit of the quantity.

    `status` is "closed", "open_low" or "open_high" (the data do not bound that side: the number there is the end of the allowed range, or
    infinite), "open" (neither side) or "failed" (then `reason` says why and the numbers are not a number). `point` is the estimate that
    belongs to the interval: least squares on configuration means for profiles, the fit itself for bootstraps.
    """

    low: float
    high: float
    method: str
    status: str
    point: float
    n_configurations: int = 0
    reason: str = ""


class Observations(NamedTuple):
    """Configurations and their seeds for a law, amplitudes at `reference` (by default the geometric mean of each column)."""

    law: Law
    cells: Configurations
    reference: Mapping[str, float] | None = None


# ---- profile likelihood ----


def profile(seen: Observations, quantity: Quantity, new_run: bool = False) -> Interval:
    """Profile-likelihood interval with F calibration on configuration means; see `profiles`."""
    return profiles(seen, {"": quantity}, new_run)[""]


def profiles(seen: Observations, quantities: Mapping[str, Quantity], new_run: bool = False) -> dict[str, Interval]:
    """Profile intervals of several quantities from one fit of configuration means.

    Args:
        quantities: what to profile, by name.
        new_run: for `Loss`: where the mean of a configuration not yet run will fall (with as many seeds as the others have), instead
            of where the curve is.

    Returns:
        An interval per name; status "failed" with a reason where there are no more configurations than parameters.
    """
    if new_run and not all(isinstance(quantity, Loss) for quantity in quantities.values()):
        raise ValueError("new_run=True asks where a new configuration will fall; give Loss quantities only")
    try:
        batch = fit_to(*seen)
    except FitError as error:
        return {name: _failed("profile", len(seen.cells), str(error)) for name in quantities}
    return {name: interval_of(batch, quantity, new_run) for name, quantity in quantities.items()}


def interval_of(batch: MeansFit, quantity: Quantity, new_run: bool = False) -> Interval:
    """The profile interval of one quantity of a fit of configuration means."""
    method = "prediction profile" if new_run else "profile"
    count = batch.data.log_loss.shape[1]
    if batch.df < 1:
        reason = f"{count} configurations for {batch.design.size} parameters leave no degree of freedom for the scatter around the curve"
        return _failed("profile", count, reason)
    try:
        reading = read(quantity, batch.design)
    except ValueError as error:
        return _failed(method, count, str(error))
    if not batch.converged.all():
        return _failed(method, count, "the fit of the configuration means did not converge")
    point, low, high = (float(end[0]) for end in profile_ends(batch, reading, new_run=new_run))
    return _found(low, high, method, point, count, reading.lowest)


def _found(low: float, high: float, method: str, point: float, count: int, lowest: float) -> Interval:
    """An interval, a side being open where it is the end of what the quantity can be."""
    status = {(False, False): "closed", (True, False): "open_low", (False, True): "open_high", (True, True): "open"}
    return Interval(low, high, method, status[low <= lowest, high >= np.inf], point, count)


def _failed(method: str, count: int, reason: str) -> Interval:
    return Interval(np.nan, np.nan, method, "failed", np.nan, count, reason)


# ---- bootstrap ----


def bootstrap(
    seen: Observations, start: FitResult, quantities: Mapping[str, Quantity], rng: np.random.Generator, n: int = 2000
) -> dict[str, Interval]:
    """Percentile intervals from resampled configurations, then seeds within each; all replicates are fitted as one batch.

    Resamples with fewer distinct configurations than the law has parameters have no fit and are left out. With few configurations
    percentile intervals are too short (the scatter is estimated without its degrees of freedom): for fits that have no profile.

    Args:
        start: the fit to start from, with the objective and width to keep.
        quantities: what to report, by name.
        rng: the only source of randomness: equal generators give equal intervals.
        n: number of replicates.
    """
    group = seen.cells.cell_config
    columns = {name: column_values(seen.cells.columns, name)[group] for name in seen.law.columns}
    weights = resample(group, n, rng)
    usable = distinct_points(columns, weights) >= len(seen.law.parameters)
    batch = fit_batch(start, columns, seen.cells.cell_loss, weights[usable]) if usable.any() else None
    return {name: _percentile(quantity, start, batch, len(seen.cells), n) for name, quantity in quantities.items()}


def _percentile(quantity: Quantity, start: FitResult, batch: BatchResult | None, count: int, n: int) -> Interval:
    method = f"bootstrap ({n} resamples of configurations, then seeds)"
    try:
        reading = read(quantity, start.design)
    except ValueError as error:
        return _failed(method, count, str(error))
    point = float(reading.report(reading.evaluate(start.theta[:, None])[0])[0])
    fitted = batch.converged if batch else np.zeros(0, dtype=bool)
    if batch is None or fitted.sum() < 0.5 * n:
        return _failed(method, count, f"only {int(fitted.sum())} of {n} resamples determine the law; add configurations")
    reading = read(quantity, batch.design)
    values = reading.report(reading.evaluate(batch.theta[:, fitted])[0])
    low, high = np.quantile(values, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return _found(float(low), float(high), method, point, count, reading.lowest)


def resample(group: NDArray[np.intp], n: int, rng: np.random.Generator) -> Array:
    """Bootstrap weights (n, rows): configurations with replacement, then as many seeds of each (Efron and Tibshirani 1993, section 8.6).

    Seeds of a configuration share its deviation from the curve, so resampling rows as if independent would give intervals that are too
    short. A configuration drawn once weighs 1 in total, however many seeds it has.
    """
    count = np.bincount(group)
    order = np.argsort(group, kind="stable")
    first = np.concatenate([[0], np.cumsum(count)[:-1]])
    weights = np.zeros((n, len(group)))
    block = max(1, RESAMPLE_ELEMENTS // (len(count) * int(count.max())))
    for part in (weights[done : done + block] for done in range(0, n, block)):
        drawn = rng.integers(len(count), size=(len(part), len(count)))
        seeds = rng.random((*drawn.shape, int(count.max())))
        size = count[drawn][:, :, None]
        rows = order[first[drawn][:, :, None] + np.minimum((seeds * size).astype(np.intp), size - 1)]
        weight = np.where(np.arange(seeds.shape[2]) < size, 1.0 / size, 0.0)
        flat = (np.arange(len(part))[:, None, None] * len(group) + rows).reshape(-1)
        part[:] = np.bincount(flat, weights=weight.reshape(-1), minlength=part.size).reshape(part.shape)
    return weights
