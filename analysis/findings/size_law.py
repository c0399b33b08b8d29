"""A fit of a size law together with the configurations behind it: what every finding about N starts from.

fitted = fit_size_law("joint", "All configurations", cells); fitted.slope(1e6); fitted.log_error(fitted.at(1e6), variance)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.estimate import Code, Refusal
from analysis.findings import refusal_rules as verdicts
from analysis.fits import fit as fits
from analysis.fits import intervals
from analysis.fits import law_selection as selection
from analysis.fits.fit import FitResult
from analysis.fits.laws import POWER, POWER_FLOOR, POWER_FLOOR_DATA, Law
from analysis.fits.size_and_text import moving_together
from analysis.table.configurations import Configurations, Noise, f_p_value, t_quantile

SIZE = "params_non_embedding"
CONVENTIONS = ("params_non_embedding", "params_total", "params_blocks")
"""The ways to count N under which the joint fit is repeated."""
AT_LENGTH = "length:"
"""Begins the names of fits to trials of one number of training tokens."""
BESIDE_STARTS = 4
"""Starts of the fits beside the primary one: four found the same optimum as twelve in 158 of 158 simulated fits of M1 and M2."""


@dataclass(frozen=True)
class Fitted:
    """A fit with the configurations that it used: what structure, diagnostics and forecasts start from.

    Args:
        fit_id: key in fits.json.
        result: the fit on configuration means.
        cells: those configurations.
        column: how N is counted.
        sweep: the one sweep whose configurations were used, or None.
        title: for people.
    """

    fit_id: str
    title: str
    result: FitResult
    cells: Configurations
    column: str
    sweep: str | None = None

    @property
    def df(self) -> int:
        """Configurations less parameters."""
        return len(self.cells) - len(self.result.params)

    def at(self, size: Any, **other: Any) -> dict[str, NDArray[np.float64]]:
        """Columns at sizes, everything else at the fit's reference."""
        n = np.atleast_1d(np.asarray(size, dtype=float))
        fixed = {**self.result.reference, **other}
        return {name: n if name == self.column else np.full(len(n), fixed[name]) for name in self.result.law.columns}

    def slope(self, size: float) -> float:
        """Local slope dlnL/dlnN at a size (negative where larger is better)."""
        step = 1e-5
        up, down = self.result.predict(self.at([size * math.exp(step), size * math.exp(-step)]))
        return float((math.log(up) - math.log(down)) / (2 * step))

    def jacobian(self, points: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """d ln L / d coordinates at points, (points, parameters), by central differences."""
        theta, step = self.result.theta, 1e-6
        offsets = step * np.eye(len(theta))
        shifted = np.concatenate([theta[:, None] + offsets, theta[:, None] - offsets], axis=1)
        values = self.result.design.log_predict(shifted, dict(points))
        half = len(theta)
        return ((values[:half] - values[half:]) / (2 * step)).T

    def covariance(self) -> NDArray[np.float64]:
        """Covariance of the coordinates for a residual variance of one (linearized fit), (parameters, parameters)."""
        own = self.jacobian({name: self.cells.columns[name] for name in self.result.law.columns})
        return np.asarray(np.linalg.pinv(own.T @ own, rcond=1e-12), dtype=float)

    def combination_error(self, direction: NDArray[np.float64], variance: float) -> float:
        """Standard error of a function of the coordinates with this gradient (delta method)."""
        return math.sqrt(max(float(direction @ self.covariance() @ direction), 0.0) * variance)

    def log_error(self, points: Mapping[str, NDArray[np.float64]], variance: float) -> NDArray[np.float64]:
        """Standard error of ln L at points for a residual variance of configuration means (delta method)."""
        free = self.jacobian(points)
        return np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", free, self.covariance(), free), 0) * variance)


def fit_size_law(
    fit_id: str, title: str, cells: Configurations, column: str = SIZE, sweep: str | None = None, delta: float | None = None
) -> Fitted | Refusal:
    """Fit L(N), or L(N, D) where training tokens vary too, to configuration means: by least squares, or Huber of width `delta`."""
    if verdicts.sizes(cells, column) < 2:
        return Refusal(
            Code.NO_VARIATION, f"{title}: N takes one value, so the data say nothing about what parameters buy; add a second size"
        )
    if refused := moving_together(cells):
        return refused
    chosen = choose_size_law(cells, column).on(**{SIZE: column})
    try:
        n_starts = fits.N_STARTS if fit_id == "joint" else BESIDE_STARTS
        result = fits.fit(chosen, cells.columns, cells.loss, delta=delta, n_starts=n_starts)
    except fits.FitError as error:
        return Refusal(Code.TOO_FEW_SIZES, f"{title}: {error}")
    return Fitted(fit_id, title, result, cells, column, sweep)


def choose_size_law(cells: Configurations, column: str = SIZE) -> Law:
    """M2 where the training tokens vary too, M1 from four sizes on, else M0.

    A floor is part of the law by default, for the entropy of text is not zero; what AICc says of the alternatives stands in `selection`.
    """
    if selection.varies(cells, "n_tokens", 3) and len(cells) > len(POWER_FLOOR_DATA.parameters):
        return POWER_FLOOR_DATA
    return POWER_FLOOR if verdicts.sizes(cells, column) >= 4 else POWER


def mean_variance(fitted: Fitted, noise: Noise | Refusal) -> tuple[float | None, int]:
    """Variance of a configuration mean about the curve in log loss, and its degrees of freedom.

    Residual scatter alone where the lack of fit exceeds the seeds' noise (F test at 5 %); otherwise residuals and seed noise pooled, which
    is what lets a four-level sweep with seeds say anything (Draper and Smith 1998, chapter 2).
    """
    if verdicts.runs_shared(fitted.cells):
        return None, 0  # branches of one run scatter together: their scatter says too little
    rss, df = float(np.sum(fitted.result.residuals**2)), fitted.df
    if isinstance(noise, Refusal):
        return (rss / df, df) if df > 0 else (None, 0)
    pure = float(np.mean((noise.difference_sd / fitted.cells.loss) ** 2 / fitted.cells.n_seeds))
    if df > 0 and f_p_value(rss / df / pure, df, noise.difference_df) < 0.05:
        return rss / df, df
    return (rss + pure * noise.difference_df) / (df + noise.difference_df), df + noise.difference_df


def observations(fitted: Fitted, means: bool = False) -> intervals.Observations:
    """The fit's rows, one per configuration and seed, for intervals: seeds of one configuration are grouped, never independent.

    Args:
        means: give configuration means instead, one row each.
    """
    cells, law = fitted.cells, fitted.result.law
    if means:
        own = {name: cells.columns[name] for name in law.columns}
        return intervals.Observations(law, own, cells.loss, np.arange(len(cells)), fitted.result.reference)
    columns = {name: cells.columns[name][cells.cell_config] for name in law.columns}
    return intervals.Observations(law, columns, cells.cell_loss, cells.cell_config, fitted.result.reference)


# ---- diminishing returns ----


def diminishing(fitted: Fitted, noise: Noise | Refusal) -> dict[str, Any] | Refusal:
    """Gain of the first and the last doubling inside the data, of the next one beyond, and the size from which it is below the noise.

    All gains in nats with delta-method intervals; the size is refused where it lies beyond one observed log-range.
    """
    sizes = fitted.cells.columns[fitted.column]
    low, high = float(sizes.min()), float(sizes.max())
    if high < 2 * low:
        return Refusal(Code.NARROW_RANGE, f"sizes span {high / low:.2f}-fold, less than one doubling; add a size twice as large")
    block: dict[str, Any] = {
        "smallest": gain_between(fitted, low, 2 * low, noise),
        "largest": gain_between(fitted, high / 2, high, noise),
        "next": gain_between(fitted, high, 2 * high, noise),
        "per_million": {"at_smallest": _per_million(fitted, low), "at_largest": _per_million(fitted, high)},
    }
    if isinstance(noise, Refusal):
        return block | {"below_noise_from": None, "below_noise_reason": noise.reason}
    return block | _below_noise(fitted, noise.detectable, low, high)


def gain_between(fitted: Fitted, first: float, second: float, noise: Noise | Refusal) -> dict[str, Any]:
    """L(first) - L(second) on the curve, nats, with its delta-method interval."""
    points = fitted.at([first, second])
    losses = fitted.result.predict(points)
    cell: dict[str, Any] = {"from": first, "to": second, "gain": float(losses[0] - losses[1]), "low": None, "high": None}
    variance, df = mean_variance(fitted, noise)
    if variance is None:
        return cell
    slopes = fitted.jacobian(points) * losses[:, None]
    half = t_quantile(df) * fitted.combination_error(slopes[0] - slopes[1], variance)
    return cell | {"low": cell["gain"] - half, "high": cell["gain"] + half}


def _per_million(fitted: Fitted, size: float) -> float:
    """-dL/dN at a size, nats per million parameters."""
    loss = float(fitted.result.predict(fitted.at(size))[0])
    return -fitted.slope(size) * loss / size * 1e6


def _below_noise(fitted: Fitted, detectable: float, low: float, high: float) -> dict[str, Any]:
    """Smallest size from which the next doubling gains less than the noise floor, within one log-range beyond the data, or None."""
    grid = np.geomspace(low, high * (high / low), 400)
    gains = fitted.result.predict(fitted.at(grid)) - fitted.result.predict(fitted.at(2 * grid))
    below = np.flatnonzero(gains < detectable)
    if not len(below):
        reason = f"up to {grid[-1]:,.0f} parameters, one observed log-range beyond the data, each doubling gains more than the noise floor"
        return {"below_noise_from": None, "below_noise_reason": reason}
    return {"below_noise_from": {"size": float(grid[below[0]]), "inside_data": bool(grid[below[0]] <= high), "noise": detectable}}


def unit_below_noise(fitted: Fitted, sweep: dict[str, Any], noise: Noise | Refusal) -> dict[str, Any] | None:
    """The value of a sweep's factor (layers, say) from which one more unit gains less than the noise floor, by the sweep's own curve.

    None where units differ in their parameters (width), no noise is measured, or a unit still pays one log-range beyond the data.
    """
    per_unit = sweep["params_per_unit"]
    if isinstance(noise, Refusal) or not per_unit:
        return None
    first, last = sweep["levels"][0], sweep["levels"][-1]
    base = first["params_non_embedding"] - per_unit * first["value"]
    end = last["params_non_embedding"] ** 2 / first["params_non_embedding"]
    values = np.arange(first["value"], math.floor((end - base) / per_unit))
    gains = fitted.result.predict(fitted.at(base + per_unit * values)) - fitted.result.predict(fitted.at(base + per_unit * (values + 1)))
    below = np.flatnonzero(gains < noise.detectable)
    if not len(below):
        return None
    value = int(values[below[0]])
    return {"value": value, "gain": float(gains[below[0]]), "noise": noise.detectable, "inside_data": value <= last["value"]}
