"""Diminishing returns along the fitted curve: what the next doubling buys at either end of the data, and where it sinks below the noise.

block = returns.diminishing(fitted, noise)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from analysis.estimate import Code, Refusal
from analysis.findings.size_law import Fitted, mean_variance
from analysis.table.configurations import Noise, t_quantile


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
