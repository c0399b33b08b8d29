"""Figures of the training runs: learning curves, overfitting, memory, learning rates, and what the generated text says.

Reads rows of the tables `trials` and `curves`; writes nothing. Every function takes and returns an `ax`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from analysis.estimate import Row, value_of
from analysis.figures import style
from analysis.figures.style import BLUE, INK, LOSS
from analysis.wording import CONVENTIONS, at_most, short_count

LINES, POINTS = 120, 60
"""A figure of learning curves draws at most this many lines of this many points: more is ink, not information."""


def draw_learning_curves(curves: Sequence[Row], trials: Sequence[Row], ax: Axes | None = None) -> Axes:
    """Validation loss against tokens seen, one line per trial, colored by parameters (dark is large)."""
    with style.axes(ax) as ax:
        sizes = {t["trial_id"]: float(t["params_non_embedding"]) for t in trials}
        shades, by_trial = style.shades(sizes), _thinned(curves, sizes)
        for trial, points in by_trial.items():
            ax.plot(*zip(*points, strict=True), color=shades[trial], lw=1.0, label=trial)
        tokens, losses = style.series([p for points in by_trial.values() for p in points])
        style.log_axis(ax, "x", "training tokens seen", tokens, 0.03, beyond=0.2, counts=True)
        style.log_axis(ax, "y", LOSS, losses, 0.06)
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
    return {trial: at_most(sorted(by_trial[trial]), POINTS) for trial in at_most(order, LINES)}


def draw_gap(trials: Sequence[Row], ax: Axes | None = None) -> Axes:
    """Validation less training loss at the end of each trial against parameters: above zero is overfitting."""
    with style.axes(ax, height=2.6) as ax:
        rows = [t for t in trials if value_of(t.get("train_loss")) is not None and value_of(t.get("val_loss")) is not None]
        x = [float(t["params_non_embedding"]) for t in rows]
        ax.axhline(0, color=INK, lw=0.8)
        ax.scatter(x, [t["val_loss"] - t["train_loss"] for t in rows], s=16, color=BLUE, alpha=0.7, lw=0, label="gap")
        style.log_axis(ax, "x", CONVENTIONS["params_non_embedding"], x, 0.08, counts=True)
        ax.set_ylabel("validation − training (nats)")
    return ax


def draw_memory(trials: Sequence[Row], ax: Axes | None = None) -> Axes:
    """Peak memory of each trial against all its parameters."""
    with style.axes(ax, 4.2, 3.2) as ax:
        rows = [(float(t["params_total"]), t["peak_memory_bytes"] / 2**20) for t in trials if value_of(t.get("peak_memory_bytes"))]
        x, memory = style.series(rows)
        ax.scatter(x, memory, s=16, color=BLUE, alpha=0.7, lw=0, label="peak memory")
        style.log_axis(ax, "x", CONVENTIONS["params_total"], x, 0.08, counts=True)
        ax.set(ylim=(0, 1.15 * max(memory, default=1.0)), ylabel="peak memory (MiB)")
    return ax


def draw_learning_rates(trials: Sequence[Row], ax: Axes | None = None) -> Axes:
    """Loss against peak learning rate, one line per shape, colored by parameters (dark is large)."""
    with style.axes(ax) as ax:
        shapes: dict[tuple[int, int, int], list[Row]] = {}
        for t in trials:
            if value_of(t.get("lr")) and value_of(t.get("val_loss")) is not None:
                shapes.setdefault((t["n_layer"], t["n_embd"], t["n_head"]), []).append(t)
        shades = style.shades({shape: rows[0]["params_non_embedding"] for shape, rows in shapes.items()})
        for (n_layer, n_embd, n_head), rows in shapes.items():
            color = shades[n_layer, n_embd, n_head]
            means = {lr: float(np.mean([r["val_loss"] for r in rows if r["lr"] == lr])) for lr in sorted({r["lr"] for r in rows})}
            ax.plot(list(means), list(means.values()), color=color, lw=1.2, label=f"{n_layer} x {n_embd}, {n_head} heads")
            ax.scatter([r["lr"] for r in rows], [r["val_loss"] for r in rows], s=10, color=color, lw=0, label="_seeds")
        rates, losses = style.series([(r["lr"], r["val_loss"]) for rows in shapes.values() for r in rows])
        style.log_axis(ax, "x", "peak learning rate", rates, 0.08)
        style.log_axis(ax, "y", LOSS, losses, 0.08)
    return ax
