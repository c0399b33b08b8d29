"""The figure of the law lr(N): best learning rates with their brackets against parameters.

Reads `learning_rates` of fits.json; writes nothing. Takes and returns an `ax`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from analysis.estimate import is_refused, value_of
from analysis.figures import style
from analysis.figures.style import BLUE, CONVENTIONS, INK


def has_rate_law(fits: Mapping[str, Any]) -> bool:
    """Whether there is a law lr(N) to draw."""
    found = fits.get("learning_rates")
    return not is_refused(found) and isinstance(found, Mapping) and not is_refused(found.get("law"))


def draw_rate_law(fits: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Optima (open where the bracket is open) with bars to the worse neighbors, and the law through the bracketed ones."""
    with style.look():
        ax = ax or style.new_axes()
        found = fits["learning_rates"]
        rows, law = found["rows"], found["law"]
        for row in rows:
            ends = [row["low"] or row["optimum"], row["high"] or row["optimum"]]
            ax.plot([row["params_non_embedding"]] * 2, ends, color=BLUE, lw=1.0, alpha=0.5, label="_bracket")
            face = BLUE if row["bracketed"] else "white"
            ax.scatter([row["params_non_embedding"]], [row["optimum"]], s=28, color=face, edgecolor=BLUE, zorder=3, label="_optimum")
        sizes = np.array([float(row["params_non_embedding"]) for row in rows])
        line = np.geomspace(sizes.min(), sizes.max(), 50)
        level, exponent = value_of(law["lr_at_reference"]), value_of(law["exponent"])
        assert level is not None
        assert exponent is not None
        ax.plot(line, level * (line / law["reference"]) ** exponent, color=INK, lw=1.2, label="lr(N)")
        ends = [v for row in rows for v in (row["low"], row["high"], row["optimum"]) if v]
        ax.set_xlim(style.pad_limits(list(sizes), 0.08))
        ax.set_ylim(style.pad_limits(ends, 0.08))
        style.log_axis(ax, "x", counts=True)
        style.log_axis(ax, "y")
        ax.set_xlabel(CONVENTIONS["params_non_embedding"])
        ax.set_ylabel("best learning rate")
    return ax
