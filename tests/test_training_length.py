"""Levers over training length: planted gains, and the length from which a planted lever pays, are recovered; their intervals cover."""

import math

import numpy as np
import pytest

from analysis.findings.training_length import over_length
from analysis.table.configurations import Noise, average, measure_noise, t_quantile
from tests.test_levers import trials

LENGTHS = tuple(768_000 * 2**k for k in range(5))
SD, SHARED = 0.012, 0.012
"""Scatter of a length, and of a run that its lengths share, nats."""


def depth_pays(tokens: int) -> float:
    """Nats that a doubling of depth buys: nothing at the shortest length, a tenth of a nat at the longest."""
    return 0.1 * (math.log2(tokens / LENGTHS[0])) / 4 - 0.005


def loss(depth: int, width: int, head: int, tokens: int) -> float:
    return 2.0 - depth_pays(tokens) * math.log2(depth) - 0.25 * math.log2(width / 16) - 0.2 * math.log2(tokens / LENGTHS[0])


def detectable(seeds: int) -> float:
    """Smallest difference of two configurations that is larger than noise, of the planted scatter."""
    return t_quantile((12 * len(LENGTHS) - 1) * (seeds - 1)) * math.hypot(SD, SHARED) * math.sqrt(2 / seeds)


def depth_course(rng: np.random.Generator | None, seeds: int = 2) -> dict:
    sd, shared = (SD, SHARED) if rng else (1e-6, 0.0)
    cells = average(trials(lengths=LENGTHS, loss=loss, sd=sd, shared=shared, seeds=seeds, rng=rng, unique_tokens=13_000_000))
    found = over_length(cells, measure_noise(cells))
    return next(course for course in found["courses"] if course["factor"] == "n_layer")


def test_the_gain_at_each_length_and_its_growth_are_those_planted() -> None:
    course = depth_course(None)
    assert [row["gain"]["value"] for row in course["gains"]] == pytest.approx([depth_pays(n) for n in LENGTHS], abs=1e-5)
    assert course["per_doubling_of_text"]["value"] == pytest.approx(0.025, abs=1e-5)


@pytest.mark.parametrize("studies", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_the_length_from_which_depth_pays_lies_in_its_interval(studies: int) -> None:
    truth = LENGTHS[0] * 2 ** ((detectable(2) + 0.005) / 0.025)
    rng, hits = np.random.default_rng(5), 0
    for _ in range(studies):
        crossing = depth_course(rng)["crossing"]
        assert "refused" not in crossing
        hits += (crossing["low"] or 0) <= truth <= (crossing["high"] or math.inf)
    assert hits / studies >= 0.95 - 2.6 * math.sqrt(0.95 * 0.05 / studies)
    assert studies < 200 or hits / studies <= 0.99


def test_where_it_pays_at_all_lengths_or_at_none_the_crossing_is_refused_with_what_is_known() -> None:
    noise = Noise(0.02, 20, 0.01, 0.03, 0.02, 20, True, 2, 0.04, None, None)
    for shift, bound in ((-0.3, {"upper": float(LENGTHS[0])}), (0.3, {"lower": float(LENGTHS[-1])})):
        rows = trials(lengths=LENGTHS, loss=lambda d, w, h, n, s=shift: loss(d, w, h, n) + s * math.log2(d), sd=1e-6, seeds=2)
        cells = average(rows.assign(unique_tokens=13_000_000))
        crossing = next(c for c in over_length(cells, noise)["courses"] if c["factor"] == "n_layer")["crossing"]
        assert crossing["refused"]["code"] == "beyond_one_log_range"
        assert crossing["bound"] == pytest.approx(bound)


def test_at_equal_size_the_best_shape_of_each_length_is_named() -> None:
    cells = average(trials(lengths=LENGTHS, loss=loss, sd=1e-6, seeds=2, unique_tokens=13_000_000))
    found = over_length(cells, measure_noise(cells))
    assert {(row["best"]["n_layer"], row["best"]["n_embd"]) for row in found["best_shapes"]} <= {(1, 32), (2, 32), (1, 64), (2, 64)}


def test_text_seen_more_than_once_is_left_out() -> None:
    cells = average(trials(lengths=LENGTHS, loss=loss, sd=0.01, seeds=2, unique_tokens=4_000_000))
    found = over_length(cells, measure_noise(cells))
    assert found["lengths"] == [n for n in LENGTHS if n <= 4_000_000]
