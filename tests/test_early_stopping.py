"""Stopping within a size leaves the slope; ranking sizes together loses small sizes and with them the slope. Replayed on known curves."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.table import load as tables
from benchmarks import early_stopping as bench
from benchmarks.early_stopping import Rule, Run, compare, outcome, read_runs, replay
from study import records
from tests.conftest import BATCH, BLOCK, N_STEPS, synthetic_row

WIDTHS = (16, 24, 32, 48, 64, 96, 128)
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)
SEEDS = (1, 2, 3)


def write_tuned(results: Path, by: str, evaluations: int = 25) -> Path:
    """Seven sizes, each at five learning rates (or five seeds), with curves L = E + A N^-a (1 + c ln^2(lr/best)) + B(N) step^-b.

    The best rate falls with the size; large models start no lower than small ones and gain more slowly per step relative to their floor.
    """
    rng = np.random.default_rng(3)
    trials, curves = [], []
    steps = np.linspace(N_STEPS / evaluations, N_STEPS, evaluations).astype(int)
    for width in WIDTHS:
        for number, rate in enumerate(RATES if by == "rate" else RATES[:1]):
            for seed in SEEDS if by == "rate" else range(1, 6):
                row = synthetic_row((2, width, 4), seed, rng)
                ratio = row["params_non_embedding"] / 1e5
                off = np.log(rate / (4e-3 * ratio**-0.2)) if by == "rate" else 0.0
                end = 0.55 + 0.6 * ratio**-0.3 * (1 + 0.05 * off**2) + float(rng.normal(0, 0.006))
                losses = end + 1.6 * ratio**0.05 * ((steps / 30.0) ** -0.8 - (N_STEPS / 30.0) ** -0.8)
                name = f"{width}r{number}"
                identity = {
                    "trial_id": f"{name}-s{seed}",
                    "config_id": name,
                    "lr": rate,
                    "sweeps": ["width"],
                    "val_loss": end,
                    "loss_floor": None,
                }
                trials.append({**row, **identity})
                curves += [
                    {"trial_id": f"{name}-s{seed}", "step": int(s), "tokens": int(s) * BATCH * BLOCK, "val_loss": float(v)}
                    for s, v in zip(steps, losses, strict=True)
                ]
    records.write_table(results / "trials.parquet", records.to_table("trials", trials))
    records.write_table(results / "curves.parquet", records.to_table("curves", curves))
    (results / "study.json").write_text(json.dumps({"name": by}))
    return results


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tuned(tmp_path_factory.mktemp("tuned"), "rate")


def curve(name: str, losses: list[float], group: int = 0, step_time: float = 1.0) -> Run:
    return Run(name, group, np.arange(1, len(losses) + 1) * 100, np.array(losses), step_time)


# ---- both directions ----


def test_stopping_within_a_size_keeps_the_slope_and_ranking_sizes_together_loses_it(tuned: Path) -> None:
    whole, within, across = compare(tuned, Rule(), n_replays=12)
    assert whole["sizes"] == len(WIDTHS)
    assert within["within"] >= 0.9
    assert within["undefined"] == 0
    assert within["sizes"] == len(WIDTHS)
    assert within["smallest_kept"] == 1
    assert within["slope"] == pytest.approx(whole["slope"], abs=0.02)
    assert within["steps"] < 0.75
    assert across["smallest_kept"] < 0.4
    assert across["sizes"] < 0.75 * len(WIDTHS)
    assert across["within"] < 0.3
    assert across["width"] > 10 * whole["width"]


def test_stopping_among_seeds_of_a_size_keeps_the_slope(tmp_path: Path) -> None:
    whole, within, _ = compare(write_tuned(tmp_path, "seed"), Rule(), n_replays=12)
    assert within["within"] >= 0.9
    assert within["sizes"] == whole["sizes"]


def test_the_verdict_says_both_in_words(tuned: Path) -> None:
    said = " ".join(bench.verdict(compare(tuned, Rule(), n_replays=3)))
    assert "slope of the whole study -0.1" in said
    assert "7.0 sizes remain" in said
    assert "ranking sizes together: the smallest size is left in" in said


def test_equal_seeds_give_equal_outcomes(tuned: Path) -> None:
    table = tables.load(tuned)
    runs = read_runs(table)
    first, second = (outcome(table, runs, Rule(), 2, True, np.random.default_rng(5)) for _ in range(2))
    assert first == second


# ---- the rule itself ----


def test_a_rung_stops_what_is_worse_than_the_best_third_before_it() -> None:
    good, middle, bad = ([level + 1 / k for k in range(1, 11)] for level in (1.0, 2.0, 3.0))
    rule = Rule(grace=0.2, eta=3, slots=1)
    assert bench.rungs(curve("a", good), rule) == [1, 5]
    assert replay([curve("g", good), curve("m", middle), curve("b", bad)], rule) == {"g": 1000, "m": 200, "b": 200}
    assert replay([curve("b", bad), curve("m", middle), curve("g", good)], rule) == {
        "b": 1000,
        "m": 1000,
        "g": 1000,
    }  # each the best so far
    apart = [curve("g", good, 0), curve("m", middle, 1), curve("b", bad, 2)]
    assert set(replay(apart, rule).values()) == {1000}


def test_runs_side_by_side_meet_the_rungs_in_the_order_of_their_times() -> None:
    good, bad = ([level + 1 / k for k in range(1, 11)] for level in (1.0, 3.0))
    rule = Rule(grace=0.2, eta=3, slots=2)
    assert replay([curve("b", bad), curve("g", good, step_time=0.5)], rule) == {"b": 200, "g": 1000}
    assert replay([curve("b", bad), curve("g", good, step_time=2.0)], rule) == {"b": 1000, "g": 1000}


def test_a_run_that_diverges_is_stopped_and_counts_against_nobody() -> None:
    rule = Rule(grace=0.2, eta=3, slots=1)
    runs = [curve("d", [float("nan"), 1.0, 1.0, 1.0, 1.0]), curve("g", [3.0, 2.0, 1.5, 1.2, 1.1])]
    assert replay(runs, rule) == {"d": 100, "g": 500}


def test_sizes_within_five_per_cent_compete_and_others_do_not(tuned: Path) -> None:
    runs = read_runs(tables.load(tuned))
    assert len({run.group for run in runs}) == len(WIDTHS)
    assert len(runs) == len(WIDTHS) * len(RATES) * len(SEEDS)


@pytest.mark.parametrize("change", [{"grace": 0.0}, {"grace": 1.0}, {"eta": 1.0}, {"slots": 0}])
def test_impossible_rules_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="grace lies between 0 and 1"):
        replace(Rule(), **change)  # type: ignore[arg-type]


def test_a_study_without_curves_or_slope_is_refused_in_words(tmp_path: Path) -> None:
    rows = [synthetic_row((2, width, 4), 1, np.random.default_rng(0)) for width in (16, 32)]
    records.write_table(tmp_path / "trials.parquet", records.to_table("trials", rows))
    with pytest.raises(ValueError, match="holds 0 trials with a curve; give the results of a study that was run in full"):
        compare(tmp_path, Rule(), 1)
