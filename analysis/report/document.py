"""What a report is made of: cells, listings, pictures, sections. One content, rendered as HTML, Markdown, LaTeX, CSV and notebook output.

Every number carries the JSON pointer (RFC 6901) of its place in `fits.json`, so that a reader can trace it and a test can check it.
Text that a model generated or a file named is untrusted: `visible` makes its control characters visible before anything renders it.

    number({"value": 0.34, "low": 0.29, "high": 0.41}, "/fits/joint/parameters/alpha").text   # '0.34 [0.29, 0.41]'
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from analysis.estimate import interval_of, reason_of, value_of
from analysis.wording import WIDEST


@dataclass(frozen=True)
class Cell:
    """One entry of a listing: its text, where in `fits.json` it stands, and a remark shown on demand."""

    text: str
    source: str = ""
    note: str = ""
    numeric: bool = False


@dataclass(frozen=True)
class Listing:
    """A table for readers: `columns` are headings, `rows` hold one Cell per column."""

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure by file name, with the caption under it and the alternative text that replaces it for those who cannot see it."""

    name: str
    caption: str
    alt: str
    narrow: bool = False


@dataclass(frozen=True)
class Story:
    """One generated text, side by side with others that continue the same prompt."""

    label: str
    detail: str
    text: str


@dataclass(frozen=True)
class Section:
    """A section of the report, in reading order: prose, pictures, listings, stories, and what was refused."""

    id: str
    title: str
    prose: Sequence[Cell] = ()
    pictures: Sequence[Picture] = ()
    listings: Sequence[Listing] = ()
    refused: Sequence[Cell] = ()
    prompt: str = ""
    stories: Sequence[Story] = field(default_factory=tuple)


# ---- untrusted text ----

_INVISIBLE = {"Cf", "Co", "Cs", "Cn", "Zl", "Zp"}


def visible(text: str) -> str:
    """Text in which nothing acts: control characters become their pictures (ESC is shown as one sign), bidi overrides their code.

    Line feeds stay; carriage returns before them are dropped. HTML and Markdown are not touched: their renderers escape them.
    """
    return "".join(_shown(c) for c in text.replace("\r\n", "\n"))


def _shown(character: str) -> str:
    code = ord(character)
    if character in "\n" or (code >= 32 and code != 127 and unicodedata.category(character) not in _INVISIBLE | {"Cc"}):
        return character
    if character == "\t":
        return "    "
    if code < 32:
        return chr(0x2400 + code)
    return "\u2421" if code == 127 else f"<U+{code:04X}>"


# ---- numbers ----


def decimals_for(width: float) -> int:
    """Decimals that show an interval of this half-width with two significant digits (0 to 5)."""
    return int(np.clip(1 - np.floor(np.log10(width)), 0, 5)) if width > 0 and np.isfinite(width) else 4


def plain(value: Any, digits: int = 4) -> str:
    """A value without an interval: four significant digits, whole numbers with separators, an en dash for nothing."""
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) < 10**12:
        return f"{value:,}"
    value = float(value) if isinstance(value, int) else value
    if not isinstance(value, float):
        return ", ".join(plain(v) for v in value) if isinstance(value, list | tuple) else str(value)
    if 1000 <= abs(value) < 1e12:
        return f"{float(f'{value:.{max(digits, 4)}g}'):,.0f}".replace("-", "\u2212")
    text = re.sub(r"e([+-])0*(\d+)", lambda m: f" \u00d7 10^{m.group(1).strip('+')}{m.group(2)}", f"{value:.{digits}g}")
    return text.replace("-", "\u2212")


def spanned(value: float | None, low: float | None, high: float | None, scale: float = 1.0, unit: str = "") -> str:
    """'0.34 [0.29, 0.41]': as many decimals as the interval supports."""
    if value is None:
        return "–"
    if low is None or high is None or low == high:
        return plain(value * scale) + unit
    value, low, high = value * scale, low * scale, high * scale
    if not np.isfinite([low, high]).all():
        end = "not determined" if not np.isfinite([low, high]).any() else f"at most {plain(high, 3)}"
        return f"{plain(value, 3)}{unit} [{end if not np.isfinite(low) else f'at least {plain(low, 3)}'}]"
    places = decimals_for((high - low) / 2)
    return f"{fixed(value, places)}{unit} [{fixed(low, places)}, {fixed(high, places)}]"


def fixed(value: float, places: int) -> str:
    """A fixed number of decimals, a real minus sign, and no zero with a sign."""
    text = f"{value:.{places}f}"
    return (text.removeprefix("-") if float(text) == 0 else text).replace("-", "\u2212")


def pretty(equation: str) -> str:
    """An equation in plain letters with the signs that readers expect."""
    for plain_name, sign in (("alpha", "α"), ("beta", "β"), ("gamma", "γ"), ("^-", "^−"), ("*", "·")):
        equation = equation.replace(plain_name, sign)
    return equation


def sentence(text: Any) -> str:
    """Words as a sentence: a capital at the start, a full stop at the end."""
    words = str(text or "").strip()
    return words and words[0].upper() + words[1:] + ("" if words[-1] in ".!?" else ".")


def shape_name(row: Mapping[str, Any]) -> str:
    """'6 × 256, 8 heads', on one line."""
    return f"{plain(row.get('n_layer'))} × {plain(row.get('n_embd'))}, {several(row.get('n_head'), 'head')}".replace(" ", "\u00a0")


def several(count: Any, noun: str) -> str:
    """'1 seed', '3 seeds'."""
    return f"{plain(count)} {noun}{'' if count == 1 else 's'}"


def number(cell: Any, source: str, scale: float = 1.0, unit: str = "") -> Cell:
    """A cell of `fits.json` as text: with its interval, or "refused" with the reason as the note."""
    if cell is None:
        return Cell("–", numeric=True)
    reason = reason_of(cell)
    if reason:
        known = cell.get("bound") if isinstance(cell, Mapping) else None
        if isinstance(known, Mapping) and value_of(known.get("estimate")) is not None:
            return Cell(f"{plain(known['estimate'])} (no interval)", source, reason)
        bound = value_of(known)
        return Cell(f"refused (at most {plain(bound)})" if bound is not None else "refused", source, reason)
    low, high = _ends(cell)
    text = spanned(value_of(cell), low, high, scale, unit) if isinstance(cell, Mapping) else plain(cell)
    note = str(cell.get("method", "")) if isinstance(cell, Mapping) else ""
    return Cell(text, source, note, numeric=True)


def _ends(cell: Any) -> tuple[float | None, float | None]:
    """Low and high of a cell; an interval that is open at one end has no number there and reaches infinity."""
    closed = interval_of(cell)
    if closed or not isinstance(cell, Mapping):
        return closed or (None, None)
    low, high = value_of(cell.get("low")), value_of(cell.get("high"))
    if low is None and high is None:
        return None, None
    return -np.inf if low is None else low, np.inf if high is None else high


def ratio_cell(row: Mapping[str, Any], names: tuple[str, str, str], source: str) -> Cell:
    """A factor with its interval; beyond a factor of WIDEST there is no number that means anything."""
    value, low, high = (value_of(row.get(name)) for name in names)
    here = f"{source}/{names[0]}"
    if value is None or low is None or high is None:
        return Cell(_ratio(value), here, numeric=True)
    if low < 1 / WIDEST and high > WIDEST:
        return Cell("not determined", here, "its interval spans everything", numeric=True)
    inside = 1 / WIDEST <= low <= high <= WIDEST
    return Cell(spanned(value, low, high) if inside else f"{_ratio(value)} [{_ratio(low)}, {_ratio(high)}]", here, numeric=True)


def _ratio(value: float | None) -> str:
    if value is None:
        return "–"
    return f"over {WIDEST:.0f}" if value > WIDEST else f"under {1 / WIDEST:.2f}" if value < 1 / WIDEST else plain(value, 2)


def span_cell(row: Mapping[str, Any], names: tuple[str, str, str], source: str, scale: float = 1.0) -> Cell:
    """Value, low and high that stand as three fields of one row, as one cell."""
    value, low, high = (value_of(row.get(name)) for name in names)
    if names[0] not in row:
        return Cell("–", numeric=True)
    return Cell(spanned(value, low, high, scale), f"{source}/{names[0]}", reason_of(row.get(names[0])), numeric=True)


def escape_pointer(part: Any) -> str:
    """One reference token of a JSON pointer (RFC 6901, section 3)."""
    return str(part).replace("~", "~0").replace("/", "~1")


def at(document: Any, pointer: str) -> Any:
    """The value at a JSON pointer, for tests and tools that trace a number.

    Raises:
        KeyError: the document has no such place.
    """
    for token in pointer.split("/")[1:]:
        token = token.replace("~1", "/").replace("~0", "~")
        try:
            document = document[int(token)] if isinstance(document, list) else document[token]
        except (IndexError, ValueError, TypeError) as error:
            raise KeyError(f"{pointer} is not in fits.json") from error
    return document


def records_listing(name: str, title: str, rows: Iterable[Mapping[str, Any]], source: str, note: str = "", limit: int = 60) -> Listing:
    """Rows of `fits.json` as they are: one column for each field that holds a plain value or an interval."""
    kept = [row for row in rows if isinstance(row, Mapping)]
    columns = list(dict.fromkeys(k for row in kept for k, v in row.items() if not isinstance(v, list) or len(v) < 8))
    cells = [[_any_cell(row.get(c), f"{source}/{i}/{escape_pointer(c)}") for c in columns] for i, row in enumerate(kept[:limit])]
    more = f" {len(kept) - limit} more rows are in fits.json." if len(kept) > limit else ""
    return Listing(name, title, [c.replace("_", " ") for c in columns], cells, note + more)


def facts_listing(name: str, title: str, facts: Mapping[str, Any], source: str, note: str = "") -> Listing:
    """A mapping as two columns; mappings inside are flattened with a slash."""
    rows = [
        [Cell(_fact_name(key)), replace(_fact_cell(key, value, pointer), numeric=False)] for key, value, pointer in _flat(facts, source)
    ]
    return Listing(name, title, ["", ""], rows, note)


def _flat(facts: Mapping[str, Any], source: str, prefix: str = "") -> Iterable[tuple[str, Any, str]]:
    for key, value in facts.items():
        pointer = f"{source}/{escape_pointer(key)}"
        if isinstance(value, Mapping) and not ({"value", "refused"} & set(value)):
            yield from _flat(value, pointer, f"{prefix}{key} / ")
        elif value is not None and (not isinstance(value, list) or len(value) <= 12):
            yield f"{prefix}{key}", value, pointer


FACT_NAMES = {
    "floor": "entropy of the text (nats per character)", "vocab_size": "distinct characters", "unique_tokens": "characters to train on",
    "n_tokens": "characters seen by each trial", "memory_bytes": "memory", "cpus": "CPUs", "wall_s": "seconds of all trials together",
    "flops": "FLOP of all trials together", "git_dirty": "uncommitted changes",
}  # fmt: skip
"""Names of facts that do not explain themselves."""


def _fact_name(key: str) -> str:
    *groups, name = key.split(" / ")
    return " / ".join([*groups, FACT_NAMES.get(name, name)]).replace("_", " ")


def _fact_cell(key: str, value: Any, source: str) -> Cell:
    """A fact for people: bytes as GiB, times to the second."""
    if key.endswith("memory_bytes") and isinstance(value, int):
        return Cell(f"{value / 2**30:.1f} GiB", source, plain(value))
    if key.endswith("_at") and isinstance(value, str):
        return Cell(re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?\+00:00$", r"\1 \2 UTC", visible(value)), source)
    return _any_cell(value, source)


def _any_cell(value: Any, source: str) -> Cell:
    if isinstance(value, Mapping):
        return (
            number(value, source)
            if {"value", "refused"} & set(value)
            else Cell("; ".join(f"{k}: {plain(v)}" for k, v in value.items()), source)
        )
    if source.endswith("/equation"):
        return Cell(pretty(visible(str(value))), source)
    return Cell(visible(plain(value)), source, numeric=isinstance(value, int | float) and not isinstance(value, bool))
