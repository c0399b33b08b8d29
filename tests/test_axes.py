"""Text, repetition and context as axes: gains equal the truth, and intervals hold for branches that share a trunk."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.findings import conclude as conclusions
from analysis.findings import tokens_and_context as axes
from analysis.findings.fit_summary import Options
from analysis.findings.one_factor import find_sweeps
from analysis.report.answer import sentences
from analysis.report.document import at
from analysis.report.sections import sweeps_section
from analysis.table import load as table
from analysis.table.configurations import average
from study.spec import Trial
from tests.running import write_study

ALL_TOKENS = 4_000_000


def true_loss(trial: Trial) -> float:
    """L = E + A N^-alpha + B D^-beta, D discounted as it is repeated (Muennighoff et al. 2023, eq. 5), less a gain per doubled context."""
    unique = min(trial.train.unique_tokens or ALL_TOKENS, trial.n_tokens)
    repeats = trial.n_tokens / unique - 1
    effective = unique * (1 + 15.4 * (1 - math.exp(-repeats / 15.4)))
    size = trial.model(64).params_non_embedding
    return 0.5 + 3.0 * (size / 6e3) ** -0.25 + 0.9 * (effective / 384e3) ** -0.45 - 0.08 * math.log2(trial.shape.block_size / 64)


def write_results(out: Path, preset: str, noise_sd: float = 0.015, **changes: Any) -> dict[str, Trial]:
    return write_study(out, preset, true_loss, noise_sd, unique_tokens=ALL_TOKENS, **changes)


def concluded(out: Path) -> dict[str, Any]:
    return conclusions.conclude(table.load(out), Options(n_bootstrap=0))


@pytest.fixture(scope="module")
def data_tree(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("axes") / "data"
    write_results(out, "data")
    return concluded(out)


def sweep(tree: dict[str, Any], name: str) -> dict[str, Any]:
    return next(s for s in tree["sweeps"] if s["name"] == name)


def test_the_study_of_data_is_answered_by_width_and_text_and_repetition_has_its_price(data_tree: dict[str, Any]) -> None:
    said = sentences(data_tree)[0]
    assert said.startswith("At 3.07M tokens width pays; depth was not varied by itself: width ")
    assert "; twice the text to 3.07M tokens: −0.1" in said
    steps = {step["epochs"]: step for step in sweep(data_tree, "repetition")["axis"]["steps"]}
    assert steps[64]["gain"] == pytest.approx(-0.45, abs=0.1)
    assert [steps[n]["verdict"] for n in (64, 4)] == ["loss", "within_noise"]


def test_the_law_of_size_and_data_is_fitted_and_its_estimates_stand_without_intervals(data_tree: dict[str, Any]) -> None:
    joint = data_tree["fits"]["joint"]
    assert (joint["law"], joint["n_configurations"]) == ("M2", 20)
    assert joint["slope"]["low"] is None
    for name, truth in (("alpha", 0.25), ("beta", 0.45), ("E", 0.5)):
        refused = joint["parameters"][name]
        assert refused["refused"]["code"] == "n_counts_checkpoints"
        assert refused["bound"]["estimate"] == pytest.approx(truth, rel=0.35)


def test_trials_of_one_length_are_runs_of_their_own_and_give_the_slope_its_interval(data_tree: dict[str, Any]) -> None:
    fits = {name: fit for name, fit in data_tree["fits"].items() if name.startswith("length:")}
    assert list(fits) == [f"length:{n}" for n in (384_000, 768_000, 1_536_000, 3_072_000)]
    for fit in fits.values():
        assert fit["slope"]["low"] < fit["slope"]["value"] < fit["slope"]["high"]
    sizes = [fit["slope"]["at"] for fit in fits.values()]
    truth = [_true_slope(n, size) for n, size in zip((384e3, 768e3, 1536e3, 3072e3), sizes, strict=True)]
    assert [fit["slope"]["value"] for fit in fits.values()] == pytest.approx(truth, abs=0.012)


def _true_slope(n_tokens: float, size: float) -> float:
    power = 3.0 * (size / 6e3) ** -0.25
    return -0.25 * power / (0.5 + power + 0.9 * (n_tokens / 384e3) ** -0.45)


def test_gains_equal_the_truth_without_noise(tmp_path: Path) -> None:
    trials = write_results(tmp_path, "data", noise_sd=1e-9)
    axis = sweep(concluded(tmp_path), "size-and-data")["axis"]
    of = {t.n_tokens: true_loss(t) for t in trials.values() if t.shape.n_embd == 64 and not t.train.unique_tokens}
    assert [step["gain"] for step in axis["steps"]] == pytest.approx([of[a] - of[2 * a] for a in (384_000, 768_000, 1_536_000)], abs=1e-6)
    assert axis["interaction"]["gain"] == pytest.approx(0, abs=1e-6)
    assert [row["params_non_embedding"] for row in axis["by_size"]] == sorted(row["params_non_embedding"] for row in axis["by_size"])


def test_the_intervals_of_gains_cover_the_truth_though_lengths_share_their_trunk(tmp_path: Path) -> None:
    trials = write_results(tmp_path, "data")
    rows = table.load(tmp_path).trials
    by_id = [trials[i] for i in rows["trial_id"]]
    truth = np.array([true_loss(t) for t in by_id])
    trunk_of = np.unique([f"{t.shape.n_embd} {t.train.unique_tokens} {t.seed}" for t in by_id], return_inverse=True)[1]
    expected = next(true_loss(t) for t in by_id if t.n_tokens == 384_000) - next(true_loss(t) for t in by_id if t.n_tokens == 768_000)
    rng = np.random.default_rng(11)
    hits, widths = 0, []
    for _ in range(200):
        noisy = truth + 0.02 * rng.normal(size=trunk_of.max() + 1)[trunk_of] + 0.01 * rng.normal(size=len(truth))
        cells = average(rows.assign(val_loss=noisy))
        found = axes.describe(cells, next(s for s in find_sweeps(cells) if s.name == "size-and-data"))
        assert found is not None
        step = found["steps"][0]
        hits += step["low"] <= expected <= step["high"]
        widths.append(step["high"] - step["low"])
    assert 0.90 <= hits / 200 <= 0.985  # 95 % nominal; binomial standard error 1.5 %
    assert np.mean(widths) == pytest.approx(2 * 2.23 * 0.01 * math.sqrt(2 / 15), rel=0.1)  # the trunk's scatter cancels


def test_a_longer_context_is_told_at_equal_tokens(tmp_path: Path) -> None:
    write_results(tmp_path, "context")
    tree = concluded(tmp_path)
    found = sweep(tree, "context")
    assert [step["gain"] for step in found["axis"]["steps"]] == pytest.approx([0.08] * 3, abs=0.03)
    assert found["axis"]["steps"][0]["verdict"] == "gain"
    assert "other" not in {s["name"] for s in tree["sweeps"]}


def test_one_seed_gives_gains_without_verdicts(tmp_path: Path) -> None:
    write_results(tmp_path, "data", seeds=["1"])
    tree = concluded(tmp_path)
    steps = sweep(tree, "size-and-data")["axis"]["steps"]
    assert all(step["low"] is None and step["verdict"] == "not_told" for step in steps)


def test_sweeps_over_shapes_alone_have_no_axis(synthetic_results: Path) -> None:
    tree = concluded(synthetic_results)
    assert [s["axis"] for s in tree["sweeps"]] == [None] * len(tree["sweeps"])


def test_every_number_of_the_tables_has_its_place(data_tree: dict[str, Any]) -> None:
    section = sweeps_section(data_tree)
    assert [listing.title for listing in section.listings] == [
        "Sweep repetition", "What repeated text costs", "Sweep size-and-data", "What each step in training tokens bought",
    ]  # fmt: skip
    for listing in section.listings:
        for row in listing.rows:
            assert len(row) == len(listing.columns)
            assert all(at(data_tree, cell.source) is not None for cell in row if cell.source)
