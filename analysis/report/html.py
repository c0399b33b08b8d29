"""The report as one self-contained HTML page: style, script, figures and data inside, nothing fetched.

Reads the templates beside this file; writes nothing (`analysis.report.build` does). Every value is escaped by the template engine; the
content
security policy names the hash of our own script, so that no other script can run even if one got in.

    html = render(evidence, drawn={"loss": svg_text})
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from analysis.figures import style
from analysis.report import document as content
from analysis.report import sections
from analysis.table.evidence import Evidence

TEMPLATES = Path(__file__).parent / "templates"
ROW = ("trial_id", "n_layer", "n_embd", "n_head", "seed", "params_non_embedding", "params_total", "val_loss", "train_loss", "lr")
ROW_MORE = ("n_tokens", "ms_per_step", "peak_memory_bytes", "wall_s", "device", "status")
"""Columns of a trial that the explorer shows."""
STORY_BYTES, POINTS = 400_000, 20_000
"""Room for stories and for points of curves in the explorer: the page stays well under 3 MB."""

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
    return Markup(re.sub(r"(?<=\d) %", "\u00a0%", safe))


def render(evidence: Evidence, drawn: Mapping[str, str]) -> str:
    """The page of one study.

    Args:
        drawn: SVG text of each figure by name; a picture without one is left out.
    """
    fits = evidence.fits
    told = (str(fits.get("study") or evidence.results.name), str(fits.get("question") or "What do more parameters buy?"))
    explorer = script_json(explorer_data(evidence)) if evidence.trials else ""
    return compose(told, sections.answer(fits), sections.lead_picture(fits), sections.sections(evidence), drawn, explorer)


def compose(
    told: tuple[str, str],
    answer: Sequence[content.Cell],
    lead: content.Picture,
    parts: Sequence[content.Section],
    drawn: Mapping[str, str],
    explorer: str = "",
    numbers_in: str = "fits.json",
) -> str:
    """A page from its parts.

    Args:
        told: name and question.
        explorer: JSON of the trials, or "" for a page without the explorer.
        numbers_in: file beside the page that holds every number.
    """
    pictures = [lead, *[p for part in parts for p in part.pictures]]
    alts = {p.name: p.alt for p in pictures if p.name in drawn}
    script = (TEMPLATES / "explorer.js").read_text(encoding="utf-8")
    return (
        environment()
        .get_template("report.html")
        .render(
            name=content.visible(told[0]),
            question=content.visible(told[1]),
            answer=answer,
            lead=lead,
            sections=parts,
            drawn={name: inline_svg(drawn[name], name, alt) for name, alt in alts.items()},
            numbers={name: i for i, name in enumerate(alts, 1)},
            numbers_in=numbers_in,
            css=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
            script=script,
            script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            explorer=explorer,
        )
    )


def section_html(section: content.Section) -> str:
    """Prose, refusals, listings and stories of one section as escaped HTML, for a notebook."""
    module: Any = environment().get_template("section.html").make_module({"drawn": {}, "numbers": {}, "numbers_in": "fits.json"})
    return f"<h3>{escape(section.title)}</h3>{module.body(section)}"


def inline_svg(svg: str, name: str, alt: str) -> str:
    """A figure file's SVG made fit to stand inside the page: own ids, colors that follow the theme, alternative text."""
    body = re.sub(r"^.*?<svg[^>]*>", "", svg, count=1, flags=re.S).rsplit("</svg>", 1)[0]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<defs>\s*</defs>", "", body, flags=re.S)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'xlink:href="#', f'href="#{name}-', body).replace("url(#", f"url(#{name}-")
    body = re.sub(r"\s*font-family: [^;\"]+;?", "", body)
    for color, variable in COLORS.items():
        body = body.replace(color, f"var({variable})")
    body = re.sub(r'(?<= )(d|x|y|transform|points)="[^"]*"', lambda m: re.sub(r"(\d+\.\d)\d+", r"\1", m.group()), body)
    body = re.sub(r">\s+<", "><", body)
    box = re.search(r'viewBox="([^"]+)"', svg)
    return f'<svg viewBox="{box.group(1) if box else "0 0 360 252"}" role="img" aria-label="{escape(alt, quote=True)}">{body}</svg>'


def script_json(data: Any) -> str:
    """JSON that can stand inside a script element: no sign that ends the element or the line."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def explorer_data(evidence: Evidence, points: int = 40) -> dict[str, Any]:
    """Rows, thinned curves and some stories of the trials, as the explorer reads them."""
    columns = (*ROW, *ROW_MORE)
    trials = {"columns": columns, "rows": [[_json(t.get(key)) for key in columns] for t in evidence.trials]}
    curves: dict[str, list[list[float]]] = {str(t["trial_id"]): [] for t in evidence.trials}
    for row in evidence.curves:
        if row["trial_id"] in curves and _json(row.get("val_loss")) and row["tokens"]:
            curves[row["trial_id"]].append([row["tokens"], round(row["val_loss"], 4)])
    points = max(10, min(points, POINTS // max(1, len(curves))))
    room, stories = STORY_BYTES / max(1, len(curves)), {}
    for trial_id, samples in _by_trial(evidence.samples, set(curves)).items():
        stories[trial_id] = _stories(samples, room)
    return {"trials": trials, "curves": {k: _thin(v, points) for k, v in curves.items()}, "stories": stories}


def _by_trial(rows: Sequence[Mapping[str, Any]], wanted: set[str]) -> dict[str, list[Mapping[str, Any]]]:
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["trial_id"] in wanted:
            grouped.setdefault(row["trial_id"], []).append(row)
    return grouped


def _stories(samples: Sequence[Mapping[str, Any]], room: float) -> list[list[Any]]:
    last = max(s["step"] or 0 for s in samples)
    final = sorted((s for s in samples if (s["step"] or 0) == last), key=lambda s: (s["index"], s["prompt"], s["temperature"]))
    chosen: list[list[Any]] = []
    for s in final[:4]:
        text = content.visible(s["text"])[: int(max(120, min(700, room - 60)))]
        room -= len(text)
        chosen.append([content.visible(s["prompt"]), s["temperature"], text])
        if room < 120:
            break
    return chosen


def _thin(points: list[list[float]], most: int) -> list[list[float]]:
    points = sorted(points)
    return points if len(points) <= most else [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def _json(value: Any) -> Any:
    """A table's value for JSON: no NaN, no time stamp."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if abs(value) < float("inf") else None
    return content.visible(value) if isinstance(value, str) else value if isinstance(value, int) else None
