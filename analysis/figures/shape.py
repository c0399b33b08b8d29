"""Figures of size against shape: shapes of equal size, variance shares, parameter-equivalents, forecasts against outcomes.

Reads the conclusions (the dict of `fits.json`); writes nothing. Every function takes and returns an `ax`.
"""

import numpy as np
from matplotlib.axes import Axes

from analysis.estimate import Fits, is_refused, value_of
from analysis.figures import style
from analysis.figures.style import BLUE, CONVENTIONS, INK, LOSS, VERMILLION, short_count
from analysis.wording import WIDEST, contrast_label


def draw_shares(fits: Fits, ax: Axes | None = None) -> Axes:
    """Shares of the variance of loss: Shapley values with intervals (bars) and the sequential order (ticks)."""
    with style.look():
        ax = ax or style.new_axes(height=2.4)
        shares = [] if is_refused(fits.get("structure")) else fits["structure"].get("shares") or []
        shares = [s for s in shares if value_of(s.get("shapley")) is not None]
        for y, share in enumerate(shares):
            ax.barh(y, _number(share["shapley"]), height=0.55, color=BLUE, alpha=0.85)
            if value_of(share.get("low")) is not None:
                ax.plot([share["low"], share["high"]], [y, y], color=INK, lw=1.2, label="_interval")
            if value_of(share.get("sequential")) is not None:
                ax.plot([_number(share["sequential"])], [y], "|", color=VERMILLION, ms=16, mew=2)
        ax.plot([_number(s["shapley"]) for s in shares], range(len(shares)), lw=0, label="Shapley share")
        ax.set_yticks(range(len(shares)), [str(s["factor"]) for s in shares])
        ax.set_ylim(len(shares) - 0.5, -0.5)
        ax.set_xlim(min(0, *[value_of(s["shapley"]) or 0 for s in shares], 0), 1.02)
        ax.set_xlabel("share of the variance of loss")
    return ax


def draw_contrasts(fits: Fits, ax: Axes | None = None, limit: int = 30) -> Axes:
    """Structural effects as parameter-equivalents: what factor on the parameter count has the same effect on loss (1 = none).

    Intervals run out of the axes at a factor of WIDEST.
    """
    with style.look():
        contrasts = [] if is_refused(fits.get("structure")) else fits["structure"].get("contrasts") or []
        rows = [c for c in contrasts if value_of(c.get("parameter_equivalent")) is not None][:limit]
        ax = ax or style.new_axes(height=1.1 + 0.28 * max(len(rows), 2))
        ax.axvline(1, color=INK, lw=0.8)
        for y, c in enumerate(rows):
            sure = value_of(c.get("pe_low")) is not None and value_of(c.get("pe_high")) is not None
            clear = sure and not c["pe_low"] <= 1 <= c["pe_high"]
            if sure:
                ax.plot([c["pe_low"], c["pe_high"]], [y, y], color=BLUE, lw=1.4, label="_interval")
            ax.plot([_number(c["parameter_equivalent"])], [y], "o", color=BLUE, mfc=BLUE if clear else "white")
        ax.plot([_number(c["parameter_equivalent"]) for c in rows], range(len(rows)), lw=0, label="parameter-equivalent")
        ax.set_yticks(range(len(rows)), [contrast_label(str(c["name"])) for c in rows])
        ax.set_ylim(max(len(rows), 1) - 0.5, -0.5)
        ends = [c.get(k) for c in rows for k in ("parameter_equivalent", "pe_low", "pe_high")]
        low, high = style.pad_limits([1.0, *[v for v in map(value_of, ends) if v is not None]], 0.1)
        ax.set_xlim(max(low, 1 / WIDEST), min(high, WIDEST))
        style.log_axis(ax, "x")
        ax.set_xlabel("parameter-equivalent (1 = acts its size)", loc="right")
    return ax


def draw_forecasts(fits: Fits, ax: Axes | None = None) -> Axes:
    """Forecasts with their intervals against parameters, and the outcomes of those that have run."""
    with style.look():
        ax = ax or style.new_axes(height=2.8)
        rows = [r for r in fits.get("forecasts") or [] if value_of((r.get("configuration") or {}).get("params_non_embedding"))]
        sizes = [_number(r["configuration"]["params_non_embedding"]) for r in rows]
        sure = [(n, r["low"], r["high"]) for n, r in zip(sizes, rows, strict=True) if value_of(r.get("low")) and value_of(r.get("high"))]
        ax.vlines([s[0] for s in sure], [s[1] for s in sure], [s[2] for s in sure], color=BLUE, lw=3, alpha=0.45, label="95 % interval")
        ax.plot(sizes, [_number(r["point"]) for r in rows], "_", color=BLUE, ms=12, mew=1.6, label="forecast")
        seen = [(n, _number(r["outcome"]["loss"])) for n, r in zip(sizes, rows, strict=True) if r.get("outcome")]
        ax.scatter([n for n, _ in seen], [loss for _, loss in seen], s=26, color=VERMILLION, zorder=3, label="outcome")
        drawn = [*[s[1] for s in sure], *[s[2] for s in sure], *[_number(r["point"]) for r in rows], *[loss for _, loss in seen]]
        ax.set_xlim(style.pad_limits(sizes, 0.2))
        ax.set_ylim(style.pad_limits(drawn, 0.15))
        style.log_axis(ax, "x", counts=True)
        style.log_axis(ax, "y")
        ax.set_xlabel(CONVENTIONS["params_non_embedding"])
        ax.set_ylabel("validation loss (nats)")
    return ax


def draw_shapes(fits: Fits, name: str, ax: Axes | None = None) -> Axes:
    """Loss against width over depth, one line per size (dark is large) through its means; dots are configurations."""
    with style.look():
        ax = ax or style.new_axes(4.2, 3.2)
        sweep = next(s for s in fits["sweeps"] if s["name"] == name)
        sizes, ends, drawn, taken = sweep["shapes"]["sizes"], [], [], list[tuple[float, float]]()
        for place, size in enumerate(sizes):
            color = style.shade(place / max(len(sizes) - 1, 1))
            by_aspect: dict[float, list[float]] = {}
            for row in size["shapes"]:
                by_aspect.setdefault(row["aspect"], []).append(row["mean"])
                if value_of(row["low"]) is not None:
                    ax.plot([row["aspect"]] * 2, [row["low"], row["high"]], color=color, lw=1.0, alpha=0.6, label="_interval")
                drawn += [row["aspect"]]
            points = [(aspect, float(np.mean(losses))) for aspect, losses in sorted(by_aspect.items())]
            ax.plot(*zip(*points, strict=True), color=color, lw=1.4, label=f"{short_count(float(size['params_non_embedding']))} parameters")
            dots = [(row["aspect"], row["mean"]) for row in size["shapes"]]
            ax.scatter([x for x, _ in dots], [y for _, y in dots], s=16, color=color, lw=0, zorder=3, label="_configurations")
            ends.append((*points[-1], short_count(float(size["params_non_embedding"])), INK))
            aspects = np.geomspace(points[0][0], points[-1][0], 25)
            taken += zip(aspects, np.interp(np.log(aspects), np.log([a for a, _ in points]), [y for _, y in points]), strict=True)
            taken += [(row["aspect"], y) for row in size["shapes"] for y in row["losses"]]
        low, high = style.pad_limits(drawn, 0.06)
        ax.set_xlim(low, high * (high / low) ** 0.14)
        ax.set_ylim(style.pad_limits([y for line in ax.lines for y in np.atleast_1d(line.get_ydata())], 0.06, log=False))
        style.log_axis(ax, "x")
        ax.set_xlabel("width over depth")
        ax.set_ylabel(LOSS)
        style.label_points(ax, ends, avoid=taken)
    return ax


def _number(cell: object) -> float:
    """A cell whose value is known to be there."""
    value = value_of(cell)
    return float("nan") if value is None else value
