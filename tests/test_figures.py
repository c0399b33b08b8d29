"""Figures: what is drawn is what was measured, labels do not collide, bytes are reproducible, pyplot is left alone."""

import csv
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from analysis.figures import laws, loss, style, sweeps, training
from analysis.figures import study as figures
from analysis.findings import conclude as conclusions
from analysis.table import evidence
from analysis.table import load as table
from analysis.table.evidence import Evidence
from tests.running import ROOT, write_study


@pytest.fixture(scope="module")
def study(synthetic_results: Path) -> Evidence:
    """The synthetic study with its real conclusions."""
    return evidence.load(synthetic_results, conclusions.conclude(table.load(synthetic_results)))


@pytest.fixture(scope="module")
def drawn(study: Evidence) -> dict[str, Figure]:
    return figures.study_figures(study.fits, study.trials, study.curves)


def test_a_study_has_every_figure_that_its_data_allow(study: Evidence, drawn: dict[str, Figure]) -> None:
    panels = [f"{kind}_{name}" for name in ("depth", "width", "heads") for kind in ("sweep", "speed")]
    assert set(drawn) == {"loss", "residuals", *panels, "learning_curves", "gap", "memory"}
    assert all(figures.is_ours(name) for name in drawn)
    assert figures.study_figure_names(study.fits, study.trials, study.curves) == list(drawn)


def test_no_labels_overlap_in_any_figure(drawn: dict[str, Figure]) -> None:
    assert {name: found for name, figure in drawn.items() if (found := style.overlapping_texts(figure))} == {}
    figure, (ax,) = style.new_figure()
    for x, label in ((0.5, "one label"), (0.52, "another label")):
        ax.text(x, 0.5, label)
    assert style.overlapping_texts(figure) == [("one label", "another label")]


def test_text_stays_readable_at_half_width(drawn: dict[str, Figure]) -> None:
    for name, figure in drawn.items():
        half = min(1.0, 3.3 / figure.get_size_inches()[0])  # a column of a two-column paper is 3.3 inches wide
        assert min(text.get_fontsize() for text, _ in style.text_boxes(figure)) * half >= 5.5, name


def test_every_seed_is_drawn_once_at_its_depth(study: Evidence, drawn: dict[str, Figure]) -> None:
    points = [(row["series"], row["x"], row["y"]) for row in style.plotted(drawn["loss"]) if str(row["series"]).endswith("seeds")]
    trials = [(f"{t['n_layer']} layers, seeds", t["params_non_embedding"], t["val_loss"]) for t in study.trials]
    assert sorted(points) == sorted(trials)


def test_each_length_has_a_panel_at_most_three_on_one_scale(study: Evidence) -> None:
    longer = [{**t, "n_tokens": n, "config_id": f"{t['config_id']}{n}"} for t in study.trials for n in (1000, 2000, 4000, 8000)]
    figure = loss.draw_loss({}, longer)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["1k tokens", "4k tokens", "8k tokens"]
    assert len({ax.get_ylim() for ax in figure.axes}) == 1
    assert style.overlapping_texts(figure) == []


def test_the_law_is_solid_inside_its_points_and_dashed_beyond_and_goes_through_them(study: Evidence) -> None:
    """A law without misfit is drawn through the points that it made; a law that has no single exponent is not drawn."""
    cell = {name: {"value": value} for name, value in (("E", 0.5), ("A", 1.0), ("a", 0.1), ("b", 0.9))}
    law = {**cell, "reference": {"n_layer": 2.0, "n_embd": 64.0}}
    exact = [{**t, "val_loss": 0.5 + (t["n_layer"] / 2) ** -0.1 * (t["n_embd"] / 64) ** -0.9} for t in study.trials]
    fits = {"shape": {"n_tokens": exact[0]["n_tokens"], "law": law}}
    lines = {line.get_label(): line for line in loss.draw_loss(fits, exact).axes[0].lines}
    solid, beyond = (np.asarray(lines[name].get_xydata(), float) for name in ("2 layers, law", "2 layers, law beyond the data"))
    solid = solid[np.isfinite(solid).all(1)]
    own = sorted({(t["params_non_embedding"], t["val_loss"]) for t in exact if t["n_layer"] == 2})
    assert own[0][0] * 0.9 < solid[:, 0].min() < solid[:, 0].max() < own[-1][0] * 1.1
    assert beyond[:, 0].min() < own[0][0] < own[-1][0] < beyond[:, 0].max()
    assert lines["2 layers, law"].get_linestyle() == "-" != lines["2 layers, law beyond the data"].get_linestyle()
    on_line = np.interp([n for n, _ in own], beyond[:, 0], beyond[:, 1])
    assert on_line == pytest.approx([value for _, value in own], rel=0.01)
    assert loss.law_of({"shape": {"n_tokens": 1, "law": law | {"optimum": {"value": 30.0}}}}, 1) is None


def test_the_floor_is_drawn_where_it_is_near_only(study: Evidence) -> None:
    def texts(floor: float) -> str:
        figure = loss.draw_loss({**study.fits, "data": {**study.fits["data"], "floor": floor}}, study.trials)
        return " ".join(t.get_text() for t in figure.axes[0].texts)

    assert "entropy of the text 0.70" in texts(0.70)
    assert "entropy" not in texts(0.10)


def test_functions_take_and_return_an_ax(study: Evidence) -> None:
    for draw, of in (
        (laws.draw_residuals, (study.fits,)),
        (sweeps.draw_sweep, (study.fits, "width")),
        (sweeps.draw_sweep_speed, (study.fits, "width")),
        (training.draw_learning_curves, (study.curves, study.trials)),
        *((draw, (study.trials,)) for draw in (training.draw_learning_rates, training.draw_gap, training.draw_memory)),
    ):
        (ax,) = style.new_figure()[1]
        assert draw(*of, ax) is ax


def saved(fits: Any, sweep: str, folder: Path) -> str:
    """The SVG of a sweep's figure, which all its files are written beside."""
    return style.save(style.figure_of(sweeps.draw_sweep(fits, sweep)), folder, "figure")


def test_a_persons_matplotlib_settings_and_signs_of_mathematics_change_nothing(study: Evidence, tmp_path: Path) -> None:
    fits = {**study.fits, "sweeps": [{**study.fits["sweeps"][1], "name": "$x^{$ \x1b", "factor": "size"}]}
    plain = saved(fits, "$x^{$ \x1b", tmp_path)
    with mpl.rc_context({"axes.grid": True, "font.size": 20, "lines.marker": "x", "text.usetex": True, "text.parse_math": True}):
        assert saved(fits, "$x^{$ \x1b", tmp_path) == plain


def test_an_unknown_sweep_is_named_with_those_that_exist(study: Evidence) -> None:
    with pytest.raises(ValueError, match=r"no sweep named 'depht'; the study has \['depth', 'width', 'heads'\]"):
        sweeps.draw_sweep(study.fits, "depht")


def test_saved_files_have_reproducible_bytes(study: Evidence, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        saved(study.fits, "heads", tmp_path / folder)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == ["figure.csv", "figure.pdf", "figure.png", "figure.svg"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    means = [float(r["y"]) for r in csv.DictReader((tmp_path / "a" / "figure.csv").open()) if r["series"] == "mean"]
    levels = next(s for s in study.fits["sweeps"] if s["name"] == "heads")["levels"]
    assert means == pytest.approx([level["mean"] for level in levels], rel=1e-9)


@pytest.mark.parametrize(
    "fits", [{}, {"sweeps": [], "fits": {}}, {"primary_fit": None, "timing": {"refused": {"code": "x", "reason": "y"}}}]
)
def test_an_empty_study_draws_nothing_and_does_not_fail(fits: dict[str, Any]) -> None:
    assert figures.study_figures(fits) == {}
    assert len(loss.draw_loss(fits, []).axes) == 1


def test_one_seed_and_one_level_can_be_drawn_and_times_that_cannot_be_compared_have_no_figure(study: Evidence) -> None:
    sweep = study.fits["sweeps"][0]
    drawn = figures.study_figures({"sweeps": [{**sweep, "levels": sweep["levels"][:1]}]}, study.trials[:1])
    assert {"loss", "sweep_depth", "speed_depth"} <= set(drawn)
    assert style.overlapping_texts(drawn["loss"]) == []
    shared = [{**level, "exclusive_timing": False} for level in sweep["levels"]]
    assert "speed_depth" not in figures.study_figure_names({"sweeps": [{**sweep, "levels": shared}]})


def test_a_sweep_over_several_lengths_has_no_line_that_runs_through_them_all(tmp_path: Path) -> None:
    write_study(tmp_path, "quick", lambda trial: 2.0 / trial.shape.n_layer**0.1 + 1e5 / trial.n_tokens)
    tree = conclusions.conclude(table.load(tmp_path))
    assert {sweep["name"]: len(sweep["levels"]) for sweep in tree["sweeps"]} == {"depth": 8, "width": 6, "heads": 6}
    assert not [name for name in figures.study_figure_names(tree, evidence.load(tmp_path, tree).trials) if name.startswith("sweep_")]


def test_an_axis_is_named_after_what_it_holds_whatever_the_sweep_is_called(study: Evidence) -> None:
    levels = study.fits["sweeps"][0]["levels"]
    labels = {"n_layer": "layers", "size": "non-embedding parameters", "lr": "depth"}
    for factor, label in labels.items():
        fits = {"sweeps": [{"name": "depth", "factor": factor, "levels": levels}]}
        assert sweeps.draw_sweep(fits, "depth").get_xlabel() == label


def test_axis_labels_are_round_and_few() -> None:
    assert style.tick_values(8e4, 9e6) == [1e5, 3e5, 1e6, 3e6]
    for low, high in [(0.91, 1.53), (1.1, 1.2), (0.2, 30), (24_000, 900_000), (1, 1.001)]:
        assert 3 <= len(style.tick_values(low, high)) <= 9


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
    code = "import sys; from analysis.figures.loss import draw_loss; draw_loss({}, []); print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


def test_no_seed_of_a_sweep_hides_behind_its_mean_or_another_seed() -> None:
    spread = sweeps._spread([1.0, 1.0, 1.0], span=1.0)
    assert len({x for x, _ in spread}) == 3
    assert min(x for x, _ in spread) > 1.02
    assert sweeps._spread([1.0], span=1.0) == [(1.0, 1.0)]


def test_rates_are_drawn_only_where_some_shape_tried_several() -> None:
    shape = {"n_layer": 2, "n_head": 4}
    ruled = [{**shape, "n_embd": width, "lr": lr} for width, lr in ((32, 1e-2), (64, 7e-3), (96, 6e-3))]
    assert not figures.tried_rates(ruled)
    assert figures.tried_rates([*ruled, {**shape, "n_embd": 64, "lr": 1e-3}])
