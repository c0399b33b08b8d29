"""The first screen on a terminal: question, three sentences, levers; every number from the tree of fits.json.

print(text(tree))
"""

import textwrap
from collections import Counter

from analysis.estimate import Fits
from analysis.report.answer import scored, sentences
from analysis.report.document import Listing
from analysis.report.tables import levers_listing
from analysis.wording import line, several

WIDTH = 120


def text(tree: Fits) -> str:
    """Question, answer, levers, and what was left out."""
    counts = tree["counts"]
    used = f"{several(counts['usable'], 'trial')} of {counts['trials']} used, {several(counts['configurations'], 'configuration')}"
    head = [*textwrap.wrap(line(tree["question"]), WIDTH), f"study {line(tree['study'])}: {used}"]
    told = [filled for s in sentences(tree) for filled in textwrap.wrap(line(s), WIDTH, initial_indent="  ", subsequent_indent="    ")]
    record = [scored(tree["forecasts"])] if tree.get("forecasts") else []
    blocks = [head, told, _rows(levers_listing(tree)), record, _left_out(tree)]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _rows(table: Listing) -> list[str]:
    """A table as aligned columns."""
    rows = [list(table.columns), *[[line(cell.text) for cell in row] for row in table.rows]]
    if len(rows) < 2:
        return []
    widths = [max(len(row[j]) for row in rows) for j in range(len(table.columns))]
    return ["  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _left_out(tree: Fits) -> list[str]:
    kinds = Counter(line(row["reason"]) for row in tree["exclusions"])
    lines = [f"{n} left out: {reason}" for reason, n in kinds.most_common(8)]
    more = [f"... and {len(kinds) - 8} more reasons in fits.json"] if len(kinds) > 8 else []
    return [*lines, *more, *map(line, tree.get("problems") or [])]
