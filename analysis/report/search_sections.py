"""The report's section on learning rates: each size's optimum with its bracket, slopes with and without tuning, the runs.

Reads `learning_rates` of fits.json; writes nothing.

    section = rates_section(evidence)
"""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.estimate import is_refused, part_of, reason_of
from analysis.figures.loss_and_sweeps import tried_rates
from analysis.report.document import Cell, Listing, Picture, Section, number, plain, sentence, several, shape_name
from analysis.table.evidence import Evidence

MOST_RUNS = 120
STATUS = {
    "tuned": "tuned",
    "at_edge": "at the edge of what was tried",
    "transferred": "by the law",
    "tried": "tried, not tuned",
}
RUN = {"STOPPED": "given up", "DIVERGED": "diverged"}


def rates_section(evidence: Evidence) -> Section:
    """Learning rates: tuned, transferred or fixed, and the loss at each."""
    title, place = "Learning rates", "/learning_rates"
    found, pictures = part_of(evidence.fits, "learning_rates"), []
    if tried_rates(evidence.trials):
        caption = "Loss against peak learning rate, one line per shape, from small models (light) to large ones."
        pictures.append(Picture("learning_rates", caption, "Loss against learning rate"))
    if found is None:
        why = reason_of(evidence.fits.get("learning_rates")) or "Nothing was concluded about learning rates."
        return Section("rates", title, pictures=pictures, refused=[Cell(sentence(why), place)])
    rows, slopes = found.get("rows") or [], found.get("slopes")
    prose = [Cell(str(found["sentence"]), f"{place}/sentence")] if found.get("sentence") else []
    listings = [_optima(rows)] if rows else []
    if isinstance(slopes, Mapping) and not is_refused(slopes):
        listings.append(_slopes(slopes))
    if rows:
        listings.append(_runs(rows))
    refused = [Cell(sentence(reason_of(slopes)), f"{place}/slopes")] if reason_of(slopes) else []
    return Section("rates", title, prose, pictures, listings, refused)


def _optima(rows: Sequence[Mapping[str, Any]]) -> Listing:
    cells = []
    for i, row in enumerate(rows):
        here = f"/learning_rates/rows/{i}"
        ends = [plain(row[end], 3) if row.get(end) else "open" for end in ("low", "high")]
        runs = several(row["n_runs"], "run") + (f", {plain(row['n_stopped'])} given up" if row["n_stopped"] else "")
        cells.append([
            Cell(shape_name(row), here),
            Cell(plain(row["params_non_embedding"]), f"{here}/params_non_embedding", numeric=True),
            Cell(plain(row["lr"], 3), f"{here}/lr", numeric=True),
            Cell(f"{ends[0]} to {ends[1]}", f"{here}/low", numeric=True),
            Cell(plain(row["optimum"], 3), f"{here}/optimum", numeric=True),
            Cell(plain(row["loss"]), f"{here}/loss", numeric=True),
            Cell(runs, f"{here}/n_runs"),
            Cell(STATUS.get(row["status"], row["status"]), f"{here}/status"),
        ])  # fmt: skip
    columns = ["shape", "parameters", "best rate tried", "bracket", "optimum", "loss there", "runs", "status"]
    note = (
        "The bracket's ends are the nearest rates whose loss is worse by more than the noise; open: none was tried. "
        "The optimum is the vertex of a parabola in the logarithm of the rate through the best run and its neighbors."
    )
    return Listing("rate_optima", "Best learning rate of each shape", columns, cells, note)


def _slopes(slopes: Mapping[str, Any]) -> Listing:
    names = [name for name in ("depth", "width", "size") if name in slopes]
    cells = [
        [Cell(name), *(number(slopes[name][k], f"/learning_rates/slopes/{name}/{k}") for k in ("tuned", "untuned", "change"))]
        for name in names
    ]
    note = (
        f"Slope of ln loss in the logarithm of each, over the same {plain(slopes['n_shapes'])} shapes; depth and width are fitted together."
    )
    return Listing("rate_slopes", "Slopes with and without tuning", ["factor", "tuned", "untuned", "change"], cells, note)


def importance_listing(found: Mapping[str, Any], source: str) -> Listing:
    """Share of each searched field."""
    shares = sorted(found["shares"].items(), key=lambda item: -item[1])
    cells = [[Cell(name), Cell(f"{100 * share:.0f} %", f"{source}/shares/{name}", numeric=True)] for name, share in shares]
    return Listing(
        "importance", "Importance of what was searched", ["field", "share"], cells, f"{found['method']}, {found['n_runs']} runs."
    )


def _end(run: Mapping[str, Any]) -> str:
    return "" if run["status"] == "COMPLETED" else f"{RUN.get(run['status'], run['status'])} at step {plain(run['step'])}"


def _runs(rows: Sequence[Mapping[str, Any]]) -> Listing:
    """The searches' runs, size by size, in the order in which they began."""
    cells = []
    for i, row in enumerate(rows):
        for j, run in enumerate(row["history"]):
            here = f"/learning_rates/rows/{i}/history/{j}"
            cells.append([
                Cell(shape_name(row), here),
                Cell(plain(j + 1), numeric=True),
                Cell(plain(run["lr"], 3), f"{here}/lr", numeric=True),
                Cell(plain(run["loss"]), f"{here}/loss", numeric=True),
                Cell(_end(run)),
            ])  # fmt: skip
    more = f" {len(cells) - MOST_RUNS} more are in fits.json." if len(cells) > MOST_RUNS else ""
    columns = ["shape", "run", "learning rate", "loss", "end"]
    return Listing(
        "rate_runs", "Runs of the search", columns, cells[:MOST_RUNS], "Losses of runs that were given up are never fitted." + more
    )
