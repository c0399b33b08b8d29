"""The shape law finds effects that were planted, and says which question the data do not answer."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.estimate import Code, Estimate, Refusal, Verdict
from analysis.fits.shape_law import ShapeFit, fit_shape_law
from analysis.table.configurations import Configurations, average

GRID = ((1, 2, 4, 8), (24, 48, 96, 192))
Surface = Callable[[np.ndarray, np.ndarray], np.ndarray]


def configurations(
    surface: Surface,
    levels: tuple[tuple[int, ...], tuple[int, ...]] = GRID,
    noise: float = 0.0,
    fit: float = 0.0,
    seeds: int = 3,
    study: int = 5,
) -> Configurations:
    """A depth x width grid with planted losses, noise between seeds and lack of fit (both of log loss)."""
    rng = np.random.default_rng(study)
    depth, width = np.array(list(itertools.product(*levels)), dtype=float).T
    log_loss = (
        np.log(surface(depth, width))[:, None]
        + fit * rng.standard_normal((len(depth), 1))
        + noise * rng.standard_normal((len(depth), seeds))
    )
    loss, k = np.exp(log_loss), len(depth)
    columns = {"n_layer": depth, "n_embd": width, "aspect": width / depth, "n_tokens": np.full(k, 1e6)}
    ids = np.array([f"{d:g}x{w:g}" for d, w in zip(depth, width, strict=True)], dtype=object)
    cell = np.repeat(np.arange(k), seeds)
    return Configurations(
        ids, columns, loss.mean(axis=1), np.full(k, seeds), ((),) * k, cell, np.tile(np.arange(seeds), k), loss.reshape(-1)
    )


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
    found = fitted(configurations(power(a, b)))
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
    found = [fitted(configurations(power(a, b), noise=0.01, study=study)) for study in range(8)]
    for factor, wanted in (("n_layer", depth), ("n_embd", width)):
        verdicts = [number(study.gain(factor, 3, 70)).verdict for study in found]
        assert verdicts.count(wanted) >= 6, (factor, verdicts)  # 95 % intervals: more than two of eight wrong has a chance of .6 %


def test_only_size_matters_where_kappa_holds_zero() -> None:
    kappa = number(fitted(configurations(power(0.2, 0.4), noise=0.01, fit=0.01)).kappa)
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
    assert not found.curvature.clear
    assert not found.interaction.clear


def test_a_best_aspect_is_found_and_kappa_withheld() -> None:
    def bowl(depth: np.ndarray, width: np.ndarray) -> np.ndarray:
        return 0.8 + 0.9 * (depth * width**2 / 15000) ** -0.2 * np.exp(0.1 * np.log(width / depth / 20) ** 2)

    found = fitted(configurations(bowl, noise=0.005))
    assert found.curvature.clear
    assert isinstance(found.kappa, Refusal)
    optimum = found.optimum
    assert isinstance(optimum, Estimate)
    assert optimum.low is not None
    assert optimum.high is not None
    assert optimum.low < 20 < optimum.high < 30


def test_a_worst_aspect_inside_withholds_kappa_and_keeps_the_average_exponents() -> None:
    def hill(depth: np.ndarray, width: np.ndarray) -> np.ndarray:
        return np.asarray(0.8 + 0.5 * (depth * width**2 / 5000) ** -0.25 * np.exp(-0.08 * np.log(width / depth / 12) ** 2))

    found = fitted(configurations(hill, noise=0.003))
    assert found.curvature.clear
    assert isinstance(found.kappa, Refusal)
    assert isinstance(found.optimum, Refusal)
    assert isinstance(found.a, Estimate)
    assert isinstance(found.b, Estimate)


def test_an_interaction_gives_local_exponents_and_withholds_kappa() -> None:
    def crossed(depth: np.ndarray, width: np.ndarray) -> np.ndarray:
        x, y = np.log(depth / 8**0.5), np.log(width / 4608**0.5)
        return 0.8 + 0.9 * np.exp(-0.2 * x - 0.4 * y - 0.1 * x * y)

    found = fitted(configurations(crossed, noise=0.003))
    assert found.interaction.clear
    assert found.interaction.coefficient == pytest.approx(0.1, abs=0.02)
    assert isinstance(found.kappa, Refusal)
    assert number(found.a).value == pytest.approx(0.2, abs=0.03)


def test_designs_that_cannot_tell_are_refused() -> None:
    cells = configurations(power(0.2, 0.4), noise=0.01)
    doublings = tuple(2**k for k in range(8))
    square = configurations(power(0.2, 0.4), (doublings, tuple(24 * n for n in doublings)), noise=0.01)
    mixed = cells.take(np.arange(16))
    mixed.columns["n_tokens"] = np.repeat([1e6, 2e6], 8)
    for found, code in (
        (fit_shape_law(cells.take(np.arange(7))), Code.NO_VARIATION),  # two depths
        (fit_shape_law(configurations(power(0.2, 0.4), (GRID[0], (24, 96)))), Code.NO_VARIATION),
        (fit_shape_law(cells.take([0, 1, 2, 4, 5, 8, 10])), Code.TOO_FEW_DF),
        (fit_shape_law(square.take(np.arange(0, 64, 9))), Code.COLLINEAR),  # the diagonal
        (fit_shape_law(mixed), Code.UNMATCHED),
    ):
        assert isinstance(found, Refusal)
        assert found.code == code


def test_a_floor_whose_interval_reaches_zero_is_refused_with_its_bound_and_kappa_stays() -> None:
    found = fitted(configurations(power(0.05, 0.1, floor=0.2), noise=0.02))
    assert isinstance(found.E, Refusal)
    assert found.E.code == Code.FLOOR_REACHES_ZERO
    assert isinstance(found.kappa, Estimate)


@pytest.mark.parametrize(("place", "kind", "seed"), [(slice(15, 18), "configuration", None), (slice(16, 17), "seed", 1)])
def test_a_far_configuration_and_a_far_seed_are_named(place: slice, kind: str, seed: int | None) -> None:
    cells = configurations(power(0.1, 0.5), noise=0.005)
    cells.cell_loss[place] *= 1.15
    named = fitted(cells).outliers
    assert [(o.kind, o.config_id, o.seed) for o in named if o.kind == kind] == [(kind, "2x48", seed)]
    assert not fitted(configurations(power(0.1, 0.5), noise=0.005)).outliers


def test_a_mean_of_many_seeds_weighs_more_than_a_single_one() -> None:
    cells = configurations(power(0.1, 0.5), noise=0.01)
    keep = np.r_[0:45, 45]  # the largest configuration keeps one seed
    cut = {name: getattr(cells, name)[keep] for name in ("cell_config", "cell_seed", "cell_loss")}
    fewer = replace(cells, n_seeds=np.r_[np.full(15, 3), 1], **cut)
    weights = fitted(fewer).means.data.weights[0]
    assert weights[15] < weights[0]
