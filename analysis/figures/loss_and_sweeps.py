"""Figures of a study. Each `draw_*` function takes and returns an `ax`, so that a notebook user can compose them.

Reads the conclusions (the dict of `fits.json`) and, for curves and memory, rows of the tables; writes nothing
(`analysis.figures.style.save` does).

    ax = draw_loss_against_parameters(fits); ax.figure.savefig("loss.pdf")
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.estimate import Fits, Row, is_refused, value_of
from analysis.figures import style
from analysis.figures.shape import draw_contrasts, draw_forecasts, draw_shapes, draw_shares
from analysis.figures.style import AXIS_LABELS, BLUE, CONVENTIONS, FACTOR_COLUMNS, INK, LETTERS, LOSS, MUTED
from analysis.figures.training import draw_gap, draw_learning_curves, draw_learning_rates, draw_memory


def sweep_levels(fits: Fits) -> list[tuple[str, Row]]:
    """(sweep name, level) of every sweep, in order."""
    return [(sweep["name"], level) for sweep in fits.get("sweeps") or [] for level in sweep.get("levels") or []]


def column_of(sweep: Row) -> str:
    """Table column that a sweep varies, or "" where it varies several."""
    return FACTOR_COLUMNS.get(str(sweep.get("factor")), FACTOR_COLUMNS.get(str(sweep.get("name")), ""))


def level_text(column: str, low: float, high: float | None = None) -> str:
    """'8 layers', 'width 96', '1-8 heads'."""
    span = f"{low:g}" if high is None or high == low else f"{low:g}–{high:g}"
    if column == "n_embd":
        return f"width {span}"
    noun = {"n_layer": "layer", "n_head": "head"}.get(column, "")
    return f"{span} {noun}{'' if span == '1' else 's'}" if noun else span


# ---- loss against parameters ----


def draw_loss_against_parameters(fits: Fits, ax: Axes | None = None, fit_id: str | None = None, trials: Sequence[Row] = ()) -> Axes:
    """Every seed, the fitted law with its band (solid inside the data, dashed outside) and the entropy floor, on log-log axes.

    Args:
        fit_id: which fit; default the primary one.
        trials: COMPLETED rows; those of configurations that are in no sweep are drawn in gray.
    """
    with style.look():
        ax = ax or style.new_axes(height=3.7)
        fit = (fits.get("fits") or {}).get(fit_id or str(fits.get("primary_fit"))) or {}
        column = fit.get("convention", "params_non_embedding")
        levels = [(name, level) for name, level in sweep_levels(fits) if level.get(column)]
        _draw_curve(ax, fit, [float(level[column]) for _, level in levels])
        labels = _draw_levels(ax, fits, levels, column)
        seeds = [(float(level[column]), float(v)) for _, level in levels for v in level["losses"]]
        seeds += _draw_others(ax, levels, trials, column)
        losses = [loss for _, loss in seeds]
        ax.set_ylim(style.pad_limits([*losses, *_floor_if_near(fits, losses)], 0.1))
        if losses:
            ax.set_xlim(style.pad_limits([n for n, _ in seeds], 0.16))
        else:
            ax.text(0.5, 0.5, "no completed trial", transform=ax.transAxes, ha="center", color=LETTERS[MUTED])
        style.log_axis(ax, "x", counts=True)
        style.log_axis(ax, "y")
        ax.set_xlabel(CONVENTIONS.get(column, column))
        ax.set_ylabel(LOSS)
        _draw_floor(ax, fits)
        curve = fit.get("curve") or {"x": [], "y": []}
        style.label_points(ax, labels, avoid=[*seeds, *zip(curve["x"], curve["y"], strict=True)])
    return ax


def _draw_curve(ax: Axes, fit: Row, inside: Sequence[float]) -> None:
    curve = fit.get("curve") or {}
    if not curve.get("x"):
        return
    x, y = np.asarray(curve["x"], float), np.asarray(curve["y"], float)
    if curve.get("low") and None not in curve["low"]:
        ax.fill_between(
            x, np.asarray(curve["low"], float), np.asarray(curve["high"], float), color=MUTED, alpha=0.16, lw=0, label="95 % band"
        )
    within = np.asarray(curve.get("inside") or [min(inside) <= v <= max(inside) for v in x], bool)
    ax.plot(np.where(within, x, np.nan), y, color=INK, label="fit")
    ax.plot(x, y, color=INK, lw=1.2, ls=(0, (4, 3)), label="fit, outside the data", zorder=1.9)


def _draw_levels(ax: Axes, fits: Fits, levels: Sequence[tuple[str, Row]], column: str) -> list[tuple[float, float, str, str]]:
    """Draw seeds and means of each sweep; returns the direct labels of its ends."""
    looks, labels = style.sweep_style([s["name"] for s in fits.get("sweeps") or []]), []
    for sweep in fits.get("sweeps") or []:
        color, marker = looks[sweep["name"]]
        own = [level for name, level in levels if name == sweep["name"]]
        if not own:
            continue
        x = [float(level[column]) for level in own]
        seeds = [(n, float(v)) for n, level in zip(x, own, strict=True) for v in level["losses"]]
        ax.scatter(
            [n for n, _ in seeds], [v for _, v in seeds], s=9, color=color, alpha=0.75, lw=0, zorder=4, label=f"{sweep['name']}, seeds"
        )
        means = [float(np.mean(level["losses"])) for level in own]
        ax.scatter(x, means, s=62, marker=marker, facecolor="none", edgecolor=color, lw=1.2, label=f"{sweep['name']}, mean", zorder=3)
        kind = column_of(sweep)
        if not kind:
            labels.append((x[-1], means[-1], str(sweep["name"]), color))
        elif max(x) == min(x):
            labels.append((x[0], means[0], level_text(kind, own[0][kind], own[-1][kind]), color))
        else:
            labels += [(x[i], means[i], level_text(kind, own[i][kind]), color) for i in (0, len(own) - 1)]
    return labels


def _draw_others(ax: Axes, levels: Sequence[tuple[str, Row]], trials: Sequence[Row], column: str) -> list[tuple[float, float]]:
    """Draw trials of configurations that are in no sweep; returns (parameters, loss) of each."""
    told = {(level.get("n_layer"), level.get("n_embd"), level.get("n_head")) for _, level in levels}
    rows = [t for t in trials if (t["n_layer"], t["n_embd"], t["n_head"]) not in told and t.get(column) and value_of(t.get("val_loss"))]
    points = [(float(t[column]), float(t["val_loss"])) for t in rows]
    if points:
        ax.scatter([n for n, _ in points], [v for _, v in points], s=14, color=MUTED, alpha=0.8, lw=0, label="other configurations, seeds")
    return points


def _floor_if_near(fits: Fits, losses: Sequence[float]) -> list[float]:
    """The floor, where it can be drawn without squeezing the data into less than about half of the axis."""
    floor = value_of((fits.get("data") or {}).get("floor"))
    if floor is None or not losses:
        return []
    return [floor] if np.log(min(losses) / floor) < 0.9 * max(np.log(max(losses) / min(losses)), 0.1) else []


def _draw_floor(ax: Axes, fits: Fits) -> None:
    floor = value_of((fits.get("data") or {}).get("floor"))
    if floor is None:
        return
    low, high = ax.get_ylim()
    if low < floor < high:
        ax.axhline(floor, color=MUTED, lw=1, ls=(0, (1, 2)), label="entropy of the text")
        ax.annotate(
            f"entropy of the text {floor:.3f}", (0.01, floor), (0, 3), ("axes fraction", "data"), "offset points", color=MUTED, fontsize=9
        )
    else:
        ax.annotate(
            f"entropy of the text {floor:.3f}, below this axis", (0.01, 0.025), xycoords="axes fraction", color=LETTERS[MUTED], fontsize=9
        )


def draw_residuals(fits: Fits, ax: Axes | None = None, fit_id: str | None = None) -> Axes:
    """Residuals of the configuration means from the fit (log loss, in percent) with their intervals, against parameters."""
    with style.look():
        ax = ax or style.new_axes(height=2.2)
        fit = (fits.get("fits") or {}).get(fit_id or str(fits.get("primary_fit"))) or {}
        ax.axhline(0, color=INK, lw=0.8)
        rows = [r for r in fit.get("residuals") or [] if value_of(r.get("residual")) is not None]
        x, y = np.array([r["x"] for r in rows], float), np.array([100 * r["residual"] for r in rows], float)
        sure = [(r["x"], 100 * r["low"], 100 * r["high"]) for r in rows if value_of(r.get("low")) is not None]
        ax.vlines([s[0] for s in sure], [s[1] for s in sure], [s[2] for s in sure], color=BLUE, lw=1, alpha=0.7, label="_interval")
        ax.scatter(x, y, s=20, color=BLUE, label="residual (percent)")
        column = fit.get("convention", "params_non_embedding")
        ax.set_xlim(style.pad_limits([float(v) for v in x], 0.16))
        style.log_axis(ax, "x", counts=True)
        ax.set_xlabel(CONVENTIONS.get(column, column))
        ax.set_ylabel("residual (%)")
    return ax


# ---- sweeps ----


def draw_sweep(fits: Fits, name: str, ax: Axes | None = None) -> Axes:
    """Loss of one sweep against what it varies: every seed, the mean and its interval; of shapes at equal sizes, by width over depth."""
    if any(sweep["name"] == name and sweep.get("shapes") for sweep in fits.get("sweeps") or []):
        return draw_shapes(fits, name, ax)
    return _draw_sweep(fits, name, ax, _loss_panel, LOSS)


def draw_sweep_speed(fits: Fits, name: str, ax: Axes | None = None) -> Axes:
    """Time of one training step against what a sweep varies; hollow markers were timed on a shared device."""
    return _draw_sweep(fits, name, ax, _speed_panel, "time per step (ms)")


def _draw_sweep(fits: Fits, name: str, ax: Axes | None, panel: Any, label: str) -> Axes:
    with style.look():
        ax = ax or style.new_axes(4.2, 3.2)
        sweep = next((s for s in fits.get("sweeps") or [] if s["name"] == name), None)
        if sweep is None:
            raise ValueError(f"no sweep named {name!r}; the study has {[s['name'] for s in fits.get('sweeps') or []]}")
        color, marker = style.sweep_style([s["name"] for s in fits["sweeps"]])[name]
        values = [float(level["value"]) for level in sweep["levels"]]
        panel(ax, sweep["levels"], values, color, marker)
        ax.set_xlim(style.pad_limits(values, 0.1))
        style.log_axis(ax, "x", counts=True, values=values if column_of(sweep) else None)
        ax.set_xlabel(AXIS_LABELS.get(column_of(sweep), CONVENTIONS["params_non_embedding"] if sweep.get("factor") == "size" else name))
        ax.set_ylabel(label)
        ax.yaxis.set_major_locator(MaxNLocator(5))
    return ax


def _loss_panel(ax: Axes, levels: Sequence[Row], values: Sequence[float], color: str, marker: str) -> None:
    span = max(np.log(max(values) / min(values)), 0.3) if values else 1.0
    seeds = [(v * s, float(y)) for v, level in zip(values, levels, strict=True) for s, y in _spread(level["losses"], span)]
    ax.scatter([v for v, _ in seeds], [loss for _, loss in seeds], s=14, color=color, alpha=0.75, lw=0, label="seeds", zorder=3)
    ax.plot(values, [float(level["mean"]) for level in levels], marker=marker, ms=8, color=color, mfc="white", lw=1.2, label="mean")
    for v, level in zip(values, levels, strict=True):
        if value_of(level.get("low")) is not None and value_of(level.get("high")) is not None:
            ax.plot([v, v], [level["low"], level["high"]], color=color, lw=1.4, label="_interval")
    drawn = [y for line in ax.lines for y in np.atleast_1d(line.get_ydata())]
    ax.set_ylim(style.pad_limits([float(y) for y in drawn] + [loss for _, loss in seeds], 0.1, log=False))


def _spread(losses: Sequence[float], span: float) -> list[tuple[float, float]]:
    """(factor on x, loss) of each seed: to the right of the mean and a little apart, so that nothing hides a seed.

    Args:
        span: width of the data on the axis, natural log.
    """
    if len(losses) < 2:  # the only seed is the mean
        return [(1.0, loss) for loss in losses]
    step = min(0.015, 0.06 / max(len(losses), 1))
    return [(float(np.exp(span * (0.03 + step * i))), loss) for i, loss in enumerate(losses)]


def _speed_panel(ax: Axes, levels: Sequence[Row], values: Sequence[float], color: str, marker: str) -> None:
    timed = [(v, value_of(level.get("ms_per_step")), bool(level.get("exclusive_timing"))) for v, level in zip(values, levels, strict=True)]
    known = [(v, ms, alone) for v, ms, alone in timed if ms is not None]
    ax.plot([k[0] for k in known], [k[1] for k in known], color=color, lw=1.2, label="time per step")
    for v, ms, alone in known:
        ax.plot([v], [ms], marker=marker, color=color, mfc=color if alone else "white")
    ax.set_ylim(0, 1.15 * max([k[1] for k in known], default=1.0))
    if not known:
        ax.text(0.5, 0.5, "no timing recorded", transform=ax.transAxes, ha="center", color=MUTED)


# ---- all of them ----


def slug(name: object) -> str:
    """A sweep's name as part of a file name."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in str(name))[:40]


def has_panel(sweep: Row) -> bool:
    """Whether a sweep compares its levels: configurations of no sweep are kept under "other" and only shown."""
    return sweep.get("name") != "other" and (bool(sweep.get("shapes")) or 0 < len(sweep.get("levels") or []) <= MOST_LEVELS)


MOST_LEVELS = 30
"""A sweep of more levels (a grid) has no panel of its own: loss against parameters shows it."""


def study_figures(fits: Fits, trials: Sequence[Row] = (), curves: Sequence[Row] = ()) -> dict[str, Figure]:
    """Every figure that a study's conclusions and rows allow, by file name; also drawn while a study runs.

    Args:
        fits: the conclusions (`fits.json`); parts may be missing.
        trials: COMPLETED rows of the table `trials`, for memory, learning rates and the gap between training and validation.
        curves: rows of the table `curves`.
    """
    axes = {name: draw() for name, draw in _drawings(fits, trials, curves).items()}
    return {name: ax.get_figure(root=True) for name, ax in axes.items()}  # type: ignore[misc]


def tried_rates(trials: Sequence[Row]) -> bool:
    """Whether some shape was trained at several learning rates: only then does a figure of rates compare anything."""
    rates: dict[tuple[Any, ...], set[float]] = {}
    for t in trials:
        rates.setdefault((t["n_layer"], t["n_embd"], t["n_head"]), set()).add(value_of(t.get("lr")) or 0.0)
    return any(len(found - {0.0}) > 1 for found in rates.values())


def study_figure_names(fits: Fits, trials: Sequence[Row] = (), curves: Sequence[Row] = ()) -> list[str]:
    """The names of `study_figures`, without drawing."""
    return list(_drawings(fits, trials, curves))


def _drawings(fits: Fits, trials: Sequence[Row], curves: Sequence[Row]) -> dict[str, Callable[[], Axes]]:
    found: dict[str, Callable[[], Axes]] = {}
    ids = {t["trial_id"] for t in trials}
    structure = {} if is_refused(fits.get("structure")) else fits["structure"]
    if sweep_levels(fits) or fits.get("fits") or trials:
        found["loss"] = lambda: draw_loss_against_parameters(fits, trials=trials)
    if ((fits.get("fits") or {}).get(str(fits.get("primary_fit"))) or {}).get("residuals"):
        found["residuals"] = lambda: draw_residuals(fits)
    for name in [s["name"] for s in fits.get("sweeps") or [] if has_panel(s)]:
        found[f"sweep_{slug(name)}"] = partial(draw_sweep, fits, name)
    for name in [s["name"] for s in fits.get("sweeps") or [] if has_panel(s) and not s.get("shapes")]:
        found[f"speed_{slug(name)}"] = partial(draw_sweep_speed, fits, name)
    for name, draw in (("shares", draw_shares), ("contrasts", draw_contrasts)):
        if structure.get(name) and not is_refused(structure[name]):
            found[name] = partial(draw, fits)
    if isinstance(fits.get("forecasts"), list) and fits["forecasts"]:
        found["forecasts"] = lambda: draw_forecasts(fits)
    if any(row["trial_id"] in ids for row in curves):
        found["learning_curves"] = lambda: draw_learning_curves(curves, trials)
    if tried_rates(trials):
        found["learning_rates"] = lambda: draw_learning_rates(trials)
    if any(value_of(t.get("train_loss")) is not None for t in trials):
        found["gap"] = lambda: draw_gap(trials)
    if any(value_of(t.get("peak_memory_bytes")) for t in trials):
        found["memory"] = lambda: draw_memory(trials)
    return found
