"""Learning rates in the report: optima and brackets, slopes with and without tuning, fronts."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.findings import searches
from analysis.findings.conclude import clean
from analysis.report import sections
from analysis.report.document import at
from analysis.table.configurations import average, measure_noise
from analysis.table.evidence import Evidence
from analysis.table.load import Table, load
from study import records
from study.spec import Study, expand
from tests.conftest import synthetic_row

SHAPES = [(1, 64, 4), (2, 16, 4), (2, 32, 4), (2, 64, 4), (2, 96, 4), (4, 64, 4)]
COMMON = 4e-3
DEPTH, WIDTH, RATE = -0.10, -0.25, -0.4


def best_rate(row: dict[str, Any]) -> float:
    """The truth: lr(N) = 6e-3 (N / 1e5)^-0.4."""
    return float(6e-3 * (row["params_non_embedding"] / 1e5) ** RATE)


def loss_at(row: dict[str, Any], lr: float) -> float:
    """The truth: a power law in depth and width at the best rate, a parabola in ln lr around it."""
    tuned = math.exp(1.5 + DEPTH * math.log(row["n_layer"]) + WIDTH * math.log(row["n_embd"]))
    return tuned * math.exp(0.05 * math.log(lr / best_rate(row)) ** 2)


def searched_rows(seed_sd: float = 0.0) -> list[dict[str, Any]]:
    """Six shapes: three seeds at a common rate, a search with one run given up, three seeds near the best rate."""
    rng = np.random.default_rng(0)
    rows = []

    def add(base: dict[str, Any], lr: float, seed: int, **facts: Any) -> None:
        config = f"{base['config_id']}@{lr:.4g}"
        known = {"lr": lr, "seed": seed, "config_id": config, "trial_id": f"{config}-s{seed}", "lr_status": "fixed", "sweeps": ["rates"]}
        rows.append({**base, **known, "val_loss": loss_at(base, lr) + float(rng.normal(0, seed_sd)), **facts})

    for shape in SHAPES:
        base = synthetic_row(shape, 1, rng)
        best = float(f"{best_rate(base) * 1.1:.3g}")
        for lr in (best / 9, best / 2.5, best * 2.5):
            add(base, lr, 1)
        add(base, best * 8, 1, status="STOPPED", n_steps=500, val_loss=9.0)
        for seed in (1, 2, 3):
            add(base, COMMON, seed, sweeps=["shape"])
            add(base, best, seed, lr_status="tuned", sweeps=["shape", "rates"])
    return rows


def stored(folder: Path, rows: list[dict[str, Any]]) -> Table:
    """The rows as a results folder would give them."""
    folder.mkdir(parents=True, exist_ok=True)
    records.write_table(folder / "trials.parquet", records.to_table("trials", rows))
    halfway = [{"trial_id": row["trial_id"], "step": 500, "tokens": 1, "val_loss": min(9.0, row["val_loss"] + 0.5)} for row in rows]
    records.write_table(folder / "curves.parquet", records.to_table("curves", halfway))
    return load(folder)


def concluded(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is concluded about learning rates."""
    table = stored(folder, rows)
    found: dict[str, Any] = clean(searches.learning_rates(table, measure_noise(average(table.trials))))
    return found


def test_optima_and_brackets_are_recovered(tmp_path: Path) -> None:
    found = concluded(tmp_path, searched_rows())
    assert len(found["rows"]) == len(SHAPES)
    for row in found["rows"]:
        assert row["optimum"] == pytest.approx(best_rate(row), rel=0.02)
        assert row["low"] < row["optimum"] < row["high"]
        assert (row["status"], row["n_stopped"]) == ("tuned", 1)


def test_runs_of_a_search_choose_the_rate_and_enter_no_claim(tmp_path: Path) -> None:
    rows = searched_rows()
    old = concluded(tmp_path / "old", rows)
    assert all(row["chosen_by_own_seeds"] for row in old["rows"])
    for row in rows:
        if row["sweeps"] == ["rates"]:
            row |= {"seed": 1001, "lr_status": "searched"}
    best = [row for row in rows if row["lr_status"] == "tuned" and row["seed"] == 1]
    lucky = [
        {**row, "seed": 1001, "trial_id": row["config_id"] + "-s1001", "lr_status": "searched", "val_loss": 0.9 * row["val_loss"]}
        for row in best
    ]
    found = concluded(tmp_path / "new", rows + lucky)
    assert not any(row["chosen_by_own_seeds"] for row in found["rows"])
    assert [row["loss"] for row in found["rows"]] == pytest.approx([row["loss"] for row in old["rows"]], rel=1e-3)  # not the lucky ones
    assert len(load(tmp_path / "new").trials) == len(SHAPES) * 6


def test_depth_and_width_slopes_are_told_with_and_without_tuning(tmp_path: Path) -> None:
    slopes = concluded(tmp_path, searched_rows())["slopes"]
    assert slopes["depth"]["tuned"]["value"] == pytest.approx(DEPTH, abs=0.01)
    assert slopes["width"]["tuned"]["value"] == pytest.approx(WIDTH, abs=0.01)
    for name in ("depth", "width", "size"):
        change = slopes[name]["tuned"]["value"] - slopes[name]["untuned"]["value"]
        assert slopes[name]["change"]["value"] == pytest.approx(change)
    rows = [row for row in searched_rows() if row["status"] == "COMPLETED"]
    common = [math.log(row["val_loss"]) for row in rows if row["lr"] == COMMON and row["seed"] == 1]
    factors = [[1, math.log(d), math.log(w)] for d, w, _ in SHAPES]
    expected = np.linalg.lstsq(np.array(factors), np.array(common), rcond=None)[0]
    assert slopes["depth"]["untuned"]["value"] == pytest.approx(expected[1], abs=1e-6)


def test_a_run_that_was_given_up_brackets_an_optimum_but_its_loss_enters_no_fit(tmp_path: Path) -> None:
    rows = [row for row in searched_rows() if row["lr"] != COMMON and (row["lr"] <= 1.2 * best_rate(row) or row["status"] == "STOPPED")]
    found = concluded(tmp_path, rows)
    given_up = {(row["n_layer"], row["n_embd"]): row["lr"] for row in rows if row["status"] == "STOPPED"}
    assert len(found["rows"]) == len(SHAPES)
    assert all(row["high"] == given_up[row["n_layer"], row["n_embd"]] for row in found["rows"])
    assert all(row["loss"] < 9 for row in found["rows"])


def test_intervals_of_a_regression_cover_their_coefficients() -> None:
    rng = np.random.default_rng(1)
    design = np.column_stack([np.ones(6), np.log([6e3, 2e4, 5e4, 1e5, 2e5, 2.2e5])])
    covered = 0
    for _ in range(1000):
        cell = searches._regression(design, design @ [1.0, -0.3] + rng.normal(0, 0.1, 6))[1]
        covered += cell["low"] <= -0.3 <= cell["high"]
    assert 0.93 <= covered / 1000 <= 0.97


def test_the_studys_own_rate_is_the_one_that_its_trials_have() -> None:
    study = Study(sweeps=("width:n_embd=16,32,128",), lr_exponent=-0.15)
    stated = {"study": {"train": vars(study.train), "model": vars(study.model), "lr_exponent": -0.15, "lr_reference": 0}}
    for trial in expand(study):
        assert searches.own_rate(stated, trial.shape.params_non_embedding) == pytest.approx(trial.train.lr, rel=6e-3)
    assert searches.own_rate({}, 1e5) is None


def test_a_study_at_one_rate_is_told_how_to_tune(tmp_path: Path) -> None:
    found = concluded(tmp_path, [row for row in searched_rows() if row["lr"] == COMMON])
    assert "kind=search" in found["refused"]["reason"]


def test_the_section_lists_optima_slopes_and_runs_each_traced_to_its_place(tmp_path: Path) -> None:
    fits = {"learning_rates": concluded(tmp_path, searched_rows(0.004))}
    section = sections.rates_section(Evidence(tmp_path, fits, [], [], []))
    assert [listing.name for listing in section.listings] == ["rate_optima", "rate_slopes"]
    for listing in section.listings:
        assert all(len(row) == len(listing.columns) for row in listing.rows)
        for cell in (cell for row in listing.rows for cell in row if cell.source):
            at(fits, cell.source)


def test_the_front_of_a_search_over_shapes_marks_dominated_trials_and_those_beyond_a_limit(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = [
        {**synthetic_row(shape, 1, rng), "val_loss": loss, "sweeps": ["arch"]}
        for shape, loss in (((1, 16, 2), 2.0), ((1, 32, 2), 1.8), ((2, 24, 2), 1.9), ((2, 64, 4), 1.5), ((4, 96, 4), 1.2))
    ]
    stored(tmp_path, rows)
    line = "arch:kind=search:against=params:n_layer=1,4:n_embd=16,96:max_params=200K"
    (tmp_path / "study.json").write_text(json.dumps({"study": {"sweeps": ["width:n_embd=16,32", line]}}))
    (found,) = searches.fronts(load(tmp_path))
    verdicts = {(row["n_layer"], row["n_embd"]): row["verdict"] for row in found["rows"]}
    on, off = "on the front", "dominated"
    assert verdicts == {(1, 16): on, (1, 32): on, (2, 24): off, (2, 64): on, (4, 96): "beyond a limit"}
    (listing,) = sections.sweeps_section({"fronts": [found]}).listings
    assert len(listing.rows) == 5
    assert not sections.sweeps_section({}).has_something()
