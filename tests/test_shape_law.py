"""The shape law finds effects that were planted, and says which question the data do not answer."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.estimate import Code, Estimate, Refusal, Verdict
from analysis.fits.laws import SHAPE, SHAPE_CROSSED
from analysis.fits.shape_law import CURVED, ShapeFit, fit_shape_law
from analysis.table.configurations import Configurations, average
from benchmarks.laws import configurations

GRID = ((1, 2, 4, 8), (24, 48, 96, 192))
Surface = Callable[[np.ndarray, np.ndarray], np.ndarray]


def study(
    surface: Surface, levels: tuple[tuple[int, ...], ...] = GRID, noise: float = 0.0, fit: float = 0.0, **columns: Any
) -> Configurations:
    """A depth x width grid with planted losses in three seeds, noise between seeds and lack of fit (both of log loss)."""
    rng = np.random.default_rng(columns.pop("seed", 5))
    depth, width = np.array(list(itertools.product(*levels)), dtype=float).T
    scatter = fit * rng.standard_normal((len(depth), 1)) + noise * rng.standard_normal((len(depth), 3))
    return configurations({"n_layer": depth, "n_embd": width} | columns, surface(depth, width)[:, None] * np.exp(scatter))


def power(a: float, b: float, floor: float = 0.8) -> Surface:
    return lambda depth, width: floor + 0.9 * (depth / 3) ** -a * (width / 70) ** -b


def fitted(cells: Configurations) -> ShapeFit:
    found = fit_shape_law(cells)
    assert isinstance(found, ShapeFit), found
    return found


def number(cell: Estimate | Refusal) -> Estimate:
    assert isinstance(cell, Estimate), cell
    return cell


@pytest.mark.parametrize(("a", "b"), [(0.2, 0.4), (0.03, 0.6), (-0.05, 0.5), (0.5, 0.1)])
def test_exponents_of_exact_data_are_exact(a: float, b: float) -> None:
    found = fitted(study(power(a, b)))
    wanted = {"E": 0.8, "a": a, "b": b, "alpha": (a + b) / 3, "kappa": b - 2 * a}
    assert {name: number(getattr(found, name)).value for name in wanted} == pytest.approx(wanted, abs=1e-6)
    law, g = power(a, b), found.gain("params", 3, 70)
    assert number(g).value == pytest.approx(law(3 / 2 ** (1 / 6), 70 / 2 ** (1 / 6)) - law(3 * 2 ** (1 / 6), 70 * 2 ** (1 / 6)), abs=1e-7)
    assert found.predict(16, 256) == pytest.approx(law(16, 256), abs=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "depth", "width"),
    [(0.0, 0.4, Verdict.NOT_TOLD, Verdict.GAIN), (0.4, 0.0, Verdict.GAIN, Verdict.NOT_TOLD), (0.2, 0.4, Verdict.GAIN, Verdict.GAIN)],
)
def test_a_planted_lever_is_clear_and_an_absent_one_is_not(a: float, b: float, depth: Verdict, width: Verdict) -> None:
    found = [fitted(study(power(a, b), noise=0.01, seed=seed)) for seed in range(8)]
    for factor, wanted in (("n_layer", depth), ("n_embd", width)):
        verdicts = [number(one.gain(factor, 3, 70)).verdict for one in found]
        assert verdicts.count(wanted) >= 6, (factor, verdicts)  # 95 % intervals: more than two of eight wrong has a chance of .6 %


def test_only_size_matters_where_kappa_holds_zero() -> None:
    kappa = number(fitted(study(power(0.2, 0.4), noise=0.01, fit=0.01)).kappa)
    assert kappa.low is not None
    assert kappa.high is not None
    assert kappa.low < 0 < kappa.high
    assert kappa.high - kappa.low < 0.3


@pytest.mark.parametrize(("text", "kappa", "gains"), [
    ("study_matched", (0.52, 0.29, 0.76), {"n_embd": 0.195, "n_layer": 0.011, "params": 0.068}),
    ("study_matched_tinystories", (0.79, 0.57, 1.03), {"n_embd": 0.1295, "n_layer": -0.0035, "params": 0.042}),
])  # fmt: skip
def test_the_recorded_studies_give_what_they_gave(text: str, kappa: tuple[float, ...], gains: dict[str, float]) -> None:
    found = fitted(average(pd.read_parquet(f"benchmarks/results/{text}.parquet")))
    got = number(found.kappa)
    assert (got.value, got.low, got.high) == pytest.approx(kappa, abs=0.006)
    center = found.reference["n_layer"], found.reference["n_embd"]
    assert {name: number(found.gain(name, *center)).value for name in gains} == pytest.approx(gains, abs=6e-4)
    assert isinstance(found.E, Estimate)
    assert found.law == SHAPE


def bowl(curvature: float, alpha: float, optimum: float) -> Surface:
    return lambda depth, width: 0.8 + 0.7 * (depth * width**2 / 1e4) ** -alpha * np.exp(curvature * np.log(width / depth / optimum) ** 2)


def test_a_best_aspect_is_found_and_kappa_withheld() -> None:
    found = fitted(study(bowl(0.1, 0.2, 20), noise=0.005))
    assert found.law == CURVED
    assert isinstance(found.kappa, Refusal)
    assert isinstance(found.optimum, Estimate)
    assert found.optimum.low is not None
    assert found.optimum.high is not None
    assert found.optimum.low < 20 < found.optimum.high < 30


def test_a_worst_aspect_inside_withholds_kappa_and_keeps_the_average_exponents() -> None:
    found = fitted(study(bowl(-0.08, 0.25, 12), noise=0.003))
    assert found.law == CURVED
    assert [type(part) for part in (found.kappa, found.optimum, found.a, found.b)] == [Refusal, Refusal, Estimate, Estimate]


def test_an_interaction_gives_local_exponents_and_withholds_kappa() -> None:
    def crossed(depth: np.ndarray, width: np.ndarray) -> np.ndarray:
        x, y = np.log(depth / 8**0.5), np.log(width / 4608**0.5)
        return 0.8 + 0.9 * np.exp(-0.2 * x - 0.4 * y - 0.1 * x * y)

    found = fitted(study(crossed, noise=0.003))
    assert found.law == SHAPE_CROSSED
    assert found.means.design.to_params(found.means.theta)["c"][0] == pytest.approx(0.1, abs=0.02)
    assert isinstance(found.kappa, Refusal)
    assert number(found.a).value == pytest.approx(0.2, abs=0.03)


PLANE = study(power(0.2, 0.4), noise=0.01)
DOUBLINGS = tuple(2**k for k in range(8))
SQUARE = study(power(0.2, 0.4), (DOUBLINGS, tuple(24 * n for n in DOUBLINGS)), noise=0.01)


@pytest.mark.parametrize(
    ("cells", "code"),
    [
        (PLANE.take(np.arange(7)), Code.NO_VARIATION),  # two depths
        (study(power(0.2, 0.4), (GRID[0], (24, 96))), Code.NO_VARIATION),
        (PLANE.take([0, 1, 2, 4, 5, 8, 10]), Code.TOO_FEW_DF),
        (SQUARE.take(np.arange(0, 64, 9)), Code.COLLINEAR),  # the diagonal
        (study(power(0.2, 0.4), n_tokens=np.repeat([1e6, 2e6], 8)), Code.UNMATCHED),
    ],
)
def test_designs_that_cannot_tell_are_refused(cells: Configurations, code: Code) -> None:
    found = fit_shape_law(cells)
    assert isinstance(found, Refusal)
    assert found.code == code


def test_a_floor_whose_interval_reaches_zero_is_refused_with_its_bound_and_kappa_stays() -> None:
    found = fitted(study(power(0.05, 0.1, floor=0.2), noise=0.02))
    assert isinstance(found.E, Refusal)
    assert found.E.code == Code.FLOOR_REACHES_ZERO
    assert isinstance(found.kappa, Estimate)


@pytest.mark.parametrize(("place", "kind", "seed"), [(slice(15, 18), "configuration", None), (slice(16, 17), "seed", 1)])
def test_a_far_configuration_and_a_far_seed_are_named(place: slice, kind: str, seed: int | None) -> None:
    cells = study(power(0.1, 0.5), noise=0.005)
    cells.cell_loss[place] *= 1.15
    named = fitted(cells).outliers
    assert [(o.kind, o.config_id, o.seed) for o in named if o.kind == kind] == [(kind, "c5", seed)]
    assert not fitted(study(power(0.1, 0.5), noise=0.005)).outliers


def test_a_mean_of_many_seeds_weighs_more_than_a_single_one() -> None:
    cells = study(power(0.1, 0.5), noise=0.01)
    keep = np.r_[0:45, 45]  # the largest configuration keeps one seed
    cut = {name: getattr(cells, name)[keep] for name in ("cell_config", "cell_seed", "cell_loss")}
    fewer = replace(cells, n_seeds=np.r_[np.full(15, 3), 1], **cut)
    weights = fitted(fewer).means.data.weights[0]
    assert weights[15] < weights[0]
