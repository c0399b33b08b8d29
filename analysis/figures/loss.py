"""The figure of the first screen: loss against parameters, one line per depth, a panel per training length, every seed.

Reads rows of the table `trials` and, for laws and the floor, the tree of fits.json; writes nothing.

    draw_loss(fits, trials).savefig("loss.pdf")
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from analysis.estimate import SIZE, Fits, Row, part_of, value_of
from analysis.figures import style
from analysis.figures.style import BLUE, GREEN, INK, LETTERS, LOSS, MUTED, ORANGE, PURPLE, SKY, VERMILLION
from analysis.wording import CONVENTIONS, at_most, several, short_count

DEPTH_COLORS = [SKY, BLUE, GREEN, ORANGE, VERMILLION, PURPLE]
HEAD_MARKERS = ["o", "s", "^", "D", "v", "P"]
MOST_PANELS, MOST_ROWS, MOST_TIPS = 3, 6, 400
BEYOND = 2.0
"""How far a law is drawn beyond its points: a factor on parameters, dashed."""


def draw_loss(fits: Fits, trials: Sequence[Row]) -> Figure:
    """Loss against parameters: a panel for the shortest, the middle and the longest training length."""
    lengths = panels(trials)
    with style.look():
        fig, axes = style.new_figure(style.WIDTH if len(lengths) < 2 else 3.4 * len(lengths), 3.7, max(len(lengths), 1))
        depths, heads = (sorted({int(t[name]) for t in trials}) for name in ("n_layer", "n_head"))
        few = len(depths) <= len(DEPTH_COLORS)  # shades of one hue where depths outnumber the palette
        colors = {d: DEPTH_COLORS[i] if few else style.shade(i / (len(depths) - 1)) for i, d in enumerate(depths)}
        markers = {h: HEAD_MARKERS[i] if len(heads) <= len(HEAD_MARKERS) else "o" for i, h in enumerate(heads)}
        for ax, n_tokens in zip(axes, lengths, strict=False):
            _draw_panel(ax, fits, [t for t in trials if t["n_tokens"] == n_tokens], colors, markers)
            if len(lengths) > 1:
                ax.set_title(f"{short_count(float(n_tokens))} tokens")
        _finish(axes, fits, trials)
        if len(colors) > 1:
            _depth_legend(axes[-1], colors)
        if len(set(markers.values())) > 1:
            _head_legend(axes[0], markers)
        if not lengths:
            axes[0].text(0.5, 0.5, "no completed trial", transform=axes[0].transAxes, ha="center", color=LETTERS[MUTED])
    return fig


def panels(trials: Sequence[Row]) -> list[int]:
    """The training lengths that are drawn: at most MOST_PANELS, first and last among them."""
    return at_most(sorted({int(t["n_tokens"]) for t in trials}), MOST_PANELS)


def _draw_panel(ax: Axes, fits: Fits, trials: Sequence[Row], colors: Mapping[int, str], markers: Mapping[int, str]) -> None:
    """One training length: every seed, the mean of each configuration, and a line per depth."""
    configurations: dict[str, list[Row]] = {}
    for t in trials:
        configurations.setdefault(str(t["config_id"]), []).append(t)
    law = law_of(fits, int(trials[0]["n_tokens"]))
    for depth, color in colors.items():
        own = [rows for rows in configurations.values() if rows[0]["n_layer"] == depth]
        for rows in own:
            first, x, mean = rows[0], [float(t[SIZE]) for t in rows], _mean(rows)
            # the name of a point, which a page shows where a pointer rests on it
            tip = f"tip:{first['n_layer']}x{first['n_embd']}, {first['n_head']} heads: {mean:.3f} nats"
            means: dict[str, Any] = {"marker": markers[int(first["n_head"])], "gid": tip if len(configurations) < MOST_TIPS else None}
            seeds = [float(t["val_loss"]) for t in rows]
            ax.scatter(x, seeds, s=14, color=color, alpha=0.75, lw=0, zorder=4, label=f"{depth} layers, seeds")
            means |= {"s": 46, "facecolor": "none", "edgecolor": color, "lw": 1.2, "zorder": 3}
            ax.scatter(x[:1], [mean], label=f"{depth} layers, means", **means)
        _draw_line(ax, law, depth, color, own)


def _mean(rows: Sequence[Row]) -> float:
    return float(np.mean([t["val_loss"] for t in rows]))


def law_of(fits: Fits, n_tokens: int) -> Mapping[str, Any] | None:
    """The law in depth and width of one training length, where it can be drawn: floor and both exponents known."""
    shape = part_of(fits, "shape") or {}
    rows = [shape, *(shape.get("by_length") or [])]
    law = next((part_of(row, "law") for row in rows if row.get("n_tokens") == n_tokens), None)
    usable = law and not law.get("optimum") and all(value_of(law.get(name)) is not None for name in ("E", "A", "a", "b"))
    return law if usable else None


def _draw_line(ax: Axes, law: Mapping[str, Any] | None, depth: int, color: str, own: Sequence[Sequence[Row]]) -> None:
    """The law of one depth, solid inside its points and dashed outside; where there is none, straight lines between means.

    Where a shape was trained by several recipes, lines go through the best of them.
    """
    means: dict[int, float] = {}
    for rows in own:
        width = int(rows[0]["n_embd"])
        means[width] = min(_mean(rows), means.get(width, np.inf))
    sizes = {int(rows[0]["n_embd"]): float(rows[0][SIZE]) for rows in own}
    widths = sorted(sizes)
    if law is None or not widths:
        ax.plot([sizes[w] for w in widths], [means[w] for w in widths], color=color, lw=1.2, label=f"{depth} layers")
        return
    wide = np.geomspace(widths[0] / BEYOND**0.5, widths[-1] * BEYOND**0.5, 60)
    scale = float(np.median([size / _parameters(depth, w) for w, size in sizes.items()]))
    floor, amplitude, a, b = (value_of(law[name]) or 0.0 for name in ("E", "A", "a", "b"))
    x, at = scale * _parameters(depth, wide), law["reference"]
    y = floor + amplitude * (depth / at["n_layer"]) ** -a * (wide / at["n_embd"]) ** -b
    inside = (wide >= widths[0]) & (wide <= widths[-1])
    ax.plot(np.where(inside, x, np.nan), y, color=color, lw=1.5, label=f"{depth} layers, law")
    ax.plot(x, y, color=color, lw=1.0, ls=(0, (4, 3)), zorder=1.9, label=f"{depth} layers, law beyond the data")


def _parameters(depth: int, width: Any) -> Any:
    """Non-embedding parameters of the project's model: n_layer (12 n_embd^2 + 2 n_embd) + n_embd."""
    return depth * (12 * width**2 + 2 * width) + width


# ---- axes, floor, labels ----


def _finish(axes: Sequence[Axes], fits: Fits, trials: Sequence[Row]) -> None:
    losses = [float(t["val_loss"]) for t in trials]
    floor = value_of((fits.get("data") or {}).get("floor"))
    if not floor or not losses or np.log(min(losses) / floor) >= 0.9 * max(np.log(max(losses) / min(losses)), 0.1):
        floor = None  # too far below to be drawn
    for i, ax in enumerate(axes):
        label = CONVENTIONS[SIZE] if i == len(axes) // 2 else ""
        style.log_axis(ax, "x", label, [float(t[SIZE]) for t in trials], 0.12, counts=True, wanted=5 if len(axes) == 1 else 3)
        style.log_axis(ax, "y", "" if i else LOSS, [*losses, *([floor] if floor else [])], 0.1)
        if floor:
            ax.axhline(floor, color=MUTED, lw=1, ls=(0, (1, 2)), label="entropy of the text")
    if floor:
        place, said = ("axes fraction", "data"), f"entropy of the text {floor:.2f}"
        axes[0].annotate(said, (0.01, floor), (0, 3), place, "offset points", color=LETTERS[MUTED], fontsize=9)


def _depth_legend(ax: Axes, colors: Mapping[int, str]) -> None:
    """Which color stands for how many layers; the upper right is free, because loss falls."""
    handles, names = [Line2D([], [], color=color, lw=1.5) for color in colors.values()], [str(depth) for depth in colors]
    columns = 1 if len(handles) <= MOST_ROWS else 2
    legend = Legend(ax, handles, names, title="layers", loc="upper right", ncols=columns, handlelength=1.2, borderaxespad=0.2)
    ax.add_artist(legend)  # beside the legend of heads, where one panel holds both


def _head_legend(ax: Axes, markers: Mapping[int, str]) -> None:
    """Which marker stands for how many heads."""
    looks: dict[str, Any] = {"ls": "", "mfc": "none", "mec": INK, "ms": 6}
    handles = [Line2D([], [], marker=marker, label=several(heads, "head"), **looks) for heads, marker in markers.items()]
    ax.legend(handles=handles, loc="lower left", handletextpad=0.2, borderaxespad=0.2)
