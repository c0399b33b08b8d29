"""Figures of the training runs: learning curves, overfitting, memory, learning rates, and what the generated text says.

Reads rows of the tables `trials` and `curves`; writes nothing. Every function takes and returns an `ax`.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from analysis import style
from analysis.cells import Row, value_of
from analysis.style import BLUE, CONVENTIONS, INK, LOSS


def draw_learning_curves(curves: Sequence[Row], trials: Sequence[Row], ax: Axes | None = None) -> Axes:
    """Validation loss against tokens seen, one line per trial, colored by parameters (dark is large)."""
    with style.look():
        ax = ax or style.new_axes()
        sizes = {t["trial_id"]: t["params_non_embedding"] for t in trials}
        spread = np.log([min(sizes.values(), default=1), max(sizes.values(), default=1) + 1])
        by_trial: dict[str, list[tuple[float, float]]] = {}
        for row in curves:
            if row["trial_id"] in sizes and value_of(row.get("val_loss")) is not None and row["tokens"] > 0:
                by_trial.setdefault(row["trial_id"], []).append((row["tokens"], row["val_loss"]))
        for trial, points in sorted(by_trial.items(), key=lambda item: sizes[item[0]]):
            shade = float((np.log(sizes[trial]) - spread[0]) / max(spread[1] - spread[0], 1e-9))
            ax.plot(*zip(*sorted(points), strict=True), color=_shade(shade), lw=1.0, label=f"{trial}")
        everything = [p for points in by_trial.values() for p in points]
        ax.set_xlim(style.pad_limits([p[0] for p in everything], 0.03))
        ax.set_ylim(style.pad_limits([p[1] for p in everything], 0.06))
        style.log_axis(ax, "x", counts=True)
        style.log_axis(ax, "y")
        ax.set_xlabel("training characters seen")
        ax.set_ylabel(LOSS)
        ends = (
            [(max(by_trial[t]), t) for t in (min(by_trial, key=sizes.__getitem__), max(by_trial, key=sizes.__getitem__))]
            if by_trial
            else []
        )
        labels = [(end[0], end[1], f"{style.short_count(sizes[t])} parameters", INK) for end, t in ends]
        style.label_points(ax, labels[: len(set(sizes.values()))], avoid=everything[:: max(1, len(everything) // 400)])
    return ax


def _shade(position: float) -> tuple[float, float, float]:
    """Light to dark blue; position in [0, 1]."""
    light, dark = np.array([0.62, 0.78, 0.90]), np.array([0.0, 0.22, 0.40])
    return tuple((1 - position) * light + position * dark)


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
