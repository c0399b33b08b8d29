"""The whole analysis: every key that the report reads, an answer for every kind of study, refusals instead of guesses, no traceback."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.__main__ import main
from analysis.estimate import SIZE, is_refused
from analysis.findings.conclude import conclude
from analysis.findings.fit_summary import Options
from analysis.report import terminal as summary
from analysis.report.answer import sentences
from analysis.table import load as table
from analysis.wording import change
from study import records
from tests.conftest import SWEEPS, TRUTH, synthetic_row

TOP_LEVEL = {
    "schema_version", "study", "question", "results", "data", "counts", "exclusions", "problems", "card", "provenance", "noise", "fits",
    "primary_fit", "sweeps", "compute_optimal", "diagnostics", "timing", "overfitting", "learning_rates", "fronts", "forecasts", "stories",
    "refusals", "levers", "over_length", "length_law", "shape", "best", "forecast_law", "trust", "next",
}  # fmt: skip
"""Keys of fits.json, whatever the study lacks."""


def stored(folder: Path, shapes: list[tuple[int, int, int]], seeds: int = 3) -> table.Table:
    """Rows written without the checks of a run."""
    rng = np.random.default_rng(11)
    rows = [{**synthetic_row(shape, seed, rng), "sweeps": None} for shape in shapes for seed in range(seeds)]
    records.write_table(folder / "trials.parquet", records.to_table("trials", rows))
    return table.load(folder)


def tree_of(folder: Path, shapes: list[tuple[int, int, int]], seeds: int) -> dict[str, Any]:
    """Conclusions from such rows; they must be strict JSON."""
    tree = conclude(stored(folder, shapes, seeds))
    json.dumps(tree, allow_nan=False)
    assert len(sentences(tree)) == 3
    assert set(tree) == TOP_LEVEL
    assert "study synthetic" in summary.text(tree)
    return tree


@pytest.fixture(scope="module")
def tree(synthetic_results: Path) -> dict[str, Any]:
    return conclude(table.load(synthetic_results))


# ---- a whole study ----


def test_one_fit_for_all_one_per_convention_one_per_sweep_of_varying_size(tree: dict[str, Any]) -> None:
    assert set(tree) == TOP_LEVEL
    fits = tree["fits"]
    assert set(fits) == {"joint", "joint@params_total", "joint@params_blocks", "joint:all", "sweep:depth", "sweep:width"}
    assert tree["primary_fit"] == "joint"
    assert [fits[f"joint{at}"]["convention"] for at in ("", "@params_total", "@params_blocks")] == [SIZE, "params_total", "params_blocks"]


def test_the_conclusions_hold_the_truth_of_the_synthetic_study(tree: dict[str, Any]) -> None:
    """Loss is E + A N^-alpha, seed sd 0.006."""
    assert tree["noise"]["low"] < TRUTH["seed_sd"] < tree["noise"]["high"]
    slope = tree["fits"]["sweep:width"]["slope"]
    power = TRUTH["A"] * (slope["at"] / TRUTH["reference"]) ** -TRUTH["alpha"]
    assert slope["low"] < -TRUTH["alpha"] * power / (TRUTH["E"] + power) < slope["high"]


def test_the_answer_has_numbers_and_intervals_and_is_short_enough_to_be_read(tree: dict[str, Any]) -> None:
    first, second, third = sentences(tree)
    width = next(row for row in tree["levers"] if row["factor"] == "n_embd" and row["verdict"] == "gain")
    assert change(width["steps"][-1]["gain"]) in first
    assert "at nearly equal size" in second.lower()
    assert third.startswith("Three seeds")
    for sentence in (first, second, third):
        assert len(sentence.split()) <= 62, sentence


def test_refused_numbers_are_listed_once_with_their_subjects(tree: dict[str, Any]) -> None:
    assert is_refused(tree["fits"]["sweep:width"]["parameters"]["alpha"])
    reasons = [(row["code"], row["reason"]) for row in tree["refusals"]]
    assert len(reasons) == len(set(reasons))
    row = next(row for row in tree["refusals"] if "fits.sweep:width.parameters.alpha" in row["subject"])
    assert row["code"] == "too_few_sizes"


def test_a_wide_study_reports_exponent_and_floor_with_intervals(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, [(2, d, 4) for d in (16, 24, 32, 48, 64, 96, 128, 192)], seeds=4)
    found = tree["fits"]["joint"]["parameters"]
    for name in ("E", "alpha"):
        assert found[name]["low"] < TRUTH[name] < found[name]["high"]
    assert found["alpha"]["method"] == "profile"


def test_huber_takes_its_intervals_from_a_bootstrap_of_its_own_seed(tmp_path: Path) -> None:
    loaded = stored(tmp_path, [(2, d, 4) for d in (16, 24, 32, 64, 128, 192)])
    first, again, other = (conclude(loaded, Options(200, seed, delta=0.01))["fits"]["joint"]["slope"] for seed in (1, 1, 2))
    assert first["low"] < first["value"] < first["high"]
    assert first["method"].startswith("bootstrap")
    assert first == again != other


# ---- every kind of poor study ----


@pytest.mark.parametrize(
    ("shapes", "seeds", "first", "third"),
    [
        (SWEEPS["width"][:1], 1, "nothing that was varied", "more seeds"),
        (SWEEPS["width"][:2], 1, "nothing that was varied", "more seeds"),
        (SWEEPS["width"][:2], 3, "width pays; depth was not varied by itself", "shapes of equal size"),
        (SWEEPS["depth"], 1, "nothing that was varied", "more seeds"),
        (SWEEPS["depth"], 3, "depth pays; width was not varied by itself", "shapes of equal size"),
        (SWEEPS["heads"], 3, "nothing that was varied", "shapes of equal size"),
    ],
)
def test_the_answer_adapts_to_what_the_study_holds(
    tmp_path: Path, shapes: list[tuple[int, int, int]], seeds: int, first: str, third: str
) -> None:
    said = sentences(tree_of(tmp_path, shapes, seeds))
    assert first in said[0].lower()
    assert "nothing was compared" in said[1]
    assert third in said[2].lower()


# ---- the command ----


def test_the_command_writes_fits_json_and_prints_the_answer_or_names_a_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(tmp_path, SWEEPS["width"])
    command = [str(tmp_path), "--no-report", "--out"]
    assert main([*command, str(tmp_path / "elsewhere")]) == 0
    tree = json.loads((tmp_path / "elsewhere" / "fits.json").read_text())
    printed = " ".join(capsys.readouterr().out.split())
    assert all(sentence in printed for sentence in tree["answer"])
    (tmp_path / "taken").write_text("a file")
    assert main([*command, str(tmp_path / "taken")]) == 1
    error = capsys.readouterr().err
    assert "taken cannot be read or written" in error
    assert "name another place" in error


def test_usage_errors_exit_with_two(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path), "--bootstrap", "-1"])
    assert stop.value.code == 2


def test_the_import_needs_neither_torch_nor_ray_and_costs_little_more_than_its_libraries() -> None:
    def seconds(what: str) -> tuple[float, str]:
        code = f"import sys, time; t = time.process_time(); import {what}; print(time.process_time() - t, *sys.modules)"
        root = Path(__file__).resolve().parents[1]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, env=environment)
        spent, _, loaded = done.stdout.partition(" ")
        return float(spent), loaded

    found = [seconds("analysis.__main__") for _ in range(2)]
    assert not {"torch", "ray", "matplotlib"} & set(found[0][1].split())
    assert min(found)[0] < 2.5 * min(seconds("pandas, pyarrow.parquet, scipy.special") for _ in range(2))[0]


@pytest.mark.slow
def test_a_twelve_run_study_is_analyzed_within_a_second(tmp_path: Path) -> None:
    """Processor time after imports."""
    loaded = stored(tmp_path, SWEEPS["width"] + SWEEPS["depth"][2:], seeds=2)
    spent = []
    for _ in range(3):
        start = time.process_time()
        conclude(loaded)
        spent.append(time.process_time() - start)
    assert min(spent) < 1.0, spent
