"""Figures of the training runs: learning curves, overfitting, memory, learning rates, and what the generated text says.

Reads rows of the tables `trials` and `curves`; writes nothing. Every function takes and returns an `ax`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from analysis.estimate import Row, value_of
from analysis.figures import style
from analysis.figures.style import BLUE, INK, LOSS
from analysis.wording import CONVENTIONS, short_count

LINES, POINTS = 120, 60
"""A figure of learning curves draws at most this many lines of this many points: more is ink, not information."""


def draw_learning_curves(curves: Sequence[Row], trials: Sequence[Row], ax: Axes | None = None) -> Axes:
    """Validation loss against tokens seen, one line per trial, colored by parameters (dark is large)."""
    with style.look():
        ax = ax or style.new_axes()
        sizes = {t["trial_id"]: float(t["params_non_embedding"]) for t in trials}
        by_trial = _thinned(curves, sizes)
        bounds = np.log([min(sizes.values(), default=1), max(sizes.values(), default=1)])
        for trial, points in by_trial.items():
            shade = float((np.log(sizes[trial]) - bounds[0]) / max(bounds[1] - bounds[0], 1e-9))
            ax.plot(*zip(*points, strict=True), color=style.shade(shade), lw=1.0, label=trial)
        everything = [p for points in by_trial.values() for p in points]
        low, high = style.pad_limits([p[0] for p in everything], 0.03)
        ax.set_xlim(low, high * (high / low) ** 0.2)
        ax.set_ylim(style.pad_limits([p[1] for p in everything], 0.06))
        style.log_axis(ax, "x", counts=True)
        style.log_axis(ax, "y")
        ax.set_xlabel("training tokens seen")
        ax.set_ylabel(LOSS)
        ends = dict.fromkeys([min(by_trial, key=sizes.__getitem__), max(by_trial, key=sizes.__getitem__)]) if by_trial else ()
        _label_ends(ax, [(f"{short_count(sizes[trial])}\nparameters", by_trial[trial][-1]) for trial in ends])
    return ax


def _label_ends(ax: Axes, ends: Sequence[tuple[str, tuple[float, float]]]) -> None:
    """Write labels right of the ends of lines, apart where the ends are close."""
    heights = [float(ax.transData.transform(point)[1]) * 72 / ax.figure.dpi for _, point in ends]
    shift = [0.0] * len(ends)
    if len(ends) == 2 and abs(heights[0] - heights[1]) < 28:
        up = 14 - abs(heights[0] - heights[1]) / 2
        shift = [up, -up] if heights[0] >= heights[1] else [-up, up]
    for (text, point), dy in zip(ends, shift, strict=True):
        ax.annotate(text, point, (6, dy), textcoords="offset points", va="center", fontsize=9.5, linespacing=1.1)


def _thinned(curves: Sequence[Row], sizes: Mapping[str, float]) -> dict[str, list[tuple[float, float]]]:
    """(tokens, loss) of each trial, small sizes first, at most LINES trials of POINTS points."""
    by_trial: dict[str, list[tuple[float, float]]] = {}
    for row in curves:
        if row["trial_id"] in sizes and row["tokens"] > 0 and value_of(row.get("val_loss")) is not None:
            by_trial.setdefault(row["trial_id"], []).append((float(row["tokens"]), float(row["val_loss"])))
    order = sorted(by_trial, key=lambda t: (sizes[t], t))
    return {trial: _at_most(sorted(by_trial[trial]), POINTS) for trial in _at_most(order, LINES)}


def _at_most(items: list[Any], most: int) -> list[Any]:
    """The first, the last, and evenly between."""
    return items if len(items) <= most else [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def draw_gap(trials: Sequence[Row], ax: Axes | None = None) -> Axes:
    """Validation less training loss at the end of each trial against parameters: above zero is overfitting."""
    with style.look():
        ax = ax or style.new_axes(height=2.6)
        rows = [t for t in trials if value_of(t.get("train_loss")) is not None and value_of(t.get("val_loss")) is not None]
        x = [float(t["params_non_embedding"]) for t in rows]
        ax.axhline(0, color=INK, lw=0.8)
        ax.scatter(x, [t["val_loss"] - t["train_loss"] for t in rows], s=16, color=BLUE, alpha=0.7, lw=0, label="gap")
        ax.set_xlim(style.pad_limits(x, 0.08))
        style.log_axis(ax, "x", counts=True)
        ax.set_xlabel(CONVENTIONS["params_non_embedding"])
        ax.set_ylabel("validation − training (nats)")
    return ax


def draw_memory(trials: Sequence[Row], ax: Axes | None = None) -> Axes:
    """Peak memory of each trial against all its parameters."""
    with style.look():
        ax = ax or style.new_axes(4.2, 3.2)
        rows = [t for t in trials if value_of(t.get("peak_memory_bytes"))]
        x = [float(t["params_total"]) for t in rows]
        ax.scatter(x, [t["peak_memory_bytes"] / 2**20 for t in rows], s=16, color=BLUE, alpha=0.7, lw=0, label="peak memory")
        ax.set_xlim(style.pad_limits(x, 0.08))
        ax.set_ylim(0, 1.15 * max([t["peak_memory_bytes"] / 2**20 for t in rows], default=1.0))
        style.log_axis(ax, "x", counts=True)
        ax.set_xlabel(CONVENTIONS["params_total"])
        ax.set_ylabel("peak memory (MiB)")
    return ax


def draw_learning_rates(trials: Sequence[Row], ax: Axes | None = None) -> Axes:
    """Loss against peak learning rate, one line per shape, colored by parameters (dark is large)."""
    with style.look():
        ax = ax or style.new_axes()
        shapes: dict[tuple[int, int, int], list[Row]] = {}
        for t in trials:
            if value_of(t.get("lr")) and value_of(t.get("val_loss")) is not None:
                shapes.setdefault((t["n_layer"], t["n_embd"], t["n_head"]), []).append(t)
        sizes = [np.log(rows[0]["params_non_embedding"]) for rows in shapes.values()] or [0.0]
        for (n_layer, n_embd, n_head), rows in shapes.items():
            shade = float((np.log(rows[0]["params_non_embedding"]) - min(sizes)) / max(max(sizes) - min(sizes), 1e-9))
            means = {lr: float(np.mean([r["val_loss"] for r in rows if r["lr"] == lr])) for lr in sorted({r["lr"] for r in rows})}
            ax.plot(list(means), list(means.values()), color=style.shade(shade), lw=1.2, label=f"{n_layer} x {n_embd}, {n_head} heads")
            ax.scatter([r["lr"] for r in rows], [r["val_loss"] for r in rows], s=10, color=style.shade(shade), lw=0, label="_seeds")
        rates = [float(r["lr"]) for rows in shapes.values() for r in rows]
        ax.set_xlim(style.pad_limits(rates, 0.08))
        ax.set_ylim(style.pad_limits([float(r["val_loss"]) for rows in shapes.values() for r in rows], 0.08))
        style.log_axis(ax, "x")
        style.log_axis(ax, "y")
        ax.set_xlabel("peak learning rate")
        ax.set_ylabel(LOSS)
    return ax
