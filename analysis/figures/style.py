"""How every figure looks, and how it is saved: palette, markers, log axes, label placement, files with reproducible bytes.

Reads nothing; writes `<name>.svg|pdf|png|csv`. Uses the Agg canvas and `Figure` objects only, never pyplot's global state, so that a
training driver and a notebook can both draw.

    fig, (ax,) = new_figure(); ax.plot(x, y); log_axis(ax, "x", "steps", x, 0.1); save(fig, folder, "loss")
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.style as mplstyle
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from matplotlib.transforms import Bbox

from analysis.wording import short_count

# Okabe and Ito 2008, "Color universal design": distinguishable with the common color-vision deficiencies and in gray.
BLUE, VERMILLION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
ORANGE, SKY = "#e69f00", "#56b4e9"
INK, MUTED, FAINT, PAPER = "#1f2328", "#6b7280", "#d6dae0", "#ffffff"

LETTERS = {BLUE: "#005f94", VERMILLION: "#a34700", GREEN: "#00704f", PURPLE: "#8f4070", ORANGE: "#8a5f00", SKY: "#1f6f9e", MUTED: "#5b6470"}
"""The same hues dark enough for text: at least 4.5 to 1 on white (WCAG 2.2, 1.4.3)."""

SHADES = ["#a3c8e4", "#7fafd4", "#5b95c1", "#3b7cae", "#206599", "#0d4f80", "#003866"]
"""Light to dark blue, for an ordered quantity such as size."""

FACTORS = {"depth": (BLUE, "o"), "width": (VERMILLION, "s"), "heads": (GREEN, "^")}
"""Color and marker of the sweeps that most studies hold; other sweeps take EXTRAS in order."""
EXTRAS = [(PURPLE, "D"), (ORANGE, "v"), (SKY, "P"), (MUTED, "X")]

AXIS_LABELS = {"n_layer": "layers", "n_embd": "width (channels)", "n_head": "attention heads"}
LOSS = "validation loss (nats per token)"

WIDTH, HEIGHT = 5.2, 3.5
"""Inches. At 10-point type a figure is still readable at half its width, in a two-column paper or on a phone."""

RC: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"], "font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10, "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": MUTED,
    "axes.labelcolor": INK, "text.color": INK, "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.linewidth": 0.8, "lines.linewidth": 1.6, "lines.markersize": 5.5, "axes.axisbelow": True, "axes.grid": False, "grid.color": FAINT,
    "grid.linewidth": 0.6, "figure.facecolor": PAPER, "axes.facecolor": PAPER, "savefig.facecolor": PAPER, "svg.fonttype": "none",
    "svg.hashsalt": "scaling-study", "text.hinting": "none", "figure.dpi": 160.0, "text.parse_math": False, "text.usetex": False,
    "pdf.fonttype": 42, "axes.unicode_minus": True, "axes.titlelocation": "left",
}  # fmt: skip


@contextmanager
def look() -> Iterator[None]:
    """Apply the project's look to everything drawn inside the `with` block, and to nothing else.

    What a person's matplotlibrc says does not count: the look starts from matplotlib's own defaults.
    """
    with mplstyle.context(["default", RC]):
        yield


@contextmanager
def axes(ax: Axes | None, width: float = WIDTH, height: float = HEIGHT) -> Iterator[Axes]:
    """The given axes, or those of a new one-panel figure (inches), in the project's look: what each `draw_*` function draws on."""
    with look():
        yield ax or new_figure(width, height)[1][0]


def new_figure(width: float = WIDTH, height: float = HEIGHT, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure on the Agg canvas with `columns` panels side by side that share their y axis (sizes in inches)."""
    with look():
        fig = Figure(figsize=(width, height), layout="constrained")
        fig.get_layout_engine().set(w_pad=0.07, h_pad=0.07)  # type: ignore[union-attr, call-arg]
        FigureCanvasAgg(fig)
        axes = fig.subplots(1, columns, squeeze=False, sharey=columns > 1)
    return fig, list(axes[0])


def figure_of(ax: Axes) -> Figure:
    """The figure that axes stand in."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def sweep_style(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Color and marker of each sweep: the same factor looks the same in every study."""
    extras = iter(EXTRAS * (1 + len(names) // len(EXTRAS)))
    return {name: FACTORS[name] if name in FACTORS else next(extras) for name in names}


def tick_values(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values inside [low, high] for a log axis: decades, then 1-2-5, then ever finer round steps; about `wanted` of them."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    best: list[float] = []
    for mantissas in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        best = [m * 10.0**d for d in decades for m in mantissas if low <= m * 10.0**d <= high]
        if len(best) >= 3:
            return best[:: -(-len(best) // (wanted + 2))]
    steps = [m * 10.0**d for d in range(-6, 12) for m in (1, 2, 2.5, 5)]
    step = min(steps, key=lambda s: abs((high - low) / s - wanted))
    return [round(k * step, 10) for k in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]


def shown(name: object) -> str:
    """A name from outside as a label: no control characters, at most 60 signs. Nothing in it is mathematics (`text.parse_math`)."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(name))[:60]


def shade(position: float) -> str:
    """Light to dark blue; position in [0, 1]."""
    return SHADES[min(len(SHADES) - 1, int(position * len(SHADES)))]


def shades(sizes: Mapping[Any, float]) -> dict[Any, str]:
    """Light to dark blue by the logarithm of each size."""
    logs = {key: float(np.log(size)) for key, size in sizes.items()}
    low, high = min(logs.values(), default=0.0), max(logs.values(), default=0.0)
    return {key: shade((log - low) / max(high - low, 1e-9)) for key, log in logs.items()}


def log_axis(
    ax: Axes,
    which: str,
    label: str,
    values: Sequence[float],
    share: float,
    beyond: float = 0.0,
    counts: bool = False,
    ticks: Sequence[float] | None = None,
    wanted: int = 5,
) -> None:
    """Make one axis logarithmic, a little wider than its values, with a few readable labels at round numbers and no minor labels.

    Args:
        which: "x" or "y".
        share: room on either side, as a share of what the values span.
        beyond: further room at the upper end.
        counts: write 100k and 3M rather than plain numbers.
        ticks: label exactly these positions (the levels of a sweep).
        wanted: about so many labels.
    """
    low, high = pad_limits(values, share)
    limits = low, high * (high / low) ** beyond
    axis = ax.xaxis if which == "x" else ax.yaxis
    ax.set(**{f"{which}scale": "log", f"{which}lim": limits, f"{which}label": label})
    axis.set_major_locator(FixedLocator(list(ticks) if ticks is not None else tick_values(*limits, wanted)))
    axis.set_major_formatter(FuncFormatter(short_count if counts else lambda v, _: f"{v:.10g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def pad_limits(values: Sequence[float], share: float, log: bool = True) -> tuple[float, float]:
    """Limits a little wider than the values, in log space where `log`."""
    finite = np.asarray([v for v in values if np.isfinite(v) and (v > 0 or not log)], float)
    if not len(finite):
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = (np.log(finite.min()), np.log(finite.max())) if log else (finite.min(), finite.max())
    room = share * (high - low) or 0.05 * (1 if log else abs(high) or 1)
    return (float(np.exp(low - room)), float(np.exp(high + room))) if log else (float(low - room), float(high + room))


def series(rows: Sequence[Sequence[float]], n: int = 2) -> np.ndarray:
    """Rows of n numbers as n series, also where there is no row."""
    return np.asarray(rows, float).reshape(-1, n).T


# ---- labels ----


def text_boxes(fig: Figure) -> list[tuple[Text, Bbox]]:
    """Every visible text of a drawn figure with its box in pixels; tick labels outside the limits, which matplotlib keeps, are none."""
    fig.canvas.draw()
    outside = []
    for axis in (axis for ax in fig.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        outside += [tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
    texts = [t for t in fig.findobj(Text) if isinstance(t, Text) and t.get_visible() and t.get_text().strip() and t not in outside]
    return [(t, t.get_window_extent()) for t in texts]


def overlapping_texts(fig: Figure) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes intersect; a figure ready for readers has none."""
    boxes = text_boxes(fig)
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :]]
    return [(a[0].get_text(), b[0].get_text()) for a, b in pairs if _overlap(a[1], b[1])]


def _overlap(a: Bbox, b: Bbox) -> bool:
    return bool(min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1)


OFFSETS = [
    (8, 7), (8, -7), (-8, 7), (-8, -7), (0, 13), (0, -13), (14, 0), (-14, 0),
    (10, 20), (-10, 20), (10, -20), (-10, -20), (26, 12), (-26, -12), (-30, 12), (30, -12),
]  # fmt: skip
"""Where a label may stand, in points from its point, best first."""


def label_points(ax: Axes, labels: Sequence[tuple[float, float, str, str]], avoid: Sequence[tuple[float, float]] = ()) -> None:
    """Write labels beside points, each at the first offset where it covers no other label, no point and no edge of the axes.

    Args:
        labels: (x, y, text, color) in data coordinates.
        avoid: further points, in data coordinates, to keep free.
    """
    ticks = [*ax.get_xticklabels(), *ax.get_yticklabels()]
    taken = [box for text, box in text_boxes(figure_of(ax)) if text.axes is ax and text not in ticks]
    points = ax.transData.transform(np.asarray([*avoid, *[(x, y) for x, y, _, _ in labels]], float))
    frame = ax.get_window_extent()
    for x, y, text, color in labels:
        note = ax.annotate(text, (x, y), (0, 0), textcoords="offset points", va="center", fontsize=9.5, annotation_clip=False)
        note.set(color=LETTERS.get(color, INK), in_layout=False)

        def cost(offset: tuple[int, int], note: Annotation = note) -> float:
            box = place(note, offset)
            bad = sum(_overlap(box, other) for other in taken) * 10 + int(np.sum([box.contains(*p) for p in points]))
            bad += 20 * (box.x1 > frame.x1 + 4 or box.x0 < frame.x0 or box.y0 < frame.y0 or box.y1 > frame.y1 + 4)
            return bad and bad + 0.01 * (abs(offset[0]) + abs(offset[1]))

        taken.append(place(note, min(OFFSETS, key=cost)))


def place(note: Annotation, offset: tuple[int, int]) -> Bbox:
    """Move a label to an offset from its point; returns its box in pixels."""
    note.xyann = offset
    note.set_horizontalalignment("center" if abs(offset[0]) < 3 else "left" if offset[0] > 0 else "right")
    return note.get_window_extent()


# ---- files ----


def plotted(fig: Figure) -> list[dict[str, object]]:
    """The numbers that a figure shows, one row per point: panel, series, x, y, and low and high for a band."""
    rows: list[dict[str, object]] = []
    for panel, ax in enumerate(fig.axes):
        for artist in [*ax.lines, *ax.collections]:
            series = str(artist.get_label())
            if series.startswith("_"):
                continue
            for point in _points(artist):
                rows.append({"panel": panel, "x_label": ax.get_xlabel(), "y_label": ax.get_ylabel(), "series": series, **point})
    return rows


def _points(artist: object) -> Iterator[dict[str, float]]:
    if isinstance(artist, Line2D):
        yield from ({"x": float(x), "y": float(y)} for x, y in np.asarray(artist.get_xydata(), float))
    elif isinstance(artist, PathCollection):
        yield from ({"x": float(x), "y": float(y)} for x, y in np.asarray(artist.get_offsets(), float))
    elif isinstance(artist, PolyCollection) and artist.get_paths():
        corners = np.asarray(artist.get_paths()[0].vertices, float)
        for x in sorted(set(corners[:, 0])):
            ys = corners[corners[:, 0] == x, 1]
            yield {"x": float(x), "low": float(ys.min()), "high": float(ys.max())}


def save(fig: Figure, folder: Path, name: str) -> str:
    """Write `<name>.svg`, `.pdf`, `.png` and `.csv` (the plotted numbers) with reproducible bytes; returns the SVG text.

    Text stays text in the SVG. The layout runs once and is frozen: the files then agree and are written in a third of the time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with look():
        fig.draw_without_rendering()
        fig.set_layout_engine("none")
        fig.savefig(folder / f"{name}.svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        fig.savefig(folder / f"{name}.pdf", metadata=dict.fromkeys(("CreationDate", "ModDate", "Producer", "Creator")))
        fig.savefig(folder / f"{name}.png", dpi=160, metadata={"Software": None})
    fields = ["panel", "x_label", "y_label", "series", "x", "y", "low", "high"]
    with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.10g}" if isinstance(v, float) else v for k, v in row.items()} for row in plotted(fig))
    return (folder / f"{name}.svg").read_text(encoding="utf-8")
