"""Figures of sweeps: loss and time per step against what a sweep varies, shapes of equal size by width over depth.

Reads the tree of fits.json; writes nothing. Every function takes and returns an `ax`.

    draw_sweep(fits, "width").figure.savefig("width.pdf")
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis.estimate import Fits, Row, value_of
from analysis.figures import style
from analysis.figures.style import AXIS_LABELS, INK, LOSS
from analysis.wording import CONVENTIONS, short_count

MOST_LEVELS = 30
"""A sweep of more levels (a grid) has no figure of its own: loss against parameters shows it."""


def has_panel(sweep: Row) -> bool:
    """Whether a sweep compares its levels, each standing once: of several lengths the figure of all losses has a panel each.

    Configurations of no sweep are kept under "other" and only shown.
    """
    values = [level["value"] for level in sweep.get("levels") or []]
    single = 0 < len(values) <= MOST_LEVELS and len(set(values)) == len(values)
    return sweep.get("name") != "other" and (bool(sweep.get("shapes")) or single)


def is_timed(sweep: Row) -> bool:
    """Whether every level was timed alone on its device: only then do its times compare."""
    levels = sweep.get("levels") or []
    return bool(levels) and all(value_of(level.get("ms_per_step")) is not None and level.get("exclusive_timing") for level in levels)


def slugs(fits: Fits) -> dict[str, str]:
    """Name of a sweep or search -> its part of file names: readable, at most 40 signs, no two alike even where case does not count."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(str(block["name"]) for part in ("sweeps", "fronts") for block in fits.get(part) or []):
        short = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in name)[:40]
        n = sum(known.casefold().partition("~")[0] == short.casefold() for known in found.values())
        found[name] = f"{short}~{n + 1}" if n else short
    return found


def draw_sweep(fits: Fits, name: str, ax: Axes | None = None) -> Axes:
    """Loss of one sweep against what it varies: every seed, the mean and its interval; of shapes at equal sizes, by width over depth."""
    if any(sweep["name"] == name and sweep.get("shapes") for sweep in fits.get("sweeps") or []):
        return draw_shapes(fits, name, ax)
    return _draw_sweep(fits, name, ax, _loss_panel, LOSS)


def draw_sweep_speed(fits: Fits, name: str, ax: Axes | None = None) -> Axes:
    """Time of one training step against what a sweep varies, of levels that were timed (see `is_timed`)."""
    return _draw_sweep(fits, name, ax, _speed_panel, "time per step (ms)")


def _draw_sweep(fits: Fits, name: str, ax: Axes | None, panel: Any, label: str) -> Axes:
    with style.axes(ax, 4.2, 3.2) as ax:
        names = [s["name"] for s in fits.get("sweeps") or []]
        if name not in names:
            raise ValueError(f"no sweep named {name!r}; the study has {names}")
        sweep, (color, marker) = fits["sweeps"][names.index(name)], style.sweep_style(names)[name]
        values = [float(level["value"]) for level in sweep["levels"]]
        panel(ax, sweep["levels"], values, color, marker)
        factor = sweep.get("factor")
        label_x = AXIS_LABELS.get(factor, CONVENTIONS["params_non_embedding"] if factor == "size" else style.shown(name))
        style.log_axis(ax, "x", label_x, values, 0.1, counts=True, ticks=values if factor in AXIS_LABELS else None)
        ax.set_ylabel(label)
        ax.yaxis.set_major_locator(MaxNLocator(5))
    return ax


def _loss_panel(ax: Axes, levels: Sequence[Row], values: Sequence[float], color: str, marker: str) -> None:
    span = max(np.log(max(values) / min(values)), 0.3) if values else 1.0
    seeds = [(v * s, float(y)) for v, level in zip(values, levels, strict=True) for s, y in _spread(level["losses"], span)]
    x, losses = style.series(seeds)
    ax.scatter(x, losses, s=14, color=color, alpha=0.75, lw=0, label="seeds", zorder=3)
    ax.plot(values, [float(level["mean"]) for level in levels], marker=marker, ms=8, color=color, mfc="white", lw=1.2, label="mean")
    for v, level in zip(values, levels, strict=True):
        if value_of(level.get("low")) is not None and value_of(level.get("high")) is not None:
            ax.plot([v, v], [level["low"], level["high"]], color=color, lw=1.4, label="_interval")
    ax.set_ylim(style.pad_limits([*_heights(ax), *losses], 0.1, log=False))


def _heights(ax: Axes) -> list[float]:
    """The y of every point on a line."""
    return [float(y) for line in ax.lines for y in np.atleast_1d(line.get_ydata())]


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
    known = [(v, level["ms_per_step"]) for v, level in zip(values, levels, strict=True) if level.get("exclusive_timing")]
    x, ms = style.series(known)
    ax.plot(x, ms, color=color, lw=1.2, label="time per step")
    for point in known:
        ax.plot(*point, marker=marker, color=color, mfc=color)
    ax.set_ylim(0, 1.15 * max(ms, default=1.0))


def draw_shapes(fits: Fits, name: str, ax: Axes | None = None) -> Axes:
    """Loss against width over depth, one line per size (dark is large) through its means; dots are configurations."""
    with style.axes(ax, 4.2, 3.2) as ax:
        sizes = next(s for s in fits["sweeps"] if s["name"] == name)["shapes"]["sizes"]
        ends, taken = [], list[tuple[float, float]]()
        for place, size in enumerate(sizes):
            color, parameters = style.shade(place / max(len(sizes) - 1, 1)), short_count(float(size["params_non_embedding"]))
            by_aspect: dict[float, list[float]] = {}
            for row in size["shapes"]:
                by_aspect.setdefault(row["aspect"], []).append(row["mean"])
                if value_of(row["low"]) is not None:
                    ax.plot([row["aspect"]] * 2, [row["low"], row["high"]], color=color, lw=1.0, alpha=0.6, label="_interval")
            points = [(aspect, float(np.mean(losses))) for aspect, losses in sorted(by_aspect.items())]
            ax.plot(*zip(*points, strict=True), color=color, lw=1.4, label=f"{parameters} parameters")
            x, means = style.series([(row["aspect"], row["mean"]) for row in size["shapes"]])
            ax.scatter(x, means, s=16, color=color, lw=0, zorder=3, label="_configurations")
            ends.append((*points[-1], parameters, INK))
            aspects = np.geomspace(points[0][0], points[-1][0], 25)
            taken += zip(aspects, np.interp(np.log(aspects), np.log([a for a, _ in points]), [y for _, y in points]), strict=True)
            taken += [(row["aspect"], y) for row in size["shapes"] for y in row["losses"]]
        drawn = [row["aspect"] for size in sizes for row in size["shapes"]]
        ax.set(ylim=style.pad_limits(_heights(ax), 0.06, log=False), ylabel=LOSS)
        style.log_axis(ax, "x", "width over depth", drawn, 0.06, beyond=0.14)
        style.label_points(ax, ends, avoid=taken)
    return ax
