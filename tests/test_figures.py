"""Figures: what is drawn is what was measured, labels do not collide, bytes are reproducible, pyplot is left alone."""

import csv
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from analysis.figures import loss_and_sweeps as figures
from analysis.figures import shape as figures_shape
from analysis.figures import style
from analysis.figures import training as figures_training
from analysis.findings import conclude as conclusions
from analysis.findings.fit_summary import Options
from analysis.table import evidence
from analysis.table import load as table
from analysis.table.evidence import Evidence


@pytest.fixture(scope="module")
def study(synthetic_results: Path) -> Evidence:
    """The synthetic study with its real conclusions."""
    return evidence.load(synthetic_results, conclusions.conclude(table.load(synthetic_results), Options(n_bootstrap=50)))


@pytest.fixture(scope="module")
def drawn(study: Evidence) -> dict[str, Figure]:
    return figures.study_figures(study.fits, study.trials, study.curves)


def test_a_study_has_every_figure_that_its_data_allow(study: Evidence, drawn: dict[str, Figure]) -> None:
    sweeps = [f"{kind}_{name}" for name in ("depth", "width", "heads") for kind in ("sweep", "speed")]
    assert set(drawn) == {"loss", "residuals", *sweeps, "contrasts", "learning_curves", "gap", "memory"}
    assert figures.study_figure_names(study.fits, study.trials, study.curves) == list(drawn)


def test_no_labels_overlap_in_any_figure(drawn: dict[str, Figure]) -> None:
    assert {name: found for name, figure in drawn.items() if (found := style.overlapping_texts(figure))} == {}


def test_overlapping_labels_are_found() -> None:
    ax = style.new_axes()
    ax.text(0.5, 0.5, "one label")
    ax.text(0.52, 0.5, "another label")
    assert style.overlapping_texts(ax.figure) == [("one label", "another label")]  # type: ignore[arg-type]


def test_text_stays_readable_at_half_width(drawn: dict[str, Figure]) -> None:
    for name, figure in drawn.items():
        half = min(1.0, 3.3 / figure.get_size_inches()[0])  # a column of a two-column paper is 3.3 inches wide
        assert min(text.get_fontsize() for text, _ in style.text_boxes(figure)) * half >= 5.5, name


def test_every_seed_of_every_sweep_is_drawn(study: Evidence, drawn: dict[str, Figure]) -> None:
    points = [(row["series"], row["x"], row["y"]) for row in style.plotted(drawn["loss"]) if str(row["series"]).endswith("seeds")]
    trials = [(f"{sweep}, seeds", t["params_non_embedding"], t["val_loss"]) for t in study.trials for sweep in t["sweeps"]]
    assert sorted(points) == sorted(trials)


def test_configurations_outside_all_sweeps_are_drawn_too(study: Evidence) -> None:
    other = {**study.trials[0], "n_layer": 3, "n_embd": 128, "params_non_embedding": 590_720, "val_loss": 0.95}
    ax = figures.draw_loss_against_parameters(study.fits, trials=[*study.trials, other])
    points = [(r["x"], r["y"]) for r in style.plotted(ax.figure) if r["series"] == "other configurations, seeds"]  # type: ignore[arg-type]
    assert points == [(590_720, 0.95)]
    assert "loss" in figures.study_figure_names({}, study.trials)


def test_the_fit_is_solid_inside_the_data_and_dashed_outside(study: Evidence, drawn: dict[str, Figure]) -> None:
    lines = {line.get_label(): line for line in drawn["loss"].axes[0].lines}
    sizes = [t["params_non_embedding"] for t in study.trials]
    solid = np.asarray(lines["fit"].get_xydata())
    solid = solid[np.isfinite(solid).all(1)]
    dashed = np.asarray(lines["fit, outside the data"].get_xydata())
    assert min(sizes) <= solid[:, 0].min() < solid[:, 0].max() <= max(sizes)
    assert dashed[:, 0].min() < min(sizes) < max(sizes) < dashed[:, 0].max()
    assert lines["fit"].get_linestyle() == "-"
    assert lines["fit, outside the data"].get_linestyle() == "--"


def test_the_floor_is_drawn_where_it_is_near_and_named_where_it_is_not(study: Evidence) -> None:
    def texts(floor: float) -> str:
        ax = figures.draw_loss_against_parameters({**study.fits, "data": {**study.fits["data"], "floor": floor}})
        return " ".join(t.get_text() for t in ax.texts)

    assert "entropy of the text 0.700" in texts(0.70)
    assert "below this axis" not in texts(0.70)
    assert "entropy of the text 0.100, below this axis" in texts(0.10)


def test_functions_take_and_return_an_ax(study: Evidence) -> None:
    figure, axes = style.new_figure(5, 5, rows=2, ratios=(3, 1))
    assert figures.draw_loss_against_parameters(study.fits, axes[0]) is axes[0]
    assert figures.draw_residuals(study.fits, axes[1]) is axes[1]
    for draw in (
        lambda ax: figures.draw_sweep(study.fits, "width", ax),
        lambda ax: figures.draw_sweep_speed(study.fits, "width", ax),
        lambda ax: figures_shape.draw_contrasts(study.fits, ax),
        lambda ax: figures_training.draw_learning_curves(study.curves, study.trials, ax),
        lambda ax: figures_training.draw_learning_rates(study.trials, ax),
        lambda ax: figures_training.draw_gap(study.trials, ax),
        lambda ax: figures_training.draw_memory(study.trials, ax),
    ):
        ax = style.new_axes()
        assert draw(ax) is ax
    assert len(figure.axes) == 2


def test_an_unknown_sweep_is_named_with_those_that_exist(study: Evidence) -> None:
    with pytest.raises(ValueError, match=r"no sweep named 'depht'; the study has \['depth', 'width', 'heads'\]"):
        figures.draw_sweep(study.fits, "depht")


def test_saved_files_have_reproducible_bytes(study: Evidence, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        style.save(figures.draw_sweep(study.fits, "heads").figure, tmp_path / folder, "heads")  # type: ignore[arg-type]
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == ["heads.csv", "heads.pdf", "heads.png", "heads.svg"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    rows = list(csv.DictReader((tmp_path / "a" / "heads.csv").open()))
    means = [float(r["y"]) for r in rows if r["series"] == "mean"]
    levels = next(s for s in study.fits["sweeps"] if s["name"] == "heads")["levels"]
    assert means == pytest.approx([level["mean"] for level in levels], rel=1e-9)


@pytest.mark.parametrize(
    "fits", [{}, {"sweeps": [], "fits": {}}, {"primary_fit": None, "structure": {"refused": {"code": "x", "reason": "y"}}}]
)
def test_an_empty_study_draws_nothing_and_does_not_fail(fits: dict[str, Any]) -> None:
    assert figures.study_figures(fits) == {}
    assert isinstance(figures.draw_loss_against_parameters(fits), Axes)


def test_one_seed_and_one_level_can_be_drawn() -> None:
    level = {
        "value": 2,
        "n_layer": 2,
        "n_embd": 64,
        "n_head": 4,
        "params_non_embedding": 98_000,
        "params_total": 1e5,
        "mean": 1.2,
        "losses": [1.2],
    }
    fits = {"sweeps": [{"name": "depth", "factor": "n_layer", "levels": [level]}], "fits": {}}
    assert set(figures.study_figures(fits)) == {"loss", "sweep_depth", "speed_depth"}
    assert style.overlapping_texts(figures.study_figures(fits)["loss"]) == []


def test_axis_labels_are_round_and_few() -> None:
    assert style.tick_values(8e4, 9e6) == [1e5, 3e5, 1e6, 3e6]
    for low, high in [(0.91, 1.53), (1.1, 1.2), (0.2, 30), (24_000, 900_000), (1, 1.001)]:
        assert 3 <= len(style.tick_values(low, high)) <= 9
    assert [style.short_count(v) for v in (950, 98_560, 1_234_567, 2e9)] == ["950", "98.6k", "1.23M", "2G"]


def _as_seen(color: str, matrix: list[list[float]]) -> np.ndarray:
    """CIE Lab of a color as somebody with a color-vision deficiency sees it (Machado et al. 2009, severity 1)."""
    rgb = np.array(to_rgb(color))
    linear = np.clip(np.array(matrix) @ np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92), 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_sweeps_can_be_told_apart_with_color_vision_deficiencies() -> None:
    deuteranopia = [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
    protanopia = [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]
    colors = [color for color, _ in style.FACTORS.values()]
    for matrix, (a, b) in itertools.product((deuteranopia, protanopia), itertools.combinations(colors, 2)):
        assert np.linalg.norm(_as_seen(a, matrix) - _as_seen(b, matrix)) > 15
    assert len({marker for _, marker in [*style.FACTORS.values(), *style.EXTRAS]}) == 7


def test_drawing_leaves_pyplot_alone() -> None:
    code = (
        "import sys; from analysis.figures import loss_and_sweeps as figures; "
        "figures.draw_loss_against_parameters({}); print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


def test_no_seed_of_a_sweep_hides_behind_its_mean_or_another_seed() -> None:
    spread = figures._spread([1.0, 1.0, 1.0], span=1.0)
    assert len({x for x, _ in spread}) == 3
    assert min(x for x, _ in spread) > 1.02
    assert figures._spread([1.0], span=1.0) == [(1.0, 1.0)]


def test_rates_are_drawn_only_where_some_shape_tried_several() -> None:
    shape = {"n_layer": 2, "n_head": 4}
    ruled = [{**shape, "n_embd": width, "lr": lr} for width, lr in ((32, 1e-2), (64, 7e-3), (96, 6e-3))]
    assert not figures.tried_rates(ruled)
    assert figures.tried_rates([*ruled, {**shape, "n_embd": 64, "lr": 1e-3}])
