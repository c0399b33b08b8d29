"""The tables of a sweep in which not the size is the question: a field of the recipe varied at fixed shapes, or shapes at equal sizes.

Reads the blocks that `analysis.findings.tokens_and_context.describe` and `analysis.findings.equal_sizes.describe` made; each cell knows
its place in `fits.json`.
"""

from collections.abc import Mapping
from typing import Any

from analysis.figures.loss_and_sweeps import slug
from analysis.figures.style import short_count
from analysis.report import document as content
from analysis.report.document import Cell, Listing, plain, shape_name, span_cell


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


def shapes_listing(sweep: Mapping[str, Any], source: str) -> Listing:
    """One row per shape, by size; how far each is behind the best of its size."""
    rows = []
    for i, size in enumerate(sweep["shapes"]["sizes"]):
        for j, row in enumerate(size["shapes"]):
            here = f"{source}/shapes/sizes/{i}/shapes/{j}"
            params = row["params_non_embedding"]
            rows.append([
                Cell(short_count(float(params)), f"{here}/params_non_embedding", plain(params), True),
                Cell(shape_name(row), here),
                Cell(plain(row["aspect"], 3), f"{here}/aspect", numeric=True),
                span_cell(row, ("mean", "low", "high"), here),
                span_cell(row, ("behind", "behind_low", "behind_high"), here),
                Cell(content.visible(str(row["verdict"])).replace("worse by more than noise", "larger than noise"), f"{here}/verdict"),
            ])  # fmt: skip
    columns = ["parameters", "shape", "width / depth", "loss (nats)", "behind the best of its size", "verdict"]
    note = "By size, and within a size from shallow and wide to deep and narrow. The best was chosen by its loss, which flatters it."
    return Listing(f"shapes_{slug(sweep['name'])}", f"The {sweep['name']} sweep: shapes of equal size", columns, rows, note)
