"""Figures of laws, levers and forecasts: residuals, gains over training length, forecasts against outcomes.

Reads the tree of fits.json; writes nothing. Every function takes and returns an `ax`.
"""

import numpy as np
from matplotlib.axes import Axes

from analysis.estimate import SIZE, Fits, Row, value_of
from analysis.figures import style
from analysis.figures.style import BLUE, GREEN, INK, ORANGE, PURPLE, VERMILLION
from analysis.wording import CONVENTIONS, FACTORS

COLORS = {"n_embd": BLUE, "n_layer": VERMILLION, "n_head": PURPLE, "params": GREEN, "n_tokens": ORANGE}


def levers_over_length(fits: Fits) -> dict[str, list[tuple[int, Row]]]:
    """Factor -> (tokens, gain) at the centre of each training length, of the factors that are known at two lengths or more."""
    found: dict[str, list[tuple[int, Row]]] = {}
    for row in fits.get("levers") or []:
        if row.get("at") == "centre" and row.get("n_tokens") and value_of(row["gain_per_doubling"]) is not None:
            found.setdefault(str(row["factor"]), []).append((int(row["n_tokens"]), row["gain_per_doubling"]))
    return {factor: sorted(rows, key=lambda row: row[0]) for factor, rows in found.items() if len(rows) > 1}


def draw_levers(fits: Fits, ax: Axes | None = None) -> Axes:
    """What a doubling of each lever buys (nats) against training length (tokens), with 95 % bands."""
    with style.axes(ax, height=3.0) as ax:
        ax.axhline(0, color=INK, lw=0.8)
        ends, lengths = [], list[float]()
        for factor, rows in levers_over_length(fits).items():
            name, color = FACTORS[factor], COLORS[factor]
            x, y = [float(n) for n, _ in rows], [float(gain["value"]) for _, gain in rows]
            low, high = ([np.nan if gain.get(end) is None else float(gain[end]) for _, gain in rows] for end in ("low", "high"))
            ax.fill_between(x, low, high, color=color, alpha=0.15, lw=0, label=f"{name}, 95 %")
            ax.plot(x, y, "o-", color=color, ms=4, lw=1.4, label=name)
            ends.append((x[-1], y[-1], name, color))
            lengths += x
        style.log_axis(ax, "x", "training tokens", lengths, 0.15, counts=True)
        ax.set_ylabel("nats gained per doubling")
        style.label_points(ax, ends)
    return ax


def draw_residuals(fits: Fits, ax: Axes | None = None) -> Axes:
    """Residuals of the configuration means from the law of loss against parameters (percent) with their intervals."""
    with style.axes(ax, height=2.2) as ax:
        fit = (fits.get("fits") or {}).get(str(fits.get("primary_fit"))) or {}
        ax.axhline(0, color=INK, lw=0.8)
        rows = [r for r in fit.get("residuals") or [] if value_of(r.get("residual")) is not None]
        sure = [(r["x"], 100 * r["low"], 100 * r["high"]) for r in rows if value_of(r.get("low")) is not None]
        ax.vlines(*style.series(sure, 3), color=BLUE, lw=1, alpha=0.7, label="_interval")
        ax.scatter([r["x"] for r in rows], [100 * r["residual"] for r in rows], s=20, color=BLUE, label="residual (percent)")
        column = str(fit.get("convention", SIZE))
        style.log_axis(ax, "x", CONVENTIONS.get(column, column), [float(r["x"]) for r in rows], 0.16, counts=True)
        ax.set_ylabel("residual (%)")
    return ax


def draw_forecasts(fits: Fits, ax: Axes | None = None) -> Axes:
    """Forecasts with their intervals against parameters, and the outcomes of those that have run."""
    with style.axes(ax, height=2.8) as ax:
        rows = [r for r in fits.get("forecasts") or [] if value_of((r.get("configuration") or {}).get(SIZE))]
        sizes = [float(r["configuration"][SIZE]) for r in rows]
        points = [value_of(r["point"]) or np.nan for r in rows]
        sure = [(n, r["low"], r["high"]) for n, r in zip(sizes, rows, strict=True) if value_of(r.get("low")) and value_of(r.get("high"))]
        ax.vlines(*style.series(sure, 3), color=BLUE, lw=3, alpha=0.45, label="95 % interval")
        ax.plot(sizes, points, "_", color=BLUE, ms=12, mew=1.6, label="forecast")
        seen, outcomes = style.series([(n, r["outcome"]["loss"]) for n, r in zip(sizes, rows, strict=True) if r.get("outcome")])
        ax.scatter(seen, outcomes, s=26, color=VERMILLION, zorder=3, label="outcome")
        style.log_axis(ax, "x", CONVENTIONS[SIZE], sizes, 0.2, counts=True)
        losses = [*(v for s in sure for v in s[1:]), *points, *outcomes]
        style.log_axis(ax, "y", "validation loss (nats)", losses, 0.15)
    return ax
