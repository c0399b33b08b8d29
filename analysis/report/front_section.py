"""The report's section on searches over shapes: every run by its cost, on the front, dominated or beyond a limit.

sections = front_section(fits)   # [] where there was no such search
"""

from collections.abc import Mapping
from typing import Any

from analysis.estimate import is_refused
from analysis.findings.pareto_front import WORDS
from analysis.report.document import Cell, Listing, Section, plain, several, shape_name
from analysis.report.search_sections import importance_listing

MOST_TRIALS = 80


def front_section(fits: Mapping[str, Any]) -> list[Section]:
    """The section on searches over shapes; none where there was no such search."""
    found = fits.get("fronts") or []
    prose = [Cell(str(block["sentence"]), f"/fronts/{i}/sentence") for i, block in enumerate(found)]
    listings = []
    for i, block in enumerate(found):
        listings.append(_listing(block, f"/fronts/{i}"))
        if not is_refused(block["importance"]):
            listings.append(importance_listing(block["importance"], f"/fronts/{i}/importance"))
    return [Section("front", "What shapes cost and buy", prose, listings=listings)] if found else []


def _listing(block: Mapping[str, Any], source: str) -> Listing:
    cells = [
        [
            Cell(shape_name(row), f"{source}/rows/{j}"),
            Cell(plain(row["cost"]), f"{source}/rows/{j}/cost", numeric=True),
            Cell(plain(row["loss"]), f"{source}/rows/{j}/loss", numeric=True),
            Cell(plain(row["lr"], 3), f"{source}/rows/{j}/lr", numeric=True),
            Cell(row["verdict"], f"{source}/rows/{j}/verdict"),
        ]
        for j, row in enumerate(block["rows"][:MOST_TRIALS])
    ]
    n = len(block["rows"])
    note = f"{several(n, 'run')}, by cost." + (f" {n - MOST_TRIALS} more are in fits.json." if n > MOST_TRIALS else "")
    return Listing(f"front_{block['name']}", f"Search {block['name']}", ["shape", WORDS[block["against"]], "loss", "rate", ""], cells, note)
