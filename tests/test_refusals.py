"""Every kind of refusal comes where it should, with its code and a sentence that says what would help."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.estimate import Code
from analysis.findings import conclude as conclusions
from analysis.findings import refusal_rules as verdicts
from analysis.findings.fit_summary import Options
from analysis.fits.fit import FitStatus, fit
from analysis.fits.laws import POWER_FLOOR, SIZE
from analysis.report.answer import sentences
from analysis.table import load as table
from study import records
from tests.conftest import synthetic_row

WIDTHS = [(2, width, 4) for width in (16, 32, 48, 64, 96, 128, 192)]
GRID = [(depth, width, heads) for depth, width in ((1, 32), (2, 32), (4, 32), (1, 64), (2, 64), (4, 64), (2, 128)) for heads in (2, 4, 8)]
Change = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]


def concluded(folder: Path, shapes: list[tuple[int, int, int]], change: Change | None = None, seeds: int = 2) -> dict[str, Any]:
    """Conclusions of a synthetic study whose rows were changed."""
    rng = np.random.default_rng(5)
    rows = [synthetic_row(shape, seed, rng) for shape in shapes for seed in range(seeds)]
    rows = [{**row, "loss_floor": None, **(change(row, rng) if change else {})} for row in rows]
    records.write_table(folder / "trials.parquet", records.to_table("trials", rows))
    return conclusions.conclude(table.load(folder), Options(n_bootstrap=0))


def losses(law: Callable[[float], float], sd: float) -> Change:
    return lambda row, rng: {"val_loss": law(row[SIZE] / 1e5) * float(np.exp(rng.normal(0, sd)))}


def code_of(block: dict[str, Any]) -> str:
    return str(block["refused"]["code"])


def test_an_exponent_whose_interval_spans_more_than_a_factor_of_two_is_refused(tmp_path: Path) -> None:
    tree = concluded(tmp_path, WIDTHS, losses(lambda n: 0.5 + 0.6 * n**-0.35, 0.05))
    alpha = tree["fits"]["joint"]["parameters"]["alpha"]
    assert code_of(alpha) == Code.WIDE_INTERVAL
    assert alpha["bound"]["low"] < 0.35 < (alpha["bound"]["high"] or np.inf)


def test_a_floor_whose_interval_reaches_zero_is_refused_with_an_upper_bound(tmp_path: Path) -> None:
    tree = concluded(tmp_path, WIDTHS, losses(lambda n: 0.1 + 0.9 * n**-0.25, 0.03))
    floor = tree["fits"]["joint"]["parameters"]["E"]
    assert code_of(floor) == Code.FLOOR_REACHES_ZERO
    assert floor["bound"]["upper"] > 0.1
    assert "use the local slope" in floor["refused"]["reason"]


def test_parameters_at_a_bound_are_refused(tmp_path: Path) -> None:
    tree = concluded(tmp_path, WIDTHS, lambda row, rng: {"val_loss": 1.0 - 0.05 * np.log(row[SIZE] / 1e5)})  # falls ever faster: no floor
    assert tree["fits"]["joint"]["status"] == "BOUND_HIT"
    assert {code_of(p) for p in tree["fits"]["joint"]["parameters"].values()} == {Code.AT_BOUND}


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (FitStatus.STARTS_DISAGREE, Code.STARTS_DISAGREE),
        (FitStatus.NOT_CONVERGED, Code.NOT_CONVERGED),
        (FitStatus.SATURATED, Code.TOO_FEW_DF),
        (FitStatus.ILL_CONDITIONED, Code.WIDE_INTERVAL),
        (FitStatus.NO_OPTIMUM, Code.AT_BOUND),
    ],
)
def test_a_doubtful_fit_reports_no_parameter(status: FitStatus, code: Code) -> None:
    sizes = np.geomspace(1e4, 1e6, 6)
    sound = fit(POWER_FLOOR, {SIZE: sizes}, 0.5 + 0.4 * (sizes / 1e5) ** -0.3)
    assert verdicts.status_refusal("alpha", sound) is None
    refused = verdicts.status_refusal("alpha", replace(sound, status=status, message=status.value))
    assert refused is not None
    assert refused.code == code


def test_more_parameters_than_configurations_leave_room_for_are_refused(tmp_path: Path) -> None:
    def budgets(row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {"n_tokens": {16: 1, 32: 2, 48: 4, 64: 1, 96: 2, 128: 4}[row["n_embd"]] * 500_000}

    tree = concluded(tmp_path, WIDTHS[:6], budgets)
    assert tree["fits"]["joint"]["law"] == "M2"
    assert code_of(tree["fits"]["joint"]["parameters"]["alpha"]) == Code.TOO_FEW_DF


def test_tokens_that_follow_size_refuse_the_compute_optimum_and_show_the_correlation(tmp_path: Path) -> None:
    tree = concluded(tmp_path, WIDTHS, lambda row, rng: {"n_tokens": 20 * row[SIZE]})
    assert code_of(tree["compute_optimal"]) == Code.COLLINEAR
    assert "correlate by 1.00" in tree["compute_optimal"]["refused"]["reason"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"exclusive_timing": False}, Code.SHARED_DEVICE),
        ({"exclusive_timing": None}, Code.SHARED_DEVICE),
        ({"ms_per_step": None}, Code.MISSING),
    ],
)
def test_timings_that_say_nothing_are_refused(tmp_path: Path, change: dict[str, Any], code: Code) -> None:
    timing = concluded(tmp_path, GRID, lambda row, rng: change)["timing"]
    assert code_of(timing["fit"]) == code
    assert code_of(timing["heads_slowdown"]) == code


def test_exclusive_timings_give_back_the_law_that_made_them(tmp_path: Path) -> None:
    def timed(row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {"ms_per_step": 2.0 + row["n_layer"] * (0.01 * row["n_embd"] ** 1.2 + 0.1 * row["n_head"])}

    found = concluded(tmp_path, GRID, timed)["timing"]
    assert found["fit"]["parameters"]["t0"] == pytest.approx(2.0, rel=1e-4)
    assert found["fit"]["parameters"]["g"] == pytest.approx(1.2, rel=1e-4)
    assert found["fit"]["parameters"]["h"] == pytest.approx(1.0, rel=1e-4)
    assert found["fit"]["median_relative_error"] < 1e-6


def test_one_size_refuses_everything_that_needs_two(tmp_path: Path) -> None:
    tree = concluded(tmp_path, [(2, 64, heads) for heads in (1, 2, 4, 8)])
    for block in ("returns", "diagnostics", "irreducible_loss"):
        assert code_of(tree[block]) == Code.NO_VARIATION
    assert tree["fits"] == {}


def test_leaving_a_size_out_never_asks_for_more_points_than_are_left(tmp_path: Path) -> None:
    def budgets(row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        tokens = {16: 1, 32: 2, 64: 4}.get(row["n_embd"], 1) * 500_000
        return {"n_tokens": tokens, "config_id": f"{row['config_id']}-{row['seed']}", "seed": 0}  # equal points under several names

    tree = concluded(tmp_path, [(2, 16, 4), (2, 32, 4), (2, 64, 4), (2, 96, 4), (2, 128, 4)], budgets, seeds=2)
    assert tree["fits"]["joint"]["law"] == "M2"
    assert tree["diagnostics"]["drop_size"] == []


def test_a_gain_of_nothing_is_not_said_to_pay(tmp_path: Path) -> None:
    rising = concluded(tmp_path, WIDTHS, losses(lambda n: 1.2 * n**0.03, 0.002))
    assert rising["fits"]["joint"]["slope"]["gain_per_doubling"]["value"] == pytest.approx(0, abs=5e-4)
    assert "pays" not in sentences(rising)[0]
    assert all(row["verdict"] != "gain" for row in rising["levers"])
