"""Sweeps find planted gains and invent none: steps between levels, shapes of equal size, text and context at fixed shapes."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.estimate import Verdict
from analysis.figures import study as figures
from analysis.figures import style, sweeps
from analysis.findings.conclude import conclude
from analysis.findings.sweeps import Sweep, along_axis, describe, find_sweeps
from analysis.report.answer import sentences
from analysis.report.document import at
from analysis.report.sections import sweeps_section
from analysis.table import load as table
from analysis.table.configurations import Configurations, average, measure_noise
from study.spec import Trial
from tests.running import write_study
from tests.test_levers import trials

ALL_TOKENS = 4_000_000
CROSS = [(1, 64, 4), (2, 32, 4), (2, 64, 2), (2, 64, 4), (2, 64, 8), (2, 96, 4), (2, 160, 4), (4, 64, 4), (8, 64, 4)]


def cells_of(names: dict[str, list[tuple[int, int, int]]] | None = None, sd: float = 0.003, rng: np.random.Generator | None = None) -> Any:
    """A cross of sweeps around 2x64h4 in which only size matters, three seeds."""
    loss = lambda d, w, h, t: 0.62 + 0.55 * (d * 12 * w**2 / 1e5) ** -0.34  # noqa: E731
    rows = trials(CROSS, [768_000], loss=loss, sd=sd, rng=rng)
    shapes = zip(rows["n_layer"], rows["n_embd"], rows["n_head"], strict=True)
    return average(rows.assign(sweeps=[[n for n, held in (names or {}).items() if shape in held] or None for shape in shapes]))


def test_one_factor_sweeps_are_found_where_the_table_names_none_and_named_ones_come_first() -> None:
    assert {s.name: s.factor for s in find_sweeps(cells_of())} == {"depth": "n_layer", "width": "n_embd", "heads": "n_head"}
    found = find_sweeps(cells_of({"mine": [(2, 32, 4), (2, 96, 4)]}))
    assert [(s.name, s.factor, len(s.members)) for s in found] == [("mine", "n_embd", 2), ("other", "size", 7)]


def test_gains_carry_intervals_and_verdicts() -> None:
    cells = cells_of()
    blocks = {s.name: describe(cells, s, measure_noise(cells)) for s in find_sweeps(cells)}
    last = blocks["depth"]["levels"][-1]
    assert last["gain_low"] < last["gain"] < last["gain_high"]
    assert last["gain"] == pytest.approx(0.55 * ((4 * 12 * 64**2 / 1e5) ** -0.34 - (8 * 12 * 64**2 / 1e5) ** -0.34), abs=0.008)
    assert last["verdict"] is Verdict.GAIN
    assert [s["axis"] for s in blocks.values()] == [s["shapes"] for s in blocks.values()] == [None] * 3


def test_steps_that_buy_nothing_are_within_noise() -> None:
    rng, verdicts = np.random.default_rng(2), []
    for _ in range(40):
        cells = cells_of(sd=0.01, rng=rng)
        heads = next(s for s in find_sweeps(cells) if s.name == "heads")
        verdicts += [level["verdict"] for level in describe(cells, heads, measure_noise(cells))["levels"][1:]]
    assert sum(v is Verdict.WITHIN_NOISE for v in verdicts) >= 70  # of 80, 76 expected


# ---- shapes of equal size ----


@pytest.fixture(scope="module")
def matched(tmp_path_factory: pytest.TempPathFactory) -> table.Table:
    """The study `matched`: loss falls with N and, at equal N, by 0.05 nats per doubling of width over depth."""

    def loss(trial: Trial) -> float:
        return 0.6 + 1.2 * (trial.shape.params_non_embedding / 1e5) ** -0.2 - 0.05 * math.log2(trial.shape.aspect / 10)

    out = tmp_path_factory.mktemp("shapes") / "matched"
    write_study(out, "matched", loss, noise_sd=0.01)
    return table.load(out)


@pytest.fixture(scope="module")
def tree(matched: table.Table) -> dict[str, Any]:
    return conclude(matched)


def test_shapes_are_compared_within_their_size_only(tree: dict[str, Any]) -> None:
    (sweep,) = tree["sweeps"]
    sizes = sweep["shapes"]["sizes"]
    assert [round(size["params_non_embedding"], -4) for size in sizes] == [30_000, 60_000, 150_000, 390_000, 890_000]
    assert sum(len(size["shapes"]) for size in sizes) == 30
    assert tree["counts"]["sizes"] == 5
    for size in sizes:
        aspects = [row["aspect"] for row in size["shapes"]]
        assert aspects == sorted(aspects, reverse=True)
        best, last = min(size["shapes"], key=lambda row: row["mean"]), size["shapes"][-1]
        assert (best["behind"], best["verdict"]) == (0, "")
        true = 0.05 * math.log2(best["aspect"] / last["aspect"])
        assert last["behind_low"] - 0.02 < true < last["behind_high"] + 0.02  # the best was chosen by its loss: its lead is too large
        assert last["verdict"] == "loss"


def test_its_figure_has_a_line_for_each_size_and_no_label_over_another(tree: dict[str, Any]) -> None:
    ax = sweeps.draw_sweep(tree, "shape")
    labelled = [line for line in ax.lines if str(line.get_label()).endswith("parameters")]
    assert len(labelled) == 5
    assert style.overlapping_texts(ax.get_figure(root=True)) == []  # type: ignore[arg-type]
    for line, size in zip(labelled, tree["sweeps"][0]["shapes"]["sizes"], strict=True):
        for aspect, loss in zip(*line.get_data(), strict=True):
            assert loss == pytest.approx(np.mean([row["mean"] for row in size["shapes"] if row["aspect"] == aspect]))
    assert "speed_shape" not in figures.study_figure_names(tree)


# ---- text, repetition and context ----


def true_loss(trial: Trial) -> float:
    """L = E + A N^-alpha + B D^-beta, D discounted as it is repeated (Muennighoff et al. 2023, eq. 5), less a gain per doubled context."""
    unique = min(trial.train.unique_tokens or ALL_TOKENS, trial.n_tokens)
    repeats = trial.n_tokens / unique - 1
    effective = unique * (1 + 15.4 * (1 - math.exp(-repeats / 15.4)))
    size = trial.model(64).params_non_embedding
    return 0.5 + 3.0 * (size / 6e3) ** -0.25 + 0.9 * (effective / 384e3) ** -0.45 - 0.08 * math.log2(trial.shape.block_size / 64)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Trial], dict[str, Any]]:
    """The study `data`: its folder, its trials, its conclusions."""
    out = tmp_path_factory.mktemp("axes") / "data"
    written = write_study(out, "data", true_loss, unique_tokens=ALL_TOKENS)
    return out, written, conclude(table.load(out))


def axis(tree: dict[str, Any], name: str) -> dict[str, Any]:
    return next(s for s in tree["sweeps"] if s["name"] == name)["axis"]


def size_and_data(cells: Configurations) -> Sweep:
    return next(s for s in find_sweeps(cells) if s.name == "size-and-data")


def test_width_and_text_answer_the_study_of_data_and_repetition_has_its_price(data: tuple[Path, Any, dict[str, Any]]) -> None:
    said = sentences(data[2])[0]
    assert said.startswith("At 3.07M tokens width pays; depth was not varied by itself: width ")
    assert "; twice the text to 3.07M tokens: −0.1" in said
    steps = {step["epochs"]: step for step in axis(data[2], "repetition")["steps"]}
    assert steps[64]["gain"] == pytest.approx(-0.45, abs=0.1)
    assert [steps[n]["verdict"] for n in (64, 4)] == ["loss", "within_noise"]


def test_branches_give_estimates_without_intervals_and_each_length_has_its_own_slope(data: tuple[Path, Any, dict[str, Any]]) -> None:
    fits = data[2]["fits"]
    assert (fits["joint"]["law"], fits["joint"]["n_configurations"], fits["joint"]["slope"]["low"]) == ("M2", 20, None)
    for name, truth in (("alpha", 0.25), ("beta", 0.45), ("E", 0.5)):
        refused = fits["joint"]["parameters"][name]
        assert refused["refused"]["code"] == "n_counts_checkpoints"
        assert refused["bound"]["estimate"] == pytest.approx(truth, rel=0.35)
    for length in (384_000, 768_000, 1_536_000, 3_072_000):
        slope = fits[f"length:{length}"]["slope"]
        power = 3.0 * (slope["at"] / 6e3) ** -0.25
        assert slope["low"] < slope["value"] < slope["high"]
        assert slope["value"] == pytest.approx(-0.25 * power / (0.5 + power + 0.9 * (length / 384e3) ** -0.45), abs=0.012)


def test_the_intervals_of_gains_cover_the_truth_though_lengths_share_their_trunk(data: tuple[Path, dict[str, Trial], Any]) -> None:
    rows = table.load(data[0]).trials
    by_id = [data[1][i] for i in rows["trial_id"]]
    truth = np.array([true_loss(t) for t in by_id])
    trunk_of = np.unique([f"{t.shape.n_embd} {t.train.unique_tokens} {t.seed}" for t in by_id], return_inverse=True)[1]
    own = {t.n_tokens: true_loss(t) for t in by_id if t.shape.n_embd == 64 and not t.train.unique_tokens}
    expected = [own[n] for n in (384_000, 768_000, 1_536_000, 3_072_000)]
    exact = along_axis(cells := average(rows.assign(val_loss=truth)), size_and_data(cells))
    assert exact is not None
    assert [step["gain"] for step in exact["steps"]] == pytest.approx(-np.diff(expected), abs=1e-9)
    rng, hits, widths = np.random.default_rng(11), 0, []
    for _ in range(150):
        noisy = truth + 0.02 * rng.normal(size=trunk_of.max() + 1)[trunk_of] + 0.01 * rng.normal(size=len(truth))
        cells = average(rows.assign(val_loss=noisy))
        found = along_axis(cells, size_and_data(cells))
        assert found is not None
        step = found["steps"][0]
        hits += step["low"] <= expected[0] - expected[1] <= step["high"]
        widths.append(step["high"] - step["low"])
    assert 0.90 <= hits / 150 <= 0.99  # 95 % nominal; binomial standard error 1.8 %
    assert np.mean(widths) == pytest.approx(2 * 2.23 * 0.01 * math.sqrt(2 / 15), rel=0.1)  # the trunk's scatter cancels


def test_a_longer_context_is_told_at_equal_tokens_and_one_seed_gives_no_verdict(data: tuple[Path, Any, Any], tmp_path: Path) -> None:
    write_study(tmp_path / "context", "context", true_loss, unique_tokens=ALL_TOKENS)
    found = conclude(table.load(tmp_path / "context"))
    assert [step["gain"] for step in axis(found, "context")["steps"]] == pytest.approx([0.08] * 3, abs=0.03)
    assert axis(found, "context")["steps"][0]["verdict"] == "gain"
    assert "other" not in {s["name"] for s in found["sweeps"]}
    rows = table.load(data[0]).trials
    cells = average(rows[rows["seed"] == rows["seed"].min()])
    one = along_axis(cells, size_and_data(cells))
    assert one is not None
    assert all(step["low"] is None and step["verdict"] == "not_told" for step in one["steps"])


def test_every_number_of_the_tables_has_its_place(data: tuple[Path, Any, dict[str, Any]]) -> None:
    section = sweeps_section(data[2])
    assert [listing.title for listing in section.listings] == [
        "Sweep repetition", "What repeated text costs", "Sweep size-and-data", "What each step in training tokens bought",
    ]  # fmt: skip
    for listing in section.listings:
        for row in listing.rows:
            assert len(row) == len(listing.columns)
            assert all(at(data[2], cell.source) is not None for cell in row if cell.source)
