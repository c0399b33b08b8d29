"""Levers over training length: planted gains, and the length from which a planted lever pays, are recovered; their intervals cover."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.estimate import Refusal
from analysis.findings.conclude import clean, conclude
from analysis.findings.size_law import Fitted, fit_size_law
from analysis.findings.training_length import Longer, longer, over_length
from analysis.fits.length_law import fit_length_law
from analysis.report.answer import recommendation, trust
from analysis.report.tables import twice_listing
from analysis.table.configurations import SHAPE, Configurations, Noise, average, measure_noise, t_quantile
from analysis.table.load import load
from analysis.wording import text_length
from tests.test_levers import Loss, trials

HORIZON = Path(__file__).parents[1] / "benchmarks/results/study_horizon.parquet"
LENGTHS = tuple(768_000 * 2**k for k in range(5))
SD, SHARED = 0.012, 0.012
"""Scatter of a length, and of a run that its lengths share, nats."""


def depth_pays(tokens: int) -> float:
    """Nats that a doubling of depth buys: nothing at the shortest length, a tenth of a nat at the longest."""
    return 0.1 * (math.log2(tokens / LENGTHS[0])) / 4 - 0.005


def loss(depth: int, width: int, head: int, tokens: int) -> float:
    return 2.0 - depth_pays(tokens) * math.log2(depth) - 0.25 * math.log2(width / 16) - 0.2 * math.log2(tokens / LENGTHS[0])


def planted(sd: float = 0.0, shared: float = 0.0, loss: Loss = loss, unique_tokens: int = 13_000_000, **how: Any) -> Configurations:
    return average(trials(lengths=LENGTHS, loss=loss, sd=sd or 1e-6, shared=shared, seeds=2, unique_tokens=unique_tokens, **how))


def over(cells: Configurations, noise: Noise | None = None) -> dict[str, Any]:
    """What fits.json holds of it."""
    found: dict[str, Any] = clean(over_length(cells, noise or measure_noise(cells)))
    return found


def depth_course(found: dict[str, Any]) -> dict[str, Any]:
    return next(course for course in found["courses"] if course["factor"] == "n_layer")


def test_the_gain_at_each_length_and_its_growth_are_those_planted_and_the_best_shape_of_each_size_is_named() -> None:
    found = over(planted())
    course = depth_course(found)
    assert [row["gain"]["value"] for row in course["gains"]] == pytest.approx([depth_pays(n) for n in LENGTHS], abs=1e-5)
    assert course["per_doubling_of_text"]["value"] == pytest.approx(0.025, abs=1e-5)
    assert {(row["best"]["n_layer"], row["best"]["n_embd"]) for row in found["best_shapes"]} <= {(1, 32), (2, 32), (1, 64), (2, 64)}


@pytest.mark.parametrize("studies", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_the_length_from_which_depth_pays_lies_in_its_interval(studies: int) -> None:
    detectable = t_quantile(12 * len(LENGTHS) - 1) * math.hypot(SD, SHARED)  # of two configurations, beyond the planted scatter
    truth = LENGTHS[0] * 2 ** ((detectable + 0.005) / 0.025)
    rng, hits = np.random.default_rng(5), 0
    for _ in range(studies):
        crossing = depth_course(over(planted(SD, SHARED, rng=rng)))["crossing"]
        assert "refused" not in crossing
        hits += (crossing["low"] or 0) <= truth <= (crossing["high"] or math.inf)
    assert hits / studies >= 0.95 - 2.6 * math.sqrt(0.95 * 0.05 / studies)
    assert studies < 200 or hits / studies <= 0.99


@pytest.mark.parametrize(("shift", "bound"), [(-0.3, {"upper": float(LENGTHS[0])}), (0.3, {"lower": float(LENGTHS[-1])})])
def test_where_it_pays_at_all_lengths_or_at_none_the_crossing_is_refused_with_what_is_known(shift: float, bound: dict[str, float]) -> None:
    noise = Noise(0.02, 20, 0.01, 0.03, 0.02, 20, True, 2, 0.04, None, None)
    crossing = depth_course(over(planted(loss=lambda d, w, h, n: loss(d, w, h, n) + shift * math.log2(d)), noise))["crossing"]
    assert crossing["refused"]["code"] == "beyond_one_log_range"
    assert crossing["bound"] == pytest.approx(bound)


def test_text_seen_more_than_once_is_left_out() -> None:
    assert over(planted(0.01, unique_tokens=4_000_000))["lengths"] == [n for n in LENGTHS if n <= 4_000_000]


def test_a_length_whose_seeds_are_still_under_way_takes_nothing_from_the_others() -> None:
    rows = trials(lengths=LENGTHS, loss=loss, sd=0.01, seeds=2, unique_tokens=13_000_000)
    cells = average(rows[~((rows["n_tokens"] == LENGTHS[-1]) & (rows["seed"] == 1) & (rows["n_embd"] == 16))])
    assert over(cells)["lengths"] == list(LENGTHS[:-1])


# ---- longer than was trained ----


def flattening(depth: int, width: int, head: int, tokens: int) -> float:
    """A floor and an amplitude that both depend on the shape, in a way that no sum of a law of size and a law of text has."""
    return 0.4 + 8 / width + (0.6 + 0.2 * math.log2(depth)) * (tokens / LENGTHS[0]) ** -0.6


def law_of(cells: Configurations) -> Longer:
    found = longer(cells)
    assert isinstance(found, Longer)
    return found


def test_the_law_of_length_recovers_what_was_planted_and_foretells_it_no_further_than_it_was_tested() -> None:
    found = law_of(planted(1e-9, loss=flattening))
    assert found.law.beta == pytest.approx(0.6, rel=0.01)  # the step between the exponents that are tried
    for row in clean(found)["twice"]:
        truth = flattening(row["n_layer"], row["n_embd"], 4, row["n_tokens"])
        assert row["n_tokens"] == 2 * LENGTHS[-1]
        assert row["forecast"]["low"] <= truth <= row["forecast"]["high"]
        assert row["forecast"]["value"] == pytest.approx(truth, rel=1e-3)
    assert found.law.predict(0, 4 * LENGTHS[-1]).low is None


def test_its_interval_holds_the_next_length_of_most_shapes() -> None:
    rng, inside = np.random.default_rng(6), []
    for _ in range(40):
        rows = clean(law_of(planted(SD, SHARED, flattening, rng=rng)))["twice"]
        truth = [flattening(row["n_layer"], row["n_embd"], 4, row["n_tokens"]) for row in rows]
        inside.append(np.mean([row["forecast"]["low"] <= t <= row["forecast"]["high"] for row, t in zip(rows, truth, strict=True)]))
    assert np.mean(inside) >= 0.9


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([[2.0, 1.5]], "trained at 3 lengths"),
        ([[2.0, 1.5, 1.25]], "degrees of freedom"),
        ([[2.0, 1.99, 1.97, 1.93]] * 4, "do not flatten"),
    ],
)
def test_lengths_that_determine_no_law_are_refused(losses: list[list[float]], reason: str) -> None:
    tokens = np.array(LENGTHS[: len(losses[0])], dtype=float)
    found = fit_length_law(tokens, np.array(losses))
    assert isinstance(found, Refusal)
    assert reason in found.reason


def test_a_floor_is_never_below_the_entropy_of_the_text() -> None:
    tokens = np.array(LENGTHS, dtype=float)
    rows = np.stack([0.5 + scale * (tokens / LENGTHS[0]) ** -0.3 for scale in (1.0, 1.5, 2.0)])
    found = fit_length_law(tokens, rows, floor=0.7)
    assert not isinstance(found, Refusal)
    assert (found.floor >= 0.7).all()


def test_on_horizon_it_errs_less_than_half_as_much_as_the_additive_law() -> None:
    cells = average(load(HORIZON).trials)
    early = cells.take(cells.columns["n_tokens"] < 6_000_000)
    late = cells.take(cells.columns["n_tokens"] == 6_144_000)
    known, additive = law_of(early), fit_size_law("joint", "", early)
    assert isinstance(additive, Fitted)
    wanted = [known.find(shape) for shape in zip(*(late.columns[name] for name in SHAPE), strict=True)]
    own = np.array([known.law.predict(shape, 6_144_000).value for shape in wanted if shape is not None])
    errors = [float(np.median(np.abs(values / late.loss - 1))) for values in (own, additive.result.predict(late.columns))]
    assert errors[0] < 0.02
    assert errors[1] > 2 * errors[0]


@pytest.mark.parametrize("shortest", [768_000, 1_536_000, 3_072_000])
def test_what_quick_says_holds_at_twice_and_four_times_its_length(shortest: int, tmp_path: Path) -> None:
    rows = pd.read_parquet(HORIZON)
    quick = [(depth, 32) for depth in (1, 2, 4, 8)] + [(2, 16), (2, 64)]
    chosen = [shape in quick for shape in zip(rows["n_layer"], rows["n_embd"], strict=True)]
    own = rows[np.array(chosen) & rows["n_tokens"].isin([shortest, 2 * shortest])]
    own.to_parquet(tmp_path / "runs.parquet")
    tree = conclude(load(tmp_path / "runs.parquet"))
    assert recommendation(tree).startswith(f"At {text_length(2 * shortest)} go wider rather than deeper")
    equal = tree["shape"]["equal_size"]
    assert ((equal["winner"]["n_layer"], equal["winner"]["n_embd"]), equal["difference"]["verdict"]) == ((2, 64), "gain")
    depth = next(row for row in tree["levers"] if (row["factor"], row["n_tokens"], row["at"]) == ("n_layer", 2 * shortest, "centre"))
    assert depth["gain_per_doubling"]["verdict"] == "gain"


def test_models_whose_shape_is_not_known_are_forecast_by_their_size(tmp_path: Path) -> None:
    rows = trials(lengths=LENGTHS, loss=flattening, sd=0.005, seeds=2, unique_tokens=13_000_000)
    rows.assign(n_layer=None, n_embd=None, n_head=None).to_parquet(tmp_path / "runs.parquet")
    tree = conclude(load(tmp_path / "runs.parquet"))
    assert all(row["n_layer"] is None and row["params_non_embedding"] for row in tree["length_law"]["twice"])
    assert re.search(r"on twice its text [\d.]+k parameters would reach", trust(tree))
    assert twice_listing(tree).columns[0] == "parameters"
