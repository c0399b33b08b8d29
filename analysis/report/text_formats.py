"""The report as Markdown: the same sections as the page, for a repository, an e-mail or a terminal.

Reads sections; writes nothing (`analysis.report.build` does). Untrusted text is shown inside fences longer than any it holds, or with
every sign that Markdown or HTML would act on escaped.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from analysis.report.document import Section
from analysis.wording import visible


def render(parts: Sequence[Section], name: str = "") -> str:
    """The whole report.

    Args:
        parts: the first screen, then every section.
        name: of the study, whose answer is then a quotation.
    """
    first, *rest = parts
    lines = [f"# {escape(first.title)}", ""]
    if name:
        lines += [f"Scaling study *{escape(name)}*", "", *(line for cell in first.prose for line in (f"> {escape(cell.text)}", ">")), ""]
        first = replace(first, prose=())
    lines += section_lines(first)
    for section in rest:
        lines += ["", f"## {escape(section.title)}", "", *section_lines(section)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def section_lines(section: Section) -> list[str]:
    """One section: prose, figures with alternative text, tables in the pipe syntax with numbers to the right, stories."""
    lines = [line for cell in section.prose for line in (escape(cell.text), "")]
    for picture in section.pictures:
        lines += [f"![{escape(picture.alt)}](figures/{picture.name}.svg)", "", f"*{escape(picture.caption)}*", ""]
    for table in section.listings:
        heads, rule = map(escape, table.columns), ["---:" if cell.numeric else "---" for cell in table.rows[0]]
        rows = [heads, rule, *[[escape(cell.text) for cell in row] for row in table.rows]]
        lines += [f"**{escape(table.title)}**", ""] if table.title else []
        lines += [*(f"| {' | '.join(row)} |" for row in rows), ""]
        lines += [escape(table.note), ""] if table.note else []
    if section.stories:
        lines += ["### One prompt, every model", "", "Prompt:", "", fenced(section.prompt), ""]
    for story in section.stories:
        lines += [f"**{escape(story.label)}** ({escape(story.detail)})", "", fenced(story.text), ""]
    return lines


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
