"""The report as one self-contained HTML page: style and figures inside, nothing fetched, no script.

Reads the templates beside this file; writes nothing (`analysis.report.build` does). Every value is escaped by the template engine.

    html = render(evidence, drawn={"loss": svg_text})
"""

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import jinja2
from markupsafe import Markup

from analysis.figures import style
from analysis.report import sections
from analysis.report.document import Cell, Listing, Picture, Section
from analysis.report.tables import levers_listing
from analysis.table.evidence import Evidence
from analysis.wording import visible

TEMPLATES = Path(__file__).parent / "templates"

_NAMED = ("INK", "MUTED", "FAINT", "PAPER", "BLUE", "GREEN", "VERMILLION", "PURPLE", "ORANGE", "SKY")
COLORS = {getattr(style, name): f"--{name.lower()}" for name in _NAMED} | {shade: f"--shade-{i}" for i, shade in enumerate(style.SHADES)}
COLORS |= {letter: f"{COLORS[color]}-text" for color, letter in style.LETTERS.items()}
"""Colors of the figures as variables of the style sheet, which has a dark set."""


def environment() -> jinja2.Environment:
    """The template engine with escaping on for every template."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    made = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    made.filters["typeset"] = typeset
    return made


def typeset(text: str) -> Markup:
    """Escaped text with raised exponents, real minus signs, and numbers on one line with their percent sign."""
    safe = re.sub(r"\^([\u2212-]?\w+(?:\.\d+)?)", r"<sup>\1</sup>", escape(text))
    safe = re.sub(r"(?<![\w.])-inf\b", "\u2212\u221e", safe.replace("+-", "\u00b1"))
    safe = re.sub(r"(?<![\w.])-(?=\d)", "\u2212", safe)
    safe = re.sub(r"\b([ND])0\b", r"\1<sub>0</sub>", safe)
    safe = re.sub(r"\bp (&lt;|=) (?=0)", "p\u00a0\\1\u00a0", safe)
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    return Markup(re.sub(r"(?<=\d) %", "\u00a0%", safe))


def render(evidence: Evidence, drawn: Mapping[str, str]) -> str:
    """The page of one study.

    Args:
        drawn: SVG text of each figure by name; a picture without one is left out.
    """
    fits = evidence.fits
    told, parts = sections.question(evidence), sections.sections(evidence)
    return compose(told, sections.answer(fits), sections.lead_picture(evidence), parts, drawn, levers=levers_listing(fits), opened=False)


def compose(
    told: tuple[str, str],
    answer: Sequence[Cell],
    lead: Picture,
    parts: Sequence[Section],
    drawn: Mapping[str, str],
    numbers_in: str = "fits.json",
    levers: Listing | None = None,
    opened: bool = True,
) -> str:
    """A page from its parts.

    Args:
        told: name and question.
        numbers_in: file beside the page that holds every number.
        levers: the table of the first screen.
        opened: whether sections are unfolded.
    """
    pictures = [lead, *[p for part in parts for p in part.pictures]]
    alts = {p.name: p.alt for p in pictures if p.name in drawn}
    page = environment().get_template("report.html")
    return page.render(
        name=visible(told[0]),
        question=visible(told[1]),
        answer=answer,
        lead=lead,
        levers=levers,
        sections=parts,
        opened=opened,
        drawn={name: inline_svg(drawn[name], name, alt) for name, alt in alts.items()},
        numbers={name: i for i, name in enumerate(alts, 1)},
        numbers_in=numbers_in,
        css=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
    )


def inline_svg(svg: str, name: str, alt: str) -> str:
    """A figure file's SVG made fit to stand inside the page: own ids, colors that follow the theme, alternative text."""
    body = re.sub(r"^.*?<svg[^>]*>", "", svg, count=1, flags=re.S).rsplit("</svg>", 1)[0]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<defs>\s*</defs>", "", body, flags=re.S)
    body = re.sub(r'<g id="tip:([^"]+)">', r"<g><title>\1</title>", body)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'xlink:href="#', f'href="#{name}-', body).replace("url(#", f"url(#{name}-")
    body = re.sub(r"\s*font-family: [^;\"]+;?", "", body)
    for color, variable in COLORS.items():
        body = body.replace(color, f"var({variable})")
    body = re.sub(r'(?<= )(d|x|y|transform|points)="[^"]*"', lambda m: re.sub(r"(\d+\.\d)\d+", r"\1", m.group()), body)
    body = re.sub(r">\s+<", "><", body)
    box = re.search(r'viewBox="([^"]+)"', svg)
    return f'<svg viewBox="{box.group(1) if box else "0 0 360 252"}" role="img" aria-label="{escape(alt, quote=True)}">{body}</svg>'
