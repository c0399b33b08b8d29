"""The forecasting law: planted surfaces are forecast, its intervals hold what they promise, and what it does not earn is withheld."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.estimate import SIZE, Code, Refusal
from analysis.fits.forecast_law import ForecastFit, fit_forecast_law
from analysis.table.configurations import Configurations, average
from benchmarks.laws import configurations

SHAPES = [(1, 16), (2, 16), (1, 32), (2, 32), (4, 32), (1, 64), (2, 64), (4, 64), (8, 64), (2, 128), (4, 128), (8, 128), (16, 128)]


def study(scatter: float, seed: int = 0, shapes: list[tuple[int, int]] = SHAPES, floor: float = 0.7, **columns: Any) -> Configurations:
    """Losses of the law's own form with lognormal scatter of the means."""
    depth, width = np.array(shapes, dtype=float).T
    size = 12 * depth * width**2
    loss = floor + 0.2 / depth + 9 / width + 0.3 * (size / 1e5) ** -0.34
    loss = loss * np.exp(scatter * np.random.default_rng(seed).standard_normal(len(size)))
    return configurations({"n_layer": depth, "n_embd": width, SIZE: size} | columns, loss[:, None])


def fitted(cells: Configurations) -> ForecastFit:
    found = fit_forecast_law(cells)
    assert isinstance(found, ForecastFit), found
    return found


def test_its_own_surface_is_recovered_and_continued_exactly() -> None:
    found = fitted(study(0.0))
    size = 12 * 16 * 256**2
    assert found.predict(16, 256, size).value == pytest.approx(0.7 + 0.2 / 16 + 9 / 256 + 0.3 * (size / 1e5) ** -0.34, rel=1e-9)
    assert found.residual_sd < 1e-9


@pytest.mark.parametrize(("known", "floor"), [(0.5, 0.5), (np.nan, 0.2)])
def test_the_floor_is_never_below_the_known_entropy(known: float, floor: float) -> None:
    found = fitted(study(0.0, floor=0.2, loss_floor=np.full(len(SHAPES), known)))
    assert found.predict(1e9, 1e9, 1e30).value == pytest.approx(floor)


def test_intervals_hold_the_next_size_in_nine_of_ten_small_studies() -> None:
    held = []
    for seed in range(200):
        cells = study(0.015, seed)
        largest = int(np.argmax(cells.columns[SIZE]))
        found = fitted(cells.take(np.arange(len(cells)) != largest))
        made = found.predict(*(float(cells.columns[name][largest]) for name in ("n_layer", "n_embd", SIZE)))
        if made.low is not None and made.high is not None:
            held.append(made.low <= cells.loss[largest] <= made.high)
    assert len(held) > 100
    assert np.mean(held) > 0.88  # 91 % of 12 shapes, one a size, forecasting twice the largest


@pytest.mark.parametrize(("text", "error", "half"), [("study_matched", 0.016, 0.072), ("study_matched_tinystories", 0.0105, 0.041)])
def test_the_recorded_studies_forecast_their_largest_size(text: str, error: float, half: float) -> None:
    found = fitted(average(pd.read_parquet(f"benchmarks/results/{text}.parquet")))
    assert found.backtest is not None
    last = found.backtest["rows"][-1]
    assert last["covered"] == last["n"] == 6
    assert last["median_error"] <= error
    assert last["half_width"] <= half


def test_no_interval_where_the_backtest_does_not_earn_one() -> None:
    cells = study(0.002)
    cells.loss[-5:] *= 1.3  # the largest sizes follow another law
    found = fitted(cells)
    assert isinstance(found.interval_refused, Refusal)
    assert found.interval_refused.code == Code.BACKTEST_FAILS
    assert found.predict(16, 256, 1e7).low is None


@pytest.mark.parametrize(
    ("cells", "code"),
    [
        (study(0.01).take([0, 1, 2]), Code.TOO_FEW_SIZES),
        (study(0.01).take([0, 1, 2, 3, 4]), Code.TOO_FEW_DF),
        (study(0.01, n_tokens=np.r_[np.full(6, 1e6), np.full(7, 2e6)]), Code.UNMATCHED),
        (study(0.01, shapes=[(1, 1)] * 6, **{SIZE: np.geomspace(1e5, 1e7, 6)}), Code.NO_VARIATION),
    ],
)
def test_designs_that_allow_no_forecast_are_refused(cells: Configurations, code: Code) -> None:
    found = fit_forecast_law(cells)
    assert isinstance(found, Refusal)
    assert found.code == code
