"""The report as one self-contained HTML page: style and figures inside, nothing fetched, no script.

Reads the templates beside this file; writes nothing (`analysis.report.build` does). Every value is escaped by the template engine.

    html = render("quick", sections(evidence), drawn={"loss": svg_text})
"""

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import jinja2
from markupsafe import Markup

from analysis.figures import style
from analysis.report.document import Section

TEMPLATES = Path(__file__).parent / "templates"

_NAMED = ("INK", "MUTED", "FAINT", "PAPER", "BLUE", "GREEN", "VERMILLION", "PURPLE", "ORANGE", "SKY")
COLORS = {getattr(style, name): f"--{name.lower()}" for name in _NAMED} | {shade: f"--shade-{i}" for i, shade in enumerate(style.SHADES)}
COLORS |= {letter: f"{COLORS[color]}-text" for color, letter in style.LETTERS.items()}
"""Colors of the figures as variables of the style sheet, which has a dark set."""


def typeset(text: str) -> Markup:
    """Escaped text with raised exponents, real minus signs, and numbers on one line with their percent sign."""
    safe = re.sub(r"\^([\u2212-]?\w+(?:\.\d+)?)", r"<sup>\1</sup>", escape(text))
    safe = re.sub(r"(?<![\w.])-inf\b", "\u2212\u221e", safe.replace("+-", "\u00b1"))
    safe = re.sub(r"(?<![\w.])-(?=\d)", "\u2212", safe)
    safe = re.sub(r"\b([ND])0\b", r"\1<sub>0</sub>", safe)
    safe = re.sub(r"\bp (&lt;|=) (?=0)", "p\u00a0\\1\u00a0", safe)
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    return Markup(re.sub(r"(?<=\d) %", "\u00a0%", safe))


def render(name: str, parts: Sequence[Section], drawn: Mapping[str, str], numbers_in: str = "fits.json", opened: bool = False) -> str:
    """A page from its parts.

    Args:
        name: of what is reported.
        parts: the first screen, then every section.
        drawn: SVG text of each figure by name.
        numbers_in: file beside the page that holds every number.
        opened: whether sections are unfolded.
    """
    loader = jinja2.FileSystemLoader(TEMPLATES)
    engine = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    engine.filters["typeset"] = typeset
    pictures = [picture for part in parts for picture in part.pictures]
    return engine.get_template("report.html").render(
        name=name,
        first=parts[0],
        sections=parts[1:],
        opened=opened,
        drawn={p.name: inline_svg(drawn[p.name], p.name, p.alt) for p in pictures},
        numbers={p.name: i for i, p in enumerate(pictures, 1)},
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
