"""Levers, the shape at equal size and the verdict of one study against another: planted effects are recovered, and intervals cover."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from analysis.compare.paired_differences import Paired
from analysis.estimate import Code, Estimate, Refusal, Verdict
from analysis.findings import conclude as conclusions
from analysis.findings import verdict
from analysis.findings.contrast import Family
from analysis.findings.levers import Lever, Study, levers
from analysis.findings.lines import at_length, lines
from analysis.fits.shape_law import fit_shape_law
from analysis.table import configurations as replicates
from analysis.table import load as tables
from study import records

Shape = tuple[int, int, int]
Loss = Callable[[int, int, int, int], float]
GRID: tuple[Shape, ...] = tuple((depth, width, 4) for depth in (1, 2, 4, 8) for width in (16, 32, 64))
SHORT, LONG = 768_000, 1_536_000


def size(depth: int, width: int) -> int:
    return depth * (12 * width**2 + 2 * width) + width


def planted(depth: int, width: int, head: int, tokens: int) -> float:
    """Width pays three times what depth pays, and depth pays only at the long length."""
    a, b = (0.02, 0.5) if tokens == SHORT else (0.25, 0.55)
    return 0.4 + 1.2 * (depth / 2) ** -a * (width / 32) ** -b * (tokens / SHORT) ** -0.3


def trials(
    shapes: Sequence[Shape] = GRID, lengths: Sequence[int] = (SHORT, LONG), loss: Loss = planted, sd: float = 0.0, seeds: int = 3,
    rng: np.random.Generator | None = None, shared: float = 0.0, **columns: Any,
) -> pd.DataFrame:  # fmt: skip
    """Rows of a study; `shared` is the scatter of a run that its lengths have in common."""
    rng, rows = rng or np.random.default_rng(0), []
    for depth, width, head in shapes:
        for seed in range(seeds):
            trunk = rng.normal(0, shared) if shared else 0.0
            for tokens in lengths:
                name = f"{depth}x{width}h{head}@{tokens}"
                value = loss(depth, width, head, tokens) + trunk + (rng.normal(0, sd) if sd else 0.0)
                rows.append({
                    "trial_id": f"{name}s{seed}", "config_id": name, "seed": seed, "status": "COMPLETED", "n_layer": depth,
                    "n_embd": width, "n_head": head, "params_total": size(depth, width) + 5000, "params_non_embedding": size(depth, width),
                    "n_tokens": tokens, "val_loss": value, "schedule": "wsd", "lr": 5e-3, "unique_tokens": 4_000_000, "epochs": 0.3,
                    "loss_floor": 0.4, "data_sha256": "x",
                } | columns)  # fmt: skip
    return records.to_table("trials", rows).to_pandas()


def study(rows: pd.DataFrame) -> Study:
    cells = replicates.average(rows)
    known = Study(cells, replicates.measure_noise(cells))
    return replace(known, laws={n: fit_shape_law(cells.take(at_length(cells, n))) for n in known.lengths()})


def row(found: Sequence[Lever], factor: str, n_tokens: int, at: str = "centre") -> Lever:
    return next(lever for lever in found if (lever.factor, lever.n_tokens, lever.at) == (factor, n_tokens, at))


def ends(own: Estimate) -> tuple[float, float]:
    assert own.low is not None
    assert own.high is not None
    return own.low, own.high


def gain(lever: Lever) -> Estimate:
    assert isinstance(lever.gain, Estimate), lever.gain
    return lever.gain


@pytest.fixture(scope="module")
def grid() -> tuple[Study, list[Lever]]:
    known = study(trials(sd=0.004, shared=0.006))
    return known, levers(known)


def test_a_grid_at_two_lengths_says_what_depth_width_and_text_buy(grid: tuple[Study, list[Lever]]) -> None:
    found = grid[1]
    true = {
        ("n_layer", SHORT): planted(2, 32, 4, SHORT) - planted(4, 32, 4, SHORT),
        ("n_layer", LONG): planted(2, 32, 4, LONG) - planted(4, 32, 4, LONG),
        ("n_embd", SHORT): (planted(2, 16, 4, SHORT) - planted(2, 64, 4, SHORT) + planted(4, 16, 4, SHORT) - planted(4, 64, 4, SHORT)) / 4,
        ("n_tokens", LONG): float(np.mean([planted(*s, SHORT) - planted(*s, LONG) for s in GRID])),
    }
    for (factor, length), value in true.items():
        own = gain(row(found, factor, length))
        low, high = ends(own)
        assert low - 0.01 < value < high + 0.01
        assert high - low < 0.08
    assert gain(row(found, "n_layer", LONG)).verdict is Verdict.GAIN
    assert gain(row(found, "n_embd", SHORT)).value > 5 * gain(row(found, "n_layer", SHORT)).value
    assert all(lever.source == "contrast" for lever in found if lever.factor not in ("n_head", "params"))
    assert isinstance(row(found, "n_head", SHORT).gain, Refusal)


def test_steps_are_differences_of_configurations_and_levers_are_not(grid: tuple[Study, list[Lever]]) -> None:
    verdicts = {step["gain"].verdict for lever in grid[1] for step in lever.steps}
    assert Verdict.NOT_TOLD not in verdicts
    assert Verdict.WITHIN_NOISE not in {lever.gain.verdict for lever in grid[1] if isinstance(lever.gain, Estimate)}


def test_the_largest_models_have_a_row_of_their_own(grid: tuple[Study, list[Lever]]) -> None:
    own = row(grid[1], "n_embd", LONG, "largest")
    assert own.steps[-1]["to"] == 64
    assert own.gain.value == pytest.approx(planted(8, 32, 4, LONG) - planted(8, 64, 4, LONG), abs=0.02)  # type: ignore[union-attr]
    assert own.of_reducible == pytest.approx(own.gain.value / (planted(8, 32, 4, LONG) - 0.4), rel=0.1)  # type: ignore[union-attr]


def test_one_seed_takes_the_law_where_it_has_an_interval() -> None:
    found = levers(study(trials(sd=0.005, seeds=1)))
    own = row(found, "n_embd", LONG)
    assert own.source == "law"
    assert gain(own).low is not None
    assert own.steps[0]["gain"].low is None
    text = gain(row(found, "n_tokens", LONG))
    assert ends(text)[0] < float(np.mean([planted(*s, SHORT) - planted(*s, LONG) for s in GRID])) < ends(text)[1]
    assert text.verdict is Verdict.GAIN


def test_where_every_size_has_its_own_length_nothing_is_credited_to_either() -> None:
    rows = pd.concat([trials([shape], [20 * size(*shape[:2])], sd=0.01) for shape in GRID[:8]])
    known = study(rows)
    found = levers(known)
    assert all(isinstance(lever.gain, Refusal) for lever in found)
    assert verdict.shape(known, found)["verdict"] == "not_told"


def test_repeated_text_is_told_apart() -> None:
    fresh, repeated = trials(sd=0.01), trials(lengths=[LONG], loss=lambda *a: planted(*a) + 1.0, sd=0.01, unique_tokens=24_000)
    cells = replicates.average(pd.concat([fresh, repeated.assign(config_id=repeated["config_id"] + "r")]))
    assert {float(cells.columns["unique_tokens"][i]) for i in at_length(cells, LONG)} == {4_000_000}
    assert all(len({cells.columns["unique_tokens"][i] for i in line.members}) == 1 for line in lines(cells, range(len(cells)), "n_embd"))


def test_a_line_holds_levels_with_other_numbers_of_seeds() -> None:
    shapes = [(2, width, 4) for width in (16, 32, 48, 64)]
    rows = trials(shapes, [LONG], sd=0.01, weight_decay=0.1)  # 0.1 three times has the mean 0.10000000000000002
    cells = replicates.average(rows[~(rows["n_embd"].isin((32, 64)) & (rows["seed"] == 2))])
    assert [line.values for line in lines(cells, range(len(cells)), "n_embd")] == [(16, 32, 48, 64)]


@pytest.mark.parametrize("first", [0.1, 0.2])
def test_the_order_of_equal_lines_does_not_hang_on_the_names_of_their_configurations(first: float) -> None:
    rows = pd.concat([trials([(2, 16, 4), (2, width, 4)], [LONG], dropout=rate) for width, rate in ((32, 0.2), (64, 0.1))])
    cells = replicates.average(rows.assign(config_id=np.where(rows["dropout"] == first, "a", "b") + rows["config_id"]))
    assert [line.values for line in lines(cells, range(len(cells)), "n_embd")] == [(16, 32), (16, 64)]


def test_time_per_step_is_said_where_steps_were_timed_alone() -> None:
    rows = trials(sd=0.005)
    rows = rows.assign(ms_per_step=rows["n_layer"] * 2.0, exclusive_timing=True)
    assert row(levers(study(rows)), "n_layer", SHORT).time_per_step == pytest.approx(2)
    assert row(levers(study(rows.assign(exclusive_timing=False))), "n_layer", SHORT).time_per_step is None


# ---- the one contrast ----


@pytest.mark.parametrize("spread", [(1.0, 1.0), (0.6, 1.5)])
def test_intervals_of_a_contrast_cover_where_seeds_scatter_alike_and_where_not(spread: tuple[float, float]) -> None:
    rng, covered, n = np.random.default_rng(5), 0, 0
    rows = trials(GRID, [SHORT], sd=0.0, seeds=3)
    cells = replicates.average(rows)
    scale = np.where(cells.columns["n_layer"] > 2, *reversed(spread)) * 0.02
    pairs = [pair for line in lines(cells, range(len(cells)), "n_layer") for pair in line.steps()]
    true = cells.loss.copy()
    for _ in range(150):
        drawn = cells.cell_loss + rng.normal(size=len(cells.cell_loss)) * scale[cells.cell_config]
        loss = np.bincount(cells.cell_config, weights=drawn) / 3
        noisy = replace(cells, cell_loss=drawn, loss=loss)
        family = Family.of(noisy, pairs)
        for i, j in pairs:
            low, high = ends(family.contrast([(i, j)]))
            covered, n = covered + (low <= true[i] - true[j] <= high), n + 1
    assert 0.93 <= covered / n <= 0.985


def test_what_lengths_of_one_run_share_cancels() -> None:
    known = study(trials(sd=0.002, shared=0.1))
    low, high = ends(gain(row(levers(known), "n_tokens", LONG)))
    assert high - low < 0.01


# ---- shape at equal size ----


@pytest.mark.parametrize(("a", "b", "said"), [(0.05, 0.6, "wide"), (0.4, 0.1, "deep")])
def test_shape_is_called_from_kappa(a: float, b: float, said: str) -> None:
    found = shape_of_one_length(GRID, lambda d, w, h, t: 0.4 + (d / 2) ** -a * (w / 32) ** -b, 0.003)
    equal = found["equal_size"]
    assert found["verdict"] == said
    assert (equal.winner["n_layer"], equal.winner["n_embd"]) == {"wide": (2, 64), "deep": (8, 32)}[said]
    assert (equal.loser["n_layer"], equal.loser["n_embd"]) == {"wide": (8, 32), "deep": (2, 64)}[said]  # the largest size of several shapes
    assert equal.difference.verdict is Verdict.GAIN


def test_a_clear_verdict_at_a_shorter_length_says_nothing_of_the_longest() -> None:
    def loss(depth: int, width: int, head: int, tokens: int) -> float:
        a, b = (0.05, 0.6) if tokens == SHORT else (0.25, 0.5)  # kappa is 0 at the long length, where the noise hides more
        return 0.4 + (depth / 2) ** -a * (width / 32) ** -b

    known = study(pd.concat([trials(lengths=[n], loss=loss, sd=sd) for n, sd in ((SHORT, 0.003), (LONG, 0.04))]))
    found = verdict.shape(known, levers(known))
    assert (found["n_tokens"], found["verdict"]) == (LONG, "not_told")
    assert [row["verdict"] for row in found["by_length"]] == ["wide", "not_told"]


@pytest.mark.parametrize(
    ("columns", "rule"),
    [({}, "one"), ({"base_width": 32}, "mup"), ({"base_width": 32, "base_depth": 2}, "completep"), ({"lr_status": "tuned"}, "searched")],
)
def test_the_rule_of_learning_rates_is_named(columns: dict[str, Any], rule: str) -> None:
    assert verdict.lr_rule(trials(**columns)) == rule


def shape_of_one_length(shapes: Sequence[Shape], loss: Loss, sd: float) -> dict[str, Any]:
    known = study(trials(shapes, [SHORT], loss=loss, sd=sd))
    return verdict.shape(known, levers(known))


def test_only_size_matters_is_said_where_all_that_the_interval_allows_is_within_the_noise() -> None:
    shapes = [(depth, width, 4) for depth in (1, 2, 3, 4, 6, 8) for width in (16, 24, 32, 48, 64, 96)]
    assert shape_of_one_length(shapes, lambda d, w, h, t: 0.4 + (d * w**2 / 2048) ** -0.2, 0.006)["verdict"] == "size_only"


def test_the_worth_of_a_shape_is_the_factor_of_parameters_that_buys_as_much() -> None:
    found = shape_of_one_length(GRID, lambda d, w, h, t: 0.4 + 2 * (d * w**2 / 2048) ** -0.2 * (w / d / 16) ** -0.05, 0.002)
    # 2x64 against 8x32: aspect 8 times as large, 8**(0.05 / 0.2) times the parameters
    low, high = ends(found["equal_size"].worth_in_parameters)
    assert low < 8 ** (0.05 / 0.2) < high


def test_without_shapes_of_equal_size_the_next_step_is_to_train_some() -> None:
    assert shape_of_one_length([(2, 16, 4), (2, 32, 4), (2, 64, 4)], planted, 0.01)["equal_size"].code is Code.UNMATCHED


# ---- one study against another ----


def test_a_change_is_judged_by_pairs_of_equal_shape_and_length_where_there_is_one_seed() -> None:
    changed = trials(loss=lambda *a: planted(*a) - 0.05, sd=0.01, seeds=1, rng=np.random.default_rng(9))
    found = Paired.of(trials(sd=0.01, seeds=1), changed).overall()
    assert isinstance(found, Estimate)
    assert found.verdict == "gain"


def test_too_little_in_common_cannot_be_told() -> None:
    base, other = trials(GRID[:2], [SHORT], seeds=1), trials(GRID[1:3], [SHORT], seeds=1)
    assert isinstance(Paired.of(base, other).overall(), Refusal)


def test_false_alarms_of_a_judgement_are_one_in_twenty() -> None:
    rng, alarms, rows = np.random.default_rng(11), 0, trials(GRID[:4], [SHORT], seeds=2)
    for _ in range(120):
        found = Paired.of(*(rows.assign(val_loss=rows["val_loss"] + rng.normal(0, 0.02, len(rows))) for _ in range(2))).overall()
        assert isinstance(found, Estimate)
        alarms += found.verdict is not Verdict.WITHIN_NOISE
    assert alarms <= 14  # 6 expected; more than 14 of 120 has a chance of 0.1 %


# ---- no two verdicts of a report disagree ----


def estimates(part: Any, place: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every estimate of a tree with its place."""
    if isinstance(part, Mapping):
        if {"value", "low", "high", "verdict", "unit"} <= part.keys():
            yield place, part
        for key, value in part.items():
            yield from estimates(value, f"{place}/{key}")
    elif isinstance(part, list):
        for i, value in enumerate(part):
            yield from estimates(value, f"{place}/{i}")


PLANTED: dict[str, Loss] = {
    "nothing": lambda d, w, h, t: 1.5,
    "size": lambda d, w, h, t: 0.4 + (d * w**2 / 2048) ** -0.2 * (t / SHORT) ** -0.3,
    "wide": lambda d, w, h, t: 0.4 + (d / 2) ** -0.02 * (w / 32) ** -0.6 * (t / SHORT) ** -0.3,
    "deep": lambda d, w, h, t: 0.4 + (d / 2) ** -0.5 * (w / 32) ** -0.2 * (t / SHORT) ** -0.3,
    "depth pays later": planted,
    "best aspect": lambda d, w, h, t: 0.4 + (d * w**2 / 2048) ** -0.2 * math.exp(0.08 * math.log(w / d / 12) ** 2),
}


@pytest.mark.parametrize("name", PLANTED)
def test_no_two_verdicts_of_a_report_disagree(name: str, tmp_path: Path) -> None:
    records.write_table(tmp_path / "trials.parquet", pa.Table.from_pandas(trials(loss=PLANTED[name], sd=0.006, shared=0.004)))
    tree = conclusions.conclude(tables.load(tmp_path / "trials.parquet"))
    for place, own in estimates({key: tree[key] for key in ("levers", "shape", "trust")}):
        if own["verdict"]:
            sure = {"gain": own["low"] is not None and own["low"] > 0, "loss": own["high"] is not None and own["high"] < 0}
            assert sure.get(own["verdict"], not any(sure.values())), place
            assert (own["verdict"] == "within_noise") <= (place.endswith(("/gain", "/difference"))), place
    assert all(row["verdict"] == row["gain_per_doubling"].get("verdict", row["verdict"]) for row in tree["levers"])
    for at in tree["shape"]["by_length"]:
        rows = {lever["factor"]: lever["gain_per_doubling"] for lever in tree["levers"] if lever["n_tokens"] == at["n_tokens"]}
        per_doubling_of_size = rows["n_embd"]["value"] / 2 - rows["n_layer"]["value"]
        winner, loser = (at["equal_size"][side] for side in ("winner", "loser"))
        wide_won = winner["n_embd"] / winner["n_layer"] > loser["n_embd"] / loser["n_layer"]
        assert winner["config_id"] != loser["config_id"]
        if at["verdict"] in ("wide", "deep"):
            assert (per_doubling_of_size > 0) == (at["verdict"] == "wide")
            assert at["equal_size"]["difference"]["verdict"] != "gain" or wide_won == (at["verdict"] == "wide")
    said = tree["shape"]["verdict"]
    assert said in {"nothing": ("size_only", "not_told"), "size": ("size_only", "not_told"), "wide": ("wide",), "deep": ("deep",),
                    "depth pays later": ("wide",), "best aspect": ("optimum", "not_told")}[name]  # fmt: skip
