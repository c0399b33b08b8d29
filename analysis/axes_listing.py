"""The tables of a sweep in which a field of the recipe varies at fixed shapes: mean losses, and the gain of each step.

Reads the block that `analysis.axes.describe` made; each cell knows its place in `fits.json`.
"""

from collections.abc import Mapping
from typing import Any

from analysis import content
from analysis.content import Cell, Listing, plain, shape_name, span_cell
from analysis.figures import slug
from analysis.style import short_count


def axis_listings(sweep: Mapping[str, Any], source: str) -> list[Listing]:
    """Mean loss by shape and value; steps with their intervals and verdicts."""
    name, axis, here = str(sweep["name"]), sweep["axis"], f"{source}/axis"
    return [_grid(name, axis, here), _steps(name, axis, here)]


def _grid(name: str, axis: Mapping[str, Any], source: str) -> Listing:
    rows = []
    for i, row in enumerate(axis["cells"]):
        here = f"{source}/cells/{i}"
        size = row["params_non_embedding"]
        losses = [
            Cell("–" if loss is None else content.fixed(loss, 3), f"{here}/loss/{j}", numeric=True) for j, loss in enumerate(row["loss"])
        ]
        rows.append(
            [Cell(shape_name(row), here), Cell(short_count(float(size)), f"{here}/params_non_embedding", plain(size), True), *losses]
        )
    columns = ["shape", "parameters", *(f"{value:,.10g}" for value in axis["values"])]
    note = f"Mean validation loss in nats; columns: {axis['word']}."
    return Listing(f"axis_{slug(name)}", f"The {name} sweep", columns, rows, note)


def _steps(name: str, axis: Mapping[str, Any], source: str) -> Listing:
    repeated = axis["column"] == "unique_tokens"
    rows = []
    for i, step in enumerate(axis["steps"]):
        here = f"{source}/steps/{i}"
        ends = [Cell(f"{step[key]:,.10g}", f"{here}/{key}", numeric=True) for key in ("from", "to")]
        epochs = [Cell(f"{step['epochs']:.3g}", f"{here}/epochs", numeric=True)] if repeated else []
        gain = span_cell(step, ("gain", "low", "high"), here)
        rows.append([*ends, *epochs, gain, Cell(content.visible(str(step["verdict"])), f"{here}/verdict")])
    columns = ["from", "to", *(["epochs"] if repeated else []), "gain (nats)", "verdict"]
    note = "Differences between trials of equal shape and seed, averaged over shapes; 95 % intervals, pooled within shapes."
    title = "What repeated text costs" if repeated else f"What each step in {axis['word']} bought"
    return Listing(f"axis_steps_{slug(name)}", title, columns, rows, note)
