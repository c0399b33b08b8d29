"""Intervals for parameters, slopes and predicted losses of a fitted law.

    seen = Observations(POWER_FLOOR, {"params_non_embedding": sizes}, val_loss, groups=config_ids)
    profile(seen, Parameter("alpha"))     # profile likelihood, F calibration on configuration means
    bootstrap(seen, fit(...), {"alpha": Parameter("alpha")}, np.random.default_rng(0))     # for fits by Huber, which have no profile

Rows of one configuration (its seeds) are averaged first: seeds share the configuration's own deviation from the curve, and counting
them as independent makes intervals too short. numpy and scipy.special only; reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.estimate import LEVEL
from analysis.fits.coordinates import Array, Design
from analysis.fits.fit import BatchResult, FitError, FitResult, fit_batch
from analysis.fits.laws import Law, column_values
from analysis.fits.profile_likelihood import Ends, MeansFit, SeedNoise, fit_means, profile_ends
from analysis.fits.quantities import Gain, Loss, Parameter, Quantity, Reading, Sum, read

RESAMPLE_ELEMENTS = 4_000_000  # drawn at a time: 32 MB an array, so that large studies resample in bounded memory


@dataclass(frozen=True)
class Interval:
    """An interval with its point estimate, in the unit of the quantity.

    `status` is "closed", "open_low" or "open_high" (the data do not bound that side: the number there is the end of the allowed range, or
    infinite), "open" (neither side) or "failed" (then `reason` says why and the numbers are not a number). `point` is the estimate that
    belongs to the interval: least squares on configuration means for profiles, the fit itself for bootstraps.
    """

    low: float
    high: float
    level: float
    method: str
    status: str
    point: float
    n_configurations: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Observations:
    """Rows of trials for a law: columns and loss, each (rows,), and the configuration of each row."""

    law: Law
    columns: Mapping[str, ArrayLike]
    loss: ArrayLike
    groups: ArrayLike
    reference: Mapping[str, float] | None = None

    def rows(self) -> tuple[dict[str, Array], Array, NDArray[np.intp]]:
        """Needed columns, loss, and the configuration index of each row.

        Raises:
            ValueError: shapes differ, or a group holds different column values.
        """
        columns = {name: np.atleast_1d(column_values(self.columns, name)) for name in self.law.columns}
        loss = np.asarray(self.loss, dtype=float)
        rows = {values.size for values in columns.values()}
        if rows != {loss.size}:
            raise ValueError(f"loss has {loss.size} values for columns of {rows} rows; give one loss per row")
        group = np.unique(np.asarray(self.groups), return_inverse=True)[1].reshape(-1)
        if group.shape != loss.shape:
            raise ValueError(f"groups has {group.size} entries for {loss.size} rows; give one configuration per row")
        return columns, loss, group

    def means(self) -> tuple[dict[str, Array], Array]:
        """Columns and geometric mean loss of each configuration, (configurations,)."""
        columns, loss, group = self.rows()
        count = np.bincount(group)
        with np.errstate(invalid="ignore", divide="ignore"):
            averaged = np.exp(np.bincount(group, weights=np.log(loss)) / count)
        logs = {name: np.bincount(group, weights=np.log(values)) / count for name, values in columns.items()}
        for name, values in columns.items():
            if np.abs(np.log(values) - logs[name][group]).max(initial=0.0) > 1e-9:
                raise ValueError(f"rows of one configuration differ in {name!r}; a configuration is a trial without its seed")
        return {name: np.exp(values) for name, values in logs.items()}, averaged

    def seed_noise(self) -> SeedNoise | None:
        """Seeds of each configuration and the variance of log loss among them; None where all have equally many, or none has two."""
        _, loss, group = self.rows()
        count = np.bincount(group)
        if (count == count[0]).all():
            return None
        logs = np.log(loss)
        centered = logs - (np.bincount(group, weights=logs) / count)[group]
        return SeedNoise(count, np.array([centered @ centered / (len(logs) - len(count))]))


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
    columns, means = seen.means()
    try:
        batch = fit_means(seen.law, columns, means[None], seen.reference, seen.seed_noise())
    except FitError as error:
        return {name: _failed("profile", len(means), str(error)) for name in quantities}
    if batch.df < 1:
        reason = (
            f"{len(means)} configurations for {batch.design.size} parameters leave no degree of freedom for the scatter around the curve"
        )
        return {name: _failed("profile", len(means), reason) for name in quantities}
    return {name: interval_of(batch, quantity, new_run) for name, quantity in quantities.items()}


def interval_of(batch: MeansFit, quantity: Quantity, new_run: bool = False) -> Interval:
    """The profile interval of one quantity of a fit of configuration means."""
    method = "prediction profile" if new_run else "profile"
    count = batch.data.log_loss.shape[1]
    try:
        reading = read(quantity, batch.design)
    except ValueError as error:
        return _failed(method, count, str(error))
    if not batch.converged.all():
        return _failed(method, count, "the fit of the configuration means did not converge")
    ends = profile_ends(batch.data, batch.theta, reading, batch.df, LEVEL, new_run=new_run)
    low, high = _open_ends(ends, reading, quantity, batch.design)
    status = _status(bool(ends.low_open[0]), bool(ends.high_open[0]))
    return Interval(float(low[0]), float(high[0]), LEVEL, method, status, float(reading.report(ends.point)[0]), count)


def _open_ends(ends: Ends, reading: Reading, quantity: Quantity, design: Design) -> tuple[Array, Array]:
    """Reported ends: an open one becomes the end of the range that the quantity can take."""
    lowest, highest = _range(quantity, design)
    return np.where(ends.low_open, lowest, reading.report(ends.low)), np.where(ends.high_open, highest, reading.report(ends.high))


def _range(quantity: Quantity, design: Design) -> tuple[float, float]:
    if isinstance(quantity, Loss):
        return 0.0, np.inf
    if isinstance(quantity, Parameter) and (quantity.name == design.law.floor or quantity.name in design.law.amplitudes):
        return 0.0, np.inf
    if isinstance(quantity, Sum | Gain):
        return -np.inf, np.inf
    powers = {getattr(f, "exponent", ""): f for t in design.law.terms for f in t.factors}
    if isinstance(quantity, Parameter) and quantity.name in powers:
        return getattr(powers[quantity.name], "low", -np.inf), np.inf
    return -np.inf, np.inf


def _status(low_open: bool, high_open: bool) -> str:
    return {(False, False): "closed", (True, False): "open_low", (False, True): "open_high", (True, True): "open"}[low_open, high_open]


def _failed(method: str, count: int, reason: str) -> Interval:
    return Interval(np.nan, np.nan, LEVEL, method, "failed", np.nan, count, reason)


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
    columns, loss, group = seen.rows()
    weights = resample(group, n, rng)
    usable = distinct_points(columns, weights) >= len(seen.law.parameters)
    batch = fit_batch(start, columns, loss, weights[usable]) if usable.any() else None
    return {name: _percentile(quantity, start, batch, int(group.max()) + 1, n) for name, quantity in quantities.items()}


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
    lowest, highest = _range(quantity, start.design)
    return Interval(float(low), float(high), LEVEL, method, _status(bool(low <= lowest), bool(high >= highest)), point, count)


def resample(group: NDArray[np.intp], n: int, rng: np.random.Generator) -> Array:
    """Bootstrap weights (n, rows): configurations with replacement, then as many seeds of each (Efron and Tibshirani 1993, section 8.6).

    Seeds of a configuration share its deviation from the curve, so resampling rows as if independent would give intervals that are too
    short. A configuration drawn once weighs 1 in total, however many seeds it has.
    """
    count = np.bincount(group)
    block = max(1, RESAMPLE_ELEMENTS // (len(count) * int(count.max())))
    parts = [_resample_block(group, count, min(block, n - done), rng) for done in range(0, n, block)]
    return np.concatenate(parts) if parts else np.zeros((0, len(group)))


def _resample_block(group: NDArray[np.intp], count: NDArray[np.intp], n: int, rng: np.random.Generator) -> Array:
    order = np.argsort(group, kind="stable")
    first = np.concatenate([[0], np.cumsum(count)[:-1]])
    drawn = rng.integers(len(count), size=(n, len(count)))
    seeds = rng.random((n, len(count), int(count.max())))
    size = count[drawn][:, :, None]
    rows = order[first[drawn][:, :, None] + np.minimum((seeds * size).astype(np.intp), size - 1)]
    weight = np.where(np.arange(seeds.shape[2]) < size, 1.0 / size, 0.0)
    flat = (np.arange(n)[:, None, None] * len(group) + rows).reshape(-1)
    total: Array = np.bincount(flat, weights=weight.reshape(-1), minlength=n * len(group)).astype(float)
    return total.reshape(n, len(group))


def distinct_points(columns: Mapping[str, Array], weights: Array) -> NDArray[np.intp]:
    """Distinct design points with weight, per replicate."""
    _, point = np.unique(np.stack(list(columns.values()), axis=1), axis=0, return_inverse=True)
    order = np.argsort(point.reshape(-1), kind="stable")
    first = np.flatnonzero(np.diff(point.reshape(-1)[order], prepend=-1))
    return (np.add.reduceat(weights[:, order], first, axis=1) > 0).sum(axis=1)
