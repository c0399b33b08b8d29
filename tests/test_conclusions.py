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
from analysis.estimate import is_refused
from analysis.findings import conclude as conclusions
from analysis.findings.fit_summary import Options
from analysis.report import terminal as summary
from analysis.report.answer import sentences
from analysis.table import load as table
from analysis.wording import change
from study import records
from tests.conftest import SWEEPS, TRUTH, synthetic_row

QUICK = Options(n_bootstrap=100)
TOP_LEVEL = {
    "schema_version", "study", "question", "results", "data", "counts", "exclusions", "noise", "fits", "primary_fit", "sweeps",
    "structure", "conventions", "diagnostics", "timing", "overfitting", "learning_rates", "forecasts", "stories", "refusals", "card",
    "provenance", "levers", "shape", "best", "trust", "next",
}  # fmt: skip
FIT_KEYS = {
    "title", "law", "equation", "source", "convention", "sweep", "n_rows", "n_configurations", "n_seeds", "n_sizes", "reference",
    "parameters", "slope", "status", "status_text", "gradient_norm", "n_starts", "starts_agreeing", "inlier_fraction", "condition",
    "objective", "objective_name", "delta", "r2", "aicc", "residual_sd", "residuals", "curve", "bootstrap", "disagreement",
}  # fmt: skip
LEVEL_KEYS = {
    "value", "n_layer", "n_embd", "n_head", "params_non_embedding", "params_total", "n", "mean", "low", "high", "losses", "ms_per_step",
    "exclusive_timing", "gain", "gain_low", "gain_high", "gain_per_million", "verdict",
}  # fmt: skip


def rows_of(shapes: list[tuple[int, int, int]], seeds: int = 3, **change: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(11)
    return [{**synthetic_row(shape, seed, rng), "sweeps": None, **change} for shape in shapes for seed in range(seeds)]


def tree_of(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Conclusions from rows written without the checks of a run; they must be strict JSON."""
    records.write_table(folder / "trials.parquet", records.to_table("trials", rows))
    tree = conclusions.conclude(table.load(folder), QUICK)
    json.dumps(tree, allow_nan=False)
    assert len(sentences(tree)) == 3
    assert set(tree) >= TOP_LEVEL
    assert "study synthetic" in summary.text(tree)
    return tree


@pytest.fixture(scope="module")
def tree(synthetic_results: Path) -> dict[str, Any]:
    return conclusions.conclude(table.load(synthetic_results), QUICK)


# ---- a whole study ----


def test_every_key_of_the_contract_is_there(tree: dict[str, Any]) -> None:
    assert set(tree) >= TOP_LEVEL
    for fit in tree["fits"].values():
        assert set(fit) >= FIT_KEYS
        assert {"x", "y", "low", "high", "inside"} <= set(fit["curve"])
    for sweep in tree["sweeps"]:
        assert {"name", "factor", "levels", "spread", "verdict"} <= set(sweep)
        for level in sweep["levels"]:
            assert set(level) >= LEVEL_KEYS
    for row in tree["structure"]["contrasts"]:
        assert {
            "name",
            "config_id",
            "delta",
            "low",
            "high",
            "p",
            "parameter_equivalent",
            "pe_low",
            "pe_high",
            "verdict",
        } <= set(row)


def test_one_fit_for_all_one_per_convention_one_per_sweep_of_varying_size(tree: dict[str, Any]) -> None:
    assert set(tree["fits"]) == {"joint", "joint@params_total", "joint@params_blocks", "joint:all", "sweep:depth", "sweep:width"}
    assert tree["primary_fit"] == "joint"
    assert [row["convention"] for row in tree["conventions"]] == ["params_non_embedding", "params_total", "params_blocks"]


def test_the_conclusions_hold_the_truth_of_the_synthetic_study(tree: dict[str, Any]) -> None:
    """Loss is E + A N^-alpha plus 0.012 nats per doubling of depth beyond two, nothing for heads, seed sd 0.006."""
    assert tree["noise"]["low"] < TRUTH["seed_sd"] < tree["noise"]["high"]
    contrasts = {row["config_id"]: row for row in tree["structure"]["contrasts"]}
    assert contrasts["1x64h4"]["low"] < -0.012 < contrasts["1x64h4"]["high"]
    assert contrasts["4x64h4"]["low"] < 0.012 < contrasts["4x64h4"]["high"]
    assert contrasts["8x64h4"]["verdict"] == "differ"
    assert contrasts["2x64h8"]["verdict"] == "within_noise"
    slope = tree["fits"]["sweep:width"]["slope"]
    at = slope["at"] / TRUTH["reference"]
    loss = TRUTH["E"] + TRUTH["A"] * at ** -TRUTH["alpha"]
    assert slope["low"] < -TRUTH["alpha"] * (loss - TRUTH["E"]) / loss < slope["high"]


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


def test_the_same_seed_gives_the_same_conclusions(tree: dict[str, Any], synthetic_results: Path) -> None:
    assert conclusions.conclude(table.load(synthetic_results), QUICK) == tree


def test_a_wide_study_reports_exponent_and_floor_with_intervals(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, rows_of([(2, d, 4) for d in (16, 24, 32, 48, 64, 96, 128, 192)], seeds=4))
    found = tree["fits"]["joint"]["parameters"]
    for name in ("E", "alpha"):
        assert found[name]["low"] < TRUTH[name] < found[name]["high"]
    assert found["alpha"]["method"] == "profile"
    assert not tree["fits"]["joint"]["bootstrap"]["alpha"]["low"] > TRUTH["alpha"]
    assert tree["irreducible_loss"]["refused"]["code"] == "tokens_do_not_vary"


def test_tokens_that_vary_independently_give_the_compute_optimal_exponent(tmp_path: Path) -> None:
    rows = []
    for row in rows_of([(2, d, 4) for d in (16, 32, 64, 128, 192)], seeds=2):
        for tokens in (100_000, 800_000, 6_400_000):
            loss = 0.6 + 0.5 * (row["params_non_embedding"] / 1e5) ** -0.34 + 0.3 * (tokens / 1e6) ** -0.4
            noise = 0.002 * np.sin(len(rows) * 2.4)
            new = {"n_tokens": tokens, "val_loss": loss + noise, "config_id": f"{row['config_id']}d{tokens}"}
            rows.append({**row, **new, "trial_id": f"{row['trial_id']}d{tokens}"})
    tree = tree_of(tmp_path, rows)
    assert tree["fits"]["joint"]["law"] == "M2"
    optimal = tree["compute_optimal"]
    assert optimal["low"] < 0.4 / 0.74 < optimal["high"]
    assert not is_refused(tree["irreducible_loss"])


def test_branches_of_one_run_give_estimates_without_standard_errors(tmp_path: Path) -> None:
    rows = []
    for row in rows_of([(2, d, 4) for d in (16, 32, 64, 128, 192)], seeds=2, schedule="wsd"):
        for tokens in (100_000, 800_000, 6_400_000):
            loss = 0.6 + 0.5 * (row["params_non_embedding"] / 1e5) ** -0.34 + 0.3 * (tokens / 1e6) ** -0.4
            rows.append({**row, "n_tokens": tokens, "val_loss": loss, "config_id": f"{row['config_id']}d{tokens}"})
            rows[-1]["trial_id"] += f"d{tokens}"
    fit = tree_of(tmp_path, rows)["fits"]["joint"]
    alpha = fit["parameters"]["alpha"]
    assert alpha["refused"]["code"] == "n_counts_checkpoints"
    assert "15 configurations are branches of 5 runs" in alpha["refused"]["reason"]
    assert alpha["bound"]["estimate"] == pytest.approx(0.34, rel=0.02)
    assert fit["slope"]["low"] is None
    assert fit["bootstrap"] == {}


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
    said = sentences(tree_of(tmp_path, rows_of(shapes, seeds)))
    assert first in said[0].lower()
    assert "nothing was compared" in said[1]
    assert third in said[2].lower()


def test_a_study_in_which_everything_failed_says_so(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, rows_of(SWEEPS["width"], status="FAILED", val_loss=None, reason="RuntimeError: boom"))
    assert "None of the 12 trials can be used (12 failed)" in sentences(tree)[0]
    assert "RuntimeError: boom" in sentences(tree)[1]
    assert tree["noise"]["refused"]["code"] == "no_completed_trials"
    assert len(tree["exclusions"]) == 12


def test_trials_that_a_scheduler_stopped_are_listed_and_never_fitted(tmp_path: Path) -> None:
    rows = rows_of(SWEEPS["width"])
    before = tree_of(tmp_path / "whole", rows)
    stopped = [{**r, "trial_id": f"x{i}", "status": "STOPPED", "val_loss": 9.0} for i, r in enumerate(rows[:4])]
    after = tree_of(tmp_path / "stopped", rows + stopped)
    assert after["fits"] == before["fits"]
    assert after["counts"]["stopped"] == 4
    assert all("never fitted" in row["reason"] for row in after["exclusions"])


def test_learning_rates_that_were_searched_are_reported_with_their_bracket(tmp_path: Path) -> None:
    rows = []
    for row in rows_of([(2, d, 4) for d in (16, 32, 64, 128)], seeds=2):
        best = 4e-3 * (row["params_non_embedding"] / 1e5) ** -0.25
        for lr in (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2):
            loss = row["val_loss"] + 0.03 * np.log(lr / best) ** 2
            rows.append({**row, "lr": lr, "val_loss": loss, "config_id": f"{row['config_id']}-{lr}", "trial_id": f"{row['trial_id']}-{lr}"})
    found = tree_of(tmp_path, rows)["learning_rates"]
    assert [r["lr"] for r in found["rows"]] == sorted((r["lr"] for r in found["rows"]), reverse=True)


# ---- the command ----


def test_the_command_writes_fits_json_and_prints_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records.write_table(tmp_path / "trials.parquet", records.to_table("trials", rows_of(SWEEPS["width"])))
    assert main([str(tmp_path), "--no-report", "--bootstrap", "50", "--out", str(tmp_path / "elsewhere")]) == 0
    tree = json.loads((tmp_path / "elsewhere" / "fits.json").read_text())
    printed = " ".join(capsys.readouterr().out.split())
    assert all(sentence in printed for sentence in tree["answer"])


@pytest.mark.parametrize("kind", ["absent", "empty", "garbage", "missing column"])
def test_a_mistake_gets_one_sentence_and_exit_code_one(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    if kind == "garbage":
        (tmp_path / "trials.parquet").write_bytes(b"not parquet")
    if kind == "missing column":
        records.write_table(tmp_path / "trials.parquet", records.to_table("trials", rows_of(SWEEPS["width"])).drop_columns(["n_layer"]))
    assert main([str(tmp_path / "absent" if kind == "absent" else tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.strip().splitlines()) == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records.write_table(tmp_path / "trials.parquet", records.to_table("trials", rows_of(SWEEPS["width"])))
    (tmp_path / "taken").write_text("a file")
    assert main([str(tmp_path), "--no-report", "--bootstrap", "0", "--out", str(tmp_path / "taken")]) == 1
    error = capsys.readouterr().err
    assert "taken cannot be read or written" in error
    assert "give --out a folder" in error


def test_a_report_that_cannot_be_built_leaves_no_old_one(tmp_path: Path) -> None:
    records.write_table(tmp_path / "trials.parquet", records.to_table("trials", rows_of(SWEEPS["width"])))
    assert main([str(tmp_path), "--no-report", "--bootstrap", "0"]) == 0
    (tmp_path / "report" / "report.html").write_text("old")
    (tmp_path / "trials.parquet").write_bytes(b"not a table")
    assert main([str(tmp_path), "--bootstrap", "0"]) == 1
    assert not list((tmp_path / "report").glob("*"))


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
    """4,000 bootstraps included, processor time after imports."""
    records.write_table(tmp_path / "trials.parquet", records.to_table("trials", rows_of(SWEEPS["width"] + SWEEPS["depth"][2:], seeds=2)))
    loaded = table.load(tmp_path)
    spent = []
    for _ in range(3):
        start = time.process_time()
        conclusions.conclude(loaded, Options(n_bootstrap=4000))
        spent.append(time.process_time() - start)
    assert min(spent) < 1.0, spent
