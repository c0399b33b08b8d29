"""The published study that this project reproduces, from its own logs: its numbers come out, its conclusions only as far as they hold."""

import csv
import os
from pathlib import Path
from typing import Any

import pytest

from analysis.estimate import is_refused
from analysis.findings import conclude as conclusions
from analysis.findings import one_factor as sweeps
from analysis.findings import shape_effects as structure
from analysis.findings.fit_summary import Options
from analysis.findings.size_law import Fitted, fit_size_law
from analysis.fits import fit as fits
from analysis.fits import laws
from analysis.report.answer import sentences
from analysis.table import configurations as replicates
from analysis.table import load as table
from analysis.wording import change
from study import records

ROOT = Path(__file__).resolve().parents[1]
RUNS = Path(os.environ.get("SCALING_STUDY_SHARED", ROOT.parent / "shared")) / "reference" / "inf3600_runs.csv"
pytestmark = pytest.mark.skipif(not RUNS.exists(), reason=f"the original study's runs are not on this machine ({RUNS})")


def write_original(path: Path, exclusive: bool | None = True) -> Path:
    """The twelve published runs as a trials.parquet; the position embedding (256 x n_embd) is no part of params_non_embedding."""
    with RUNS.open() as file:
        runs = list(csv.DictReader(file))
    held: dict[str, list[str]] = {}
    for run in runs:
        held.setdefault(_shape(run), []).append(run["experiment"])
    rows: list[dict[str, Any]] = [
        {
            "trial_id": run["run"], "config_id": _shape(run), "seed": 1337, "status": "COMPLETED",
            **{name: int(run[name]) for name in ("n_layer", "n_embd", "n_head", "params_total", "params_blocks")},
            "params_non_embedding": int(run["params_blocks"]) + int(run["n_embd"]), "n_tokens": 81_920_000,
            "val_loss": float(run["val_loss"]), "train_loss": float(run["train_loss"]), "sweeps": held[_shape(run)],
            "ms_per_step": float(run["ms_per_iter_median"]), "exclusive_timing": exclusive, "lr": 1e-3, "batch_size": 64, "block_size": 256,
        }
        for run in runs
    ]  # fmt: skip
    records.write(path / "trials.parquet", "trials", rows, study="original")
    return path


def _shape(run: dict[str, str]) -> str:
    return f"{run['n_layer']}x{run['n_embd']}h{run['n_head']}"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> table.Table:
    return table.load(write_original(tmp_path_factory.mktemp("original")))


@pytest.fixture(scope="module")
def tree(original: table.Table) -> dict[str, Any]:
    return conclusions.conclude(original, Options(n_bootstrap=200))


def sweep(tree: dict[str, Any], name: str) -> dict[str, Any]:
    return next(s for s in tree["sweeps"] if s["name"] == name)


def test_the_published_drops_and_spreads_come_out(tree: dict[str, Any]) -> None:
    drops = [level["gain"] for level in sweep(tree, "depth")["levels"][1:]]
    assert drops == pytest.approx([0.073, 0.034, 0.015], abs=0.0005)
    spreads = [sweep(tree, name)["spread"] for name in ("depth", "width", "heads")]
    assert spreads == pytest.approx([0.122, 0.140, 0.011], abs=0.0005)


def test_a_layer_of_width_256_has_787_thousand_parameters_not_the_published_million_and_a_half(tree: dict[str, Any]) -> None:
    assert sweep(tree, "depth")["params_per_unit"] == 786_944


def test_size_alone_explains_loss_with_the_expected_r_squared(tree: dict[str, Any]) -> None:
    fit = tree["fits"]["joint"]
    assert (fit["n_sizes"], fit["n_configurations"], fit["law"]) == (8, 8, "M1")
    assert tree["fits"]["joint@params_total"]["r2"] == pytest.approx(0.978, abs=0.0005)  # as the published comparison counts
    assert fit["r2"] == pytest.approx(0.982, abs=0.0005)


def test_least_squares_on_all_parameters_gives_r_squared_978_to_the_digit(original: table.Table) -> None:
    """The published comparison counts all parameters and squares residuals; Huber and other counts move the third digit."""
    rows = original.trials[original.trials.n_head == 8].drop_duplicates(["n_layer", "n_embd"])
    sizes, losses = rows.params_total.to_numpy(), rows.val_loss.to_numpy()
    fit = fits.fit(laws.POWER_FLOOR.on(params_non_embedding="params_total"), {"params_total": sizes}, losses)
    misfit = losses - fit.predict({"params_total": sizes})
    assert 1 - (misfit**2).sum() / ((losses - losses.mean()) ** 2).sum() == pytest.approx(0.978, abs=0.0005)


def test_the_misfit_is_far_above_the_noise_of_a_repeated_run(tree: dict[str, Any]) -> None:
    misfit = tree["fits"]["joint"]["residual_sd"] * tree["fits"]["joint"]["slope"]["loss"]
    assert misfit > 20 * tree["noise"]["bound"]["repeat_sd"]


def test_two_layers_act_like_a_fifth_fewer_parameters(original: table.Table, tree: dict[str, Any]) -> None:
    """The published -23 % counts all parameters; without embeddings it is -21 %."""
    ours = next(c for c in tree["structure"]["contrasts"] if c["config_id"] == "2x256h8")
    assert ours["parameter_equivalent"] == pytest.approx(0.785, abs=0.005)
    cells = replicates.average(original.trials)
    found = sweeps.find_sweeps(cells)
    width = cells.take(list(next(s for s in found if s.name == "width").members))
    curve = fit_size_law("sweep:width", "width", width, "params_total", sweep="width")
    assert isinstance(curve, Fitted)
    total = structure.contrasts(cells, [curve], found, replicates.measure_noise(cells))
    assert next(c for c in total if c["config_id"] == "2x256h8")["parameter_equivalent"] == pytest.approx(0.77, abs=0.01)


def test_more_heads_cost_a_sixth_of_the_parameters_and_almost_three_times_the_time(tree: dict[str, Any]) -> None:
    heads = next(c for c in tree["structure"]["contrasts"] if c["kind"] == "heads")
    assert heads["parameter_equivalent"] == pytest.approx(0.83, abs=0.005)
    assert tree["timing"]["heads_slowdown"]["ratio"] == pytest.approx(2.8, abs=0.05)


def test_exponent_and_floor_are_refused_for_the_narrow_range(tree: dict[str, Any]) -> None:
    for name in ("E", "alpha", "A"):
        assert tree["fits"]["joint"]["parameters"][name]["refused"]["code"] == "range_too_narrow"
        assert tree["fits"]["sweep:width"]["parameters"][name]["refused"]["code"] == "too_few_sizes"
    assert tree["irreducible_loss"]["refused"]["code"] == "tokens_do_not_vary"
    assert tree["compute_optimal"]["refused"]["code"] == "tokens_do_not_vary"


def test_the_local_slope_is_reported_where_the_exponent_is_refused(tree: dict[str, Any]) -> None:
    slope = tree["fits"]["joint"]["slope"]
    assert slope["low"] < slope["value"] < slope["high"] < 0


def test_without_seeds_no_effect_is_called_real(tree: dict[str, Any]) -> None:
    assert tree["noise"]["refused"]["code"] == "one_seed"
    assert all(c["verdict"] == "not_told" and c["p"] is None for c in tree["structure"]["contrasts"])
    assert all(s["verdict"] == "not_told" for s in tree["sweeps"])


def test_timings_of_unknown_company_are_not_compared(tmp_path: Path) -> None:
    shared = table.load(write_original(tmp_path, exclusive=None))
    cells = replicates.average(shared.trials)
    heads = next(s for s in sweeps.find_sweeps(cells) if s.name == "heads")
    from analysis.findings import training as speed

    assert is_refused(speed.timing(shared.trials, cells, [heads])["heads_slowdown"])
    assert all(not row["exclusive"] for row in speed.timing(shared.trials, cells, [heads])["rows"])


def test_the_three_sentences_hold_the_numbers_and_ask_for_seeds(tree: dict[str, Any]) -> None:
    first, second, third = sentences(tree)
    for factor in ("n_embd", "n_layer"):
        lever = next(row for row in tree["levers"] if row["factor"] == factor)
        assert f"by the law: {change(lever['gain_per_doubling'])}" in first
    assert "best so far 6x384 with eight heads: 0.557 nats" in first
    assert "which one seed cannot tell from noise" in second
    assert third.startswith("One seed")
    assert "more seeds would tell noise from effect" in third
