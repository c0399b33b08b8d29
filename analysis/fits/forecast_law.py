"""The law to forecast from: exponents fixed before any study trains, amplitudes by non-negative least squares on relative residuals.

    L = E + A / n_layer + B / n_embd + C (N / N0)^-0.34            A, B, C >= 0; E at least the text's entropy where that is known

Exponents of depth and width: Liu et al. 2026 (arXiv 2602.05970; .98 +- .08 and 1.20 +- .27 over 205 runs); of N: Hoffmann et al. 2022.
Free exponents fit the runs at hand better and unseen larger ones worse (`make bench-laws`).

An interval is twice the root mean square error of predicting each size from all others; what the curve's own covariance promises covers
half to four fifths. In simulated studies of 12 shapes it holds the next size in 91 %. A rolling backtest (every size from all smaller ones)
stands beside it, and where that covers less than 90 % there is no interval.

    found = fit_forecast_law(cells); found.predict(n_layer=4, n_embd=128, params=8e5)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.estimate import NATS, SIZE, Code, Estimate, Refusal
from analysis.table.configurations import Configurations, Floats
from analysis.table.load import size_labels

EXPONENTS = (1.0, 1.0, 0.34)
"""Of depth, of width, of N."""
SOURCE = "Liu et al. 2026 (arXiv 2602.05970) for depth and width, Hoffmann et al. 2022 for N"
EQUATION = "E + A / n_layer + B / n_embd + C * N^-0.34"
MIN_SIZES, MIN_CONFIGURATIONS = 4, 6
WIDTH = 2.0
"""Root mean square errors to either side of a forecast."""
COVERED = 0.9
SUBSETS = [list(used) for size in range(1, 5) for used in combinations(range(4), size)]


@dataclass(frozen=True)
class Curve:
    """One solution of the law; predicts from columns."""

    coefficients: Floats
    exponents: tuple[float, float, float]
    floor: float
    reference: float

    def predict(self, columns: Mapping[str, Floats]) -> Floats:
        """Losses in nats, (points,)."""
        return self.floor + _features(columns, self.exponents, self.reference) @ self.coefficients


@dataclass(frozen=True)
class ForecastFit:
    """The fitted law of one training length; losses in nats, errors relative.

    Args:
        backtest: every size forecast from all smaller ones, or None where none can be: "rows", per size {"params", "n", "from_sizes",
            "median_error", "half_width", "covered"}; over all "n" forecast configurations their "median_error" and "coverage", the share
            within their interval; "perfect_error", the median error that a perfect law would show at the scatter of the means around this
            one.
    """

    curve: Curve
    half_width: float
    residual_sd: float
    backtest: Mapping[str, Any] | None
    n: int

    @property
    def interval_refused(self) -> Refusal | None:
        """Why forecasts have no interval, where the backtest does not earn one."""
        if self.backtest is None:
            return Refusal(Code.TOO_FEW_SIZES, "no size can be forecast from enough smaller ones, so no interval is tested; add sizes")
        n, coverage = self.backtest["n"], self.backtest["coverage"]
        if coverage >= COVERED:
            return None
        reason = f"of {n} forecasts from smaller models {100 * coverage:.0f} % fell within their interval, less than 90 %"
        return Refusal(Code.BACKTEST_FAILS, reason)

    def predict(self, n_layer: float, n_embd: float, params: float) -> Estimate:
        """Loss of a shape; without an interval where there is `interval_refused`."""
        value = float(self.curve.predict({"n_layer": np.array([n_layer]), "n_embd": np.array([n_embd]), SIZE: np.array([params])})[0])
        low, high = (None if self.interval_refused else value * (1 + side * self.half_width) for side in (-1, 1))
        return Estimate(value, low, high, NATS, self.n, "fixed exponents, leaving one size out")

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        named = dict(zip("EABC", (self.curve.floor + self.curve.coefficients[0], *self.curve.coefficients[1:]), strict=True))
        return {
            "equation": EQUATION,
            "source": SOURCE,
            "params": {name: float(value) for name, value in named.items()},
            "reference": {SIZE: self.curve.reference},
            "exponents": dict(zip(("n_layer", "n_embd", SIZE), self.curve.exponents, strict=True)),
            "floor": self.curve.floor,
            "residual_sd": self.residual_sd,
            "half_width": None if self.interval_refused else self.half_width,
            "interval_refused": self.interval_refused and self.interval_refused.to_dict()["refused"],
            "backtest": self.backtest,
            "n_configurations": self.n,
        }


def fit_forecast_law(cells: Configurations) -> ForecastFit | Refusal:
    """Fit the forecasting law to the configurations of one training length, the floor being no less than their `loss_floor` (nats)."""
    refused = _refused(cells)
    if refused:
        return refused
    known = cells.columns["loss_floor"]
    least = float(min(known[np.isfinite(known)], default=0.0))
    labels = size_labels(cells.columns[SIZE])
    curve = solve(cells, least)
    sd = float(np.sqrt(np.sum(_errors(curve, cells) ** 2) / max(len(cells) - int((curve.coefficients > 0).sum()), 1)))
    return ForecastFit(curve, WIDTH * _left_out(cells, labels, least), sd, _backtest(cells, labels, least, sd), len(cells))


def _refused(cells: Configurations) -> Refusal | None:
    for column in ("n_layer", "n_embd", SIZE):
        if not len(cells) or not np.isfinite(cells.columns[column]).all():
            return Refusal(Code.MISSING, f"some configurations have no {column}, which the forecasting law needs")
    if len(np.unique(cells.columns["n_tokens"])) > 1:
        return Refusal(
            Code.UNMATCHED, "the configurations have several training lengths, and the forecasting law is of one; fit each length alone"
        )
    if (sizes := int(size_labels(cells.columns[SIZE]).max()) + 1) < MIN_SIZES:
        return Refusal(Code.TOO_FEW_SIZES, f"a forecast needs {MIN_SIZES} sizes and there are {sizes}; add {MIN_SIZES - sizes} more")
    if len(cells) < MIN_CONFIGURATIONS:
        return Refusal(Code.TOO_FEW_DF, f"a forecast needs {MIN_CONFIGURATIONS} configurations and there are {len(cells)}; add some")
    if len(np.unique(cells.columns["n_layer"])) < 2 and len(np.unique(cells.columns["n_embd"])) < 2:
        return Refusal(Code.NO_VARIATION, "all configurations have one depth and one width, so what varies their size is not known")
    return None


# ---- solving ----


def _features(columns: Mapping[str, Floats], exponents: tuple[float, float, float], reference: float) -> Floats:
    depth, width, size = columns["n_layer"], columns["n_embd"], columns[SIZE] / reference
    return np.stack([np.ones_like(depth), depth ** -exponents[0], width ** -exponents[1], size ** -exponents[2]], axis=1)


def solve(cells: Configurations, floor: float, exponents: tuple[float, float, float] = EXPONENTS) -> Curve:
    """The law with these exponents: non-negative least squares on relative residuals of the means."""
    reference = float(np.exp(np.mean(np.log(cells.columns[SIZE]))))
    scaled = _features(cells.columns, exponents, reference) / cells.loss[:, None]
    length = np.linalg.norm(scaled, axis=0)
    return Curve(_nonnegative(scaled / length, 1 - floor / cells.loss) / length, exponents, floor, reference)


def _nonnegative(features: Floats, target: Floats) -> Floats:
    """Least squares with no coefficient below 0: of the subsets of features whose own solution is allowed, the best.

    With four features that is exact and quick; scipy.optimize would take a third of what the whole analysis needs to start.
    """
    least, found = float(target @ target), np.zeros(features.shape[1])
    for used in SUBSETS:
        own = np.linalg.lstsq(features[:, used], target, rcond=None)[0]
        rest = target - features[:, used] @ own
        if (own >= 0).all() and rest @ rest < least - 1e-12 * float(target @ target):  # of equally good ones the smallest, not rounding's
            least, found = float(rest @ rest), np.zeros(features.shape[1])
            found[used] = own
    return found


def _errors(curve: Curve, cells: Configurations) -> Floats:
    """Relative errors of a curve, (configurations,)."""
    return curve.predict(cells.columns) / cells.loss - 1


def _left_out(cells: Configurations, labels: NDArray[np.intp], floor: float) -> float:
    """Root mean square relative error of predicting each size from all others."""
    errors = [_errors(solve(cells.take(labels != size), floor), cells.take(labels == size)) for size in np.unique(labels)]
    return float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))


def _backtest(cells: Configurations, labels: NDArray[np.intp], floor: float, scatter: float) -> dict[str, Any] | None:
    rows, errors = [], []
    for size in range(MIN_SIZES - 1, int(labels.max()) + 1):
        before, here = cells.take(labels < size), cells.take(labels == size)
        if len(before) < MIN_CONFIGURATIONS:
            continue
        error = np.abs(_errors(solve(before, floor), here))
        half = WIDTH * _left_out(before, labels[labels < size], floor)
        errors.append(error)
        size_row = {"params": float(np.median(here.columns[SIZE])), "n": len(here), "from_sizes": size}
        rows.append(size_row | {"median_error": float(np.median(error)), "half_width": half, "covered": int((error <= half).sum())})
    if not rows:
        return None
    joined = np.concatenate(errors)
    coverage = sum(row["covered"] for row in rows) / len(joined)
    median = float(np.median(joined))
    return {"rows": rows, "n": len(joined), "median_error": median, "coverage": coverage, "perfect_error": 0.6745 * scatter}
