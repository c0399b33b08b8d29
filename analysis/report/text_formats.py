"""The report as Markdown: the same sections as the page, for a repository, an e-mail or a terminal.

Reads an `Evidence`; writes nothing (`analysis.report.build` does). Untrusted text is shown inside fences longer than any it holds, or with
every sign that Markdown or HTML would act on escaped.
"""

import re
from collections.abc import Sequence

from analysis.report import sections
from analysis.report.document import Listing, Picture, Section
from analysis.report.tables import levers_listing
from analysis.table.evidence import Evidence
from analysis.wording import visible


def render(evidence: Evidence, drawn: Sequence[str] = ()) -> str:
    """The whole report: the first screen, then every section.

    Args:
        drawn: names of the figures that exist as `figures/<name>.svg`.
    """
    name, question = sections.question(evidence)
    lines = [f"# {escape(question)}", "", f"Scaling study *{escape(name)}*", ""]
    for cell in sections.answer(evidence.fits):
        lines += [f"> {escape(cell.text)}", ">"]
    lines += ["", *picture(sections.lead_picture(evidence), drawn), *listing_lines(levers_listing(evidence.fits))]
    for section in sections.sections(evidence):
        lines += section_lines(section, drawn)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def section_lines(section: Section, drawn: Sequence[str] = ()) -> list[str]:
    """One section: heading, prose, pictures, tables, stories."""
    lines = ["", f"## {escape(section.title)}", ""]
    for cell in section.prose:
        lines += [escape(cell.text), ""]
    for p in section.pictures:
        lines += picture(p, drawn)
    for table in section.listings:
        lines += listing_lines(table)
    if section.stories:
        lines += ["### One prompt, every model", "", "Prompt:", "", fenced(section.prompt), ""]
    for story in section.stories:
        lines += [f"**{escape(story.label)}** ({escape(story.detail)})", "", fenced(story.text), ""]
    return lines


def picture(p: Picture, drawn: Sequence[str]) -> list[str]:
    """A figure with alternative text, and its caption."""
    if p.name not in drawn:
        return []
    alt = escape(p.alt).replace("\n", " ")
    return [f"![{alt}](figures/{p.name}.svg)", "", f"*{escape(p.caption)}*", ""]


def listing_lines(table: Listing) -> list[str]:
    """A table in the pipe syntax; numbers to the right."""
    if not table.rows:
        return []
    rule = ["---:" if cell.numeric else "---" for cell in table.rows[0]]
    rows = [list(map(str, table.columns)), rule, *[[cell.text for cell in row] for row in table.rows]]
    text = ["| " + " | ".join(c if i == 1 else escape(c).replace("\n", " ") for c in row) + " |" for i, row in enumerate(rows)]
    title = [f"**{escape(table.title)}**", ""] if table.title else []
    return [*title, *text, "", *([escape(table.note), ""] if table.note else [])]


def escape(text: str) -> str:
    """Text in which nothing is markup: control characters visible, signs of Markdown and HTML escaped."""
    shown = visible(text).replace("\n", " ").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", shown)


def fenced(text: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    shown = visible(text)
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{shown}\n{fence}"
