"""A sweep of shapes at equal sizes is told by size: which shape is best, how far the others are behind; nothing is chained across sizes."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.figures import study as figures
from analysis.figures import style, sweeps
from analysis.findings import conclude as conclusions
from analysis.findings.fit_summary import Options
from analysis.report.answer import sentences
from analysis.table import load as table
from study.spec import Trial
from tests.running import write_study


def concluded(out: Path, width_pays: float, preset: str = "matched") -> dict[str, Any]:
    """Conclusions where loss falls with N and, at equal N, by `width_pays` nats per doubling of width over depth."""

    def loss(trial: Trial) -> float:
        return 0.6 + 1.2 * (trial.shape.params_non_embedding / 1e5) ** -0.2 - width_pays * math.log2(trial.shape.aspect / 10)

    write_study(out, preset, loss, noise_sd=0.01)
    return conclusions.conclude(table.load(out), Options(n_bootstrap=0))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return concluded(tmp_path_factory.mktemp("shapes") / "matched", 0.05)


def test_shapes_are_compared_within_their_size_only(tree: dict[str, Any]) -> None:
    (sweep,) = tree["sweeps"]
    sizes = sweep["shapes"]["sizes"]
    assert [round(size["params_non_embedding"], -4) for size in sizes] == [30_000, 60_000, 150_000, 390_000, 890_000]
    assert sum(len(size["shapes"]) for size in sizes) == 30
    assert tree["counts"]["sizes"] == 5
    for size in sizes:
        aspects = [row["aspect"] for row in size["shapes"]]
        assert aspects == sorted(aspects, reverse=True)
        best = min(size["shapes"], key=lambda row: row["mean"])
        assert (size["best"], best["behind"], best["verdict"]) == (best["config_id"], 0, "")
        assert size["verdict"] == "differ"
        last = size["shapes"][-1]
        true = 0.05 * math.log2(best["aspect"] / last["aspect"])
        assert last["behind_low"] < true + 0.02  # the best was chosen by its loss, so its lead is a little too large
        assert true - 0.02 < last["behind_high"]
        assert last["verdict"] == "loss"


def test_the_answer_follows_the_shape_that_wins_at_equal_size(tree: dict[str, Any], tmp_path: Path) -> None:
    assert tree["shape"]["verdict"] == "wide"
    first, second, _ = sentences(tree)
    assert "go wider" in first
    assert "over all 30 configurations wide beats deep at equal size" in second
    deep = sentences(concluded(tmp_path / "deep", -0.05))
    assert "go deeper" in deep[0]
    assert "deep beats wide" in deep[1]
    nothing = concluded(tmp_path / "none", 0.0)
    said = [size["verdict"] for size in nothing["sweeps"][0]["shapes"]["sizes"]]
    assert said.count("within_noise") >= 4


def test_a_sweep_in_which_size_changes_at_every_step_is_told_as_before(tmp_path: Path) -> None:
    found = concluded(tmp_path / "quick", 0.02, preset="quick")["sweeps"]
    assert [(sweep["name"], sweep["shapes"]) for sweep in found] == [("depth", None), ("width", None), ("heads", None)]


def test_its_figure_has_a_line_for_each_size_and_no_label_over_another(tree: dict[str, Any]) -> None:
    ax = sweeps.draw_sweep(tree, "shape")
    labelled = [line for line in ax.lines if str(line.get_label()).endswith("parameters")]
    assert len(labelled) == 5
    assert style.overlapping_texts(ax.get_figure(root=True)) == []  # type: ignore[arg-type]
    for line, size in zip(labelled, tree["sweeps"][0]["shapes"]["sizes"], strict=True):
        drawn = dict(zip(*line.get_data(), strict=True))
        for aspect, loss in drawn.items():
            assert loss == pytest.approx(np.mean([row["mean"] for row in size["shapes"] if row["aspect"] == aspect]))
    assert "speed_shape" not in figures.study_figure_names(tree)
