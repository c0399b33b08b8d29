"""The law of size alone: what it is fitted to, what it would have foretold, and every refusal in its place with its code."""

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.estimate import SIZE, Code
from analysis.findings import fit_summary
from analysis.findings.conclude import conclude
from analysis.findings.size_law import Fitted, fit_size_law, leave_largest_out, mean_variance
from analysis.fits.fit import FitStatus, fit
from analysis.fits.laws import POWER_FLOOR, POWER_FLOOR_DATA
from analysis.report.answer import sentences
from analysis.table import load as table
from analysis.table.configurations import Configurations, Noise, average, measure_noise
from analysis.table.recipe import one_recipe
from study import records
from study.command import parse
from study.spec import expand
from tests.conftest import synthetic_row
from tests.test_levers import size, trials

WIDTHS = [(2, width, 4) for width in (16, 32, 48, 64, 96, 128, 192)]
GRID = [(depth, width, heads) for depth, width in ((1, 32), (2, 32), (4, 32), (1, 64), (2, 64), (4, 64), (2, 128)) for heads in (2, 4, 8)]
Change = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]


def law(depth: int, width: int, heads: int = 4, tokens: int = 1_000_000) -> float:
    return 0.62 + 0.55 * (size(depth, width) / 1e5) ** -0.34 + 0.2 * (tokens / 1e6) ** -0.4


def on_law(sd: float, lengths: tuple[int, ...] = (1_000_000,), bent: dict[int, float] | None = None) -> Configurations:
    """Seven widths on the law, those of `bent` off it by a factor."""

    def loss(depth: int, width: int, heads: int, tokens: int) -> float:
        return law(depth, width, heads, tokens) * (bent or {}).get(width, 1.0)

    return average(trials(WIDTHS, lengths, loss=loss, sd=sd, rng=np.random.default_rng(2)).assign(schedule="cosine"))


def fitted_to(cells: Configurations) -> Fitted:
    fitted = fit_size_law("joint", "all", cells)
    assert isinstance(fitted, Fitted)
    return fitted


def test_the_floor_is_in_the_law_and_text_where_it_varies() -> None:
    assert fitted_to(on_law(1e-6)).result.law == POWER_FLOOR
    both = fitted_to(on_law(1e-7, lengths=(100_000, 400_000, 1_600_000)))
    assert both.result.law == POWER_FLOOR_DATA
    assert both.result.params["beta"] == pytest.approx(0.4, rel=1e-3)
    assert both.result.params["alpha"] == pytest.approx(0.34, rel=1e-3)


@pytest.mark.parametrize(("preset", "n_sizes"), [("matched", 5), ("matched-gpu", 7)])
def test_shapes_that_a_study_matched_are_of_one_size(preset: str, n_sizes: int) -> None:
    shapes = {t.shape.params_non_embedding for t in expand(parse([preset]).study)}
    assert table.distinct_sizes(np.array(sorted(shapes), dtype=float)) == n_sizes


def test_a_fit_uses_one_recipe_and_the_tuned_learning_rate() -> None:
    parts = []
    for lr, status, loss in ((1e-3, "fixed", 1.2), (3e-3, "tuned", 1.0), (9e-3, "fixed", 1.1)):
        own = trials(WIDTHS[:3], [1000], loss=lambda *a, v=loss: v, seeds=1, lr=lr, lr_status=status, batch_size=8)
        parts.append(own.assign(config_id=own["config_id"] + str(lr)))
    parts.append(parts[0].iloc[:1].assign(config_id="other", batch_size=64))
    rows = table.pd.concat(parts, ignore_index=True)
    assert list(rows[one_recipe(rows)].lr_status) == ["tuned"] * 3


def test_the_variance_of_a_mean_pools_seeds_unless_the_curve_misfits() -> None:
    cells, bent = on_law(0.005), on_law(0.005, bent={64: 1.1})
    noise, fitted = measure_noise(cells), fitted_to(cells)
    assert isinstance(noise, Noise)
    assert mean_variance(fitted, noise)[1] == fitted.df + noise.difference_df
    assert mean_variance(fitted_to(bent), measure_noise(bent))[1] == fitted.df


def test_each_size_is_foretold_from_the_smaller_ones_and_one_off_the_law_shows_with_its_sign() -> None:
    rows = leave_largest_out(fitted_to(on_law(1e-8)))
    assert [row["from_sizes"] for row in rows] == [3, 4, 5, 6]
    assert all(abs(row["error_percent"]) < 1e-3 for row in rows)
    largest = leave_largest_out(fitted_to(on_law(1e-6, bent={192: 1.05})))[-1]
    assert largest["error_percent"] == pytest.approx(5, abs=0.2)
    assert largest["size"] == pytest.approx(size(2, 192))


# ---- refusals ----


def concluded(folder: Path, shapes: list[tuple[int, int, int]], change: Change | None = None, seeds: int = 2) -> dict[str, Any]:
    """Conclusions of a synthetic study whose rows were changed."""
    rng = np.random.default_rng(5)
    rows = [synthetic_row(shape, seed, rng) for shape in shapes for seed in range(seeds)]
    rows = [{**row, "loss_floor": None, **(change(row, rng) if change else {})} for row in rows]
    records.write_table(folder / "trials.parquet", records.to_table("trials", rows))
    return conclude(table.load(folder))


def losses(law: Callable[[float], float], sd: float) -> Change:
    return lambda row, rng: {"val_loss": law(row[SIZE] / 1e5) * float(np.exp(rng.normal(0, sd)))}


def code_of(block: dict[str, Any]) -> str:
    return str(block["refused"]["code"])


def test_an_exponent_whose_interval_spans_more_than_a_factor_of_two_is_refused(tmp_path: Path) -> None:
    alpha = concluded(tmp_path, WIDTHS, losses(lambda n: 0.5 + 0.6 * n**-0.35, 0.05))["fits"]["joint"]["parameters"]["alpha"]
    assert code_of(alpha) == Code.WIDE_INTERVAL
    assert alpha["bound"]["low"] < 0.35 < (alpha["bound"]["high"] or np.inf)


def test_a_floor_whose_interval_reaches_zero_is_refused_with_an_upper_bound(tmp_path: Path) -> None:
    floor = concluded(tmp_path, WIDTHS, losses(lambda n: 0.1 + 0.9 * n**-0.25, 0.03))["fits"]["joint"]["parameters"]["E"]
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
    ],
)
def test_a_doubtful_fit_reports_no_parameter(status: FitStatus, code: Code) -> None:
    sizes = np.geomspace(1e4, 1e6, 6)
    sound = fit(POWER_FLOOR, {SIZE: sizes}, 0.5 + 0.4 * (sizes / 1e5) ** -0.3)
    assert fit_summary.status_refusal("alpha", sound) is None
    refused = fit_summary.status_refusal("alpha", replace(sound, status=status, message=status.value))
    assert refused is not None
    assert refused.code == code


def timed(**changes: Any) -> tuple[Any, ...]:
    return GRID, lambda row, rng: changes, ("timing", "fit")


@pytest.mark.parametrize(
    ("shapes", "change", "place", "code", "words"),
    [
        (
            WIDTHS[:6],
            lambda row, rng: {"n_tokens": {16: 1, 32: 2, 48: 4, 64: 1, 96: 2, 128: 4}[row["n_embd"]] * 500_000},
            ("fits", "joint", "parameters", "alpha"),
            Code.TOO_FEW_DF,
            "6 configurations for 5 parameters",
        ),
        (WIDTHS, lambda row, rng: {"n_tokens": 20 * row[SIZE]}, ("compute_optimal",), Code.COLLINEAR, "correlate by 1.00"),
        ([(2, 64, heads) for heads in (1, 2, 4, 8)], None, ("diagnostics",), Code.NO_VARIATION, ""),
        (*timed(exclusive_timing=False), Code.SHARED_DEVICE, ""),
        (*timed(exclusive_timing=None), Code.SHARED_DEVICE, ""),
        (*timed(ms_per_step=None), Code.MISSING, ""),
    ],
    ids=["parameters", "compute optimum", "one size", "shared device", "unknown device", "no timing"],
)
def test_what_the_data_do_not_tell_is_refused(
    tmp_path: Path, shapes: list[tuple[int, int, int]], change: Change | None, place: tuple[str, ...], code: Code, words: str
) -> None:
    tree = concluded(tmp_path, shapes, change)
    block = reduce(getitem, place, tree)
    assert code_of(block) == code
    assert words in block["refused"]["reason"]
    if place[0] == "timing":
        assert code_of(tree["timing"]["heads_slowdown"]) == code
    if code == Code.NO_VARIATION:
        assert tree["fits"] == {}


def test_leaving_sizes_out_never_asks_for_more_points_than_are_left(tmp_path: Path) -> None:
    def budgets(row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        tokens = {16: 1, 32: 2, 64: 4}.get(row["n_embd"], 1) * 500_000
        return {"n_tokens": tokens, "config_id": f"{row['config_id']}-{row['seed']}", "seed": 0}  # equal points under several names

    tree = concluded(tmp_path, [(2, width, 4) for width in (16, 32, 64, 96, 128)], budgets)
    assert tree["fits"]["joint"]["law"] == "M2"
    assert tree["diagnostics"]["leave_largest_out"] == []


def test_tokens_that_vary_independently_give_the_compute_optimal_exponent() -> None:
    cells = on_law(0.002, lengths=(100_000, 800_000, 6_400_000))
    optimal = fit_summary.compute_optimal(cells, fitted_to(cells), measure_noise(cells))
    assert optimal["low"] < 0.4 / 0.74 < optimal["high"]
    assert optimal["high"] - optimal["low"] < 0.1


def test_exclusive_timings_give_back_the_law_that_made_them(tmp_path: Path) -> None:
    def exact(row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {"ms_per_step": 2.0 + row["n_layer"] * (0.01 * row["n_embd"] ** 1.2 + 0.1 * row["n_head"])}

    found = concluded(tmp_path, GRID, exact)["timing"]["fit"]
    assert {name: found["parameters"][name] for name in ("t0", "g", "h")} == pytest.approx({"t0": 2.0, "g": 1.2, "h": 1.0}, rel=1e-4)
    assert found["median_relative_error"] < 1e-6


def test_a_gain_of_nothing_is_not_said_to_pay(tmp_path: Path) -> None:
    rising = concluded(tmp_path, WIDTHS, losses(lambda n: 1.2 * n**0.03, 0.002))
    assert rising["fits"]["joint"]["slope"]["value"] == pytest.approx(0, abs=5e-4)
    assert "pays" not in sentences(rising)[0]
    assert all(row["verdict"] != "gain" for row in rising["levers"])
