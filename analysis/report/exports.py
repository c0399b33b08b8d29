"""Tables for a paper: every listing of the report as CSV and as a LaTeX tabular (booktabs).

Reads the sections of a report; writes `<folder>/<name>.csv` and `<folder>/<name>.tex`.
"""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from analysis.report.document import Listing, Section

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "\u2212": r"$-$", "\u2013": r"--", "\u00d7": r"$\times$",
    "\u03b1": r"$\alpha$", "\u03b2": r"$\beta$", "\u03b3": r"$\gamma$", "\u00b2": r"\textsuperscript{2}", "\u00b7": r"$\cdot$", "\n": " ",
}  # fmt: skip


def write_tables(parts: Sequence[Section], folder: Path) -> list[str]:
    """Write every listing of the sections; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    listings = [table for section in parts for table in section.listings if table.rows]
    for table in listings:
        (folder / f"{table.name}.csv").write_text(as_csv(table), encoding="utf-8")
        (folder / f"{table.name}.tex").write_text(as_latex(table), encoding="utf-8")
    return [table.name for table in listings]


def as_csv(table: Listing) -> str:
    """Columns as headings, texts as shown; a cell that a spreadsheet would run as a formula starts with an apostrophe."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([_inert(cell.text, cell.numeric) for cell in row] for row in table.rows)
    return buffer.getvalue()


def _inert(text: str, numeric: bool) -> str:
    return "'" + text if not numeric and text[:1] in "=+-@\t" else text


def as_latex(table: Listing) -> str:
    """A tabular with booktabs rules; numbers are right-aligned."""
    align = "".join("r" if cell.numeric else "l" for cell in table.rows[0])
    lines = [rf"\begin{{tabular}}{{{align}}}", r"\toprule", " & ".join(map(latex, table.columns)) + r" \\", r"\midrule"]
    lines += [" & ".join(latex(cell.text) for cell in row) + r" \\" for row in table.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def latex(text: str) -> str:
    """Text in which no sign is a LaTeX command."""
    raised = re.split(r"\^([\u2212-]?\w+)", text)
    marked = [
        f"$^{{{part.replace(chr(0x2212), '-')}}}$" if i % 2 else "".join(_LATEX.get(c, c) for c in part) for i, part in enumerate(raised)
    ]
    return "".join(marked)
