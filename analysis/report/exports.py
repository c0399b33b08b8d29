"""Tables for a paper: every table of the report as CSV and as a LaTeX tabular (booktabs), by pandas.

Reads listings; writes `<folder>/<name>.csv` and `<folder>/<name>.tex`.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from analysis.report.document import Cell, Listing

_SIGNS = str.maketrans({
    "\u2212": "$-$", "\u2013": "--", "\u00d7": r"$\times$", "\u03b1": r"$\alpha$", "\u03b2": r"$\beta$", "\u03b3": r"$\gamma$",
    "\u03ba": r"$\kappa$", "\u00b7": r"$\cdot$", "\u00a0": "~",
})  # fmt: skip
"""Signs that LaTeX needs a command for and that pandas leaves as they are."""


def write_tables(listings: Sequence[Listing], folder: Path) -> None:
    """Write every listing. Tables of an earlier report, which are pairs of files, go."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {table.name for table in listings}
    for path in folder.glob("*.tex"):
        if path.stem not in names and (other := path.with_suffix(".csv")).exists():
            path.unlink()
            other.unlink()
    for table in listings:
        (folder / f"{table.name}.csv").write_text(as_csv(table), encoding="utf-8")
        (folder / f"{table.name}.tex").write_text(as_latex(table), encoding="utf-8")


def as_csv(table: Listing) -> str:
    """Columns as headings, texts as shown; a cell that a spreadsheet would run as a formula starts with an apostrophe."""

    def inert(cell: Cell) -> str:
        return "'" + cell.text if not cell.numeric and cell.text[:1] in ("=", "+", "-", "@", "\t") else cell.text

    return str(_frame(table, inert).to_csv(index=False, lineterminator="\n"))


def as_latex(table: Listing) -> str:
    """A tabular with booktabs rules; numbers are right-aligned."""
    align = "".join("r" if cell.numeric else "l" for cell in table.rows[0])
    text = _frame(table, lambda cell: cell.text.replace("\n", " ")).to_latex(index=False, escape=True, column_format=align)
    raised = re.sub(r"\\textasciicircum ([\u2212-]?\w+)", lambda m: f"$^{{{m[1].replace(chr(0x2212), '-')}}}$", str(text))
    return raised.translate(_SIGNS)


def _frame(table: Listing, text: Callable[[Cell], str]) -> pd.DataFrame:
    return pd.DataFrame([[text(cell) for cell in row] for row in table.rows], columns=list(table.columns))
