"""What a report is made of: cells, listings, pictures, sections. One content, rendered as HTML, Markdown, LaTeX and CSV.

Every number carries the JSON pointer (RFC 6901) of its place in `fits.json`, so that a reader can trace it and a test can check it.
A table is built from rows of (heading, where from, format):

    listing("noise", "Seeds", rows, "/sweeps/0/levels", [Column("loss (nats)", ("mean", "low", "high")), Column("seeds", "n")])
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.estimate import interval_of, is_refused, reason_of, value_of
from analysis.wording import plain, spanned, visible

LIMIT = 60
"""Rows of a table that are shown; all stand in fits.json."""


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
    full: bool = False


@dataclass(frozen=True)
class Story:
    """One generated text, side by side with others that continue the same prompt."""

    label: str
    detail: str
    text: str


@dataclass(frozen=True)
class Section:
    """A section of the report, in reading order: prose, pictures, listings, texts."""

    id: str
    title: str
    prose: Sequence[Cell] = ()
    pictures: Sequence[Picture] = ()
    listings: Sequence[Listing] = ()
    prompt: str = ""
    stories: Sequence[Story] = field(default_factory=tuple)

    def has_something(self) -> bool:
        """Whether there is anything to read."""
        return bool(self.prose or self.pictures or self.stories or any(table.rows for table in self.listings))


# ---- tables ----

Where = str | tuple[str, str, str]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        where: place inside a row: a path such as "outcome/loss", three paths (value, low, high), or "" for the whole row.
        show: text of what stands there; numbers and intervals need none.
        scale: of a number and its interval.
    """

    heading: str
    where: Where
    show: Callable[[Any], str | None] | None = None
    scale: float = 1.0


def listing(name: str, title: str, rows: Any, source: str, columns: Sequence[Column], note: str = "", limit: int = LIMIT) -> Listing:
    """A table of rows of `fits.json`; a column that is empty in every row is left out.

    Args:
        rows: a list of rows, or a mapping of them by name.
        source: JSON pointer of `rows`.
    """
    keyed = list(rows.items() if isinstance(rows, Mapping) else enumerate(rows))
    cells = [[_cell(column, row, f"{source}/{escape_pointer(key)}") for column in columns] for key, row in keyed[:limit]]
    kept = [j for j in range(len(columns)) if any(row[j].text not in ("–", "") for row in cells)]
    more = f" {len(keyed) - limit} more rows are in fits.json." if len(keyed) > limit else ""
    return Listing(name, title, [columns[j].heading for j in kept], [[row[j] for j in kept] for row in cells], (note + more).strip())


def _cell(column: Column, row: Any, here: str) -> Cell:
    if isinstance(column.where, tuple):
        return span_cell(row, column.where, here, column.scale)
    value, place = _inside(row, column.where), f"{here}/{column.where}" if column.where else here
    if column.show is not None:
        told = None if value is None else column.show(value)
        return Cell("–" if told is None else told, place, numeric=isinstance(value, int | float))
    return number(value, place, column.scale)


def _inside(row: Any, path: str) -> Any:
    for part in path.split("/") if path else ():
        row = row.get(part) if isinstance(row, Mapping) else None
    return row


def number(cell: Any, source: str, scale: float = 1.0, unit: str = "") -> Cell:
    """A value of `fits.json` as text: plain, with its interval, or "refused" with the reason as the note."""
    if cell is None:
        return Cell("–", numeric=True)
    reason = reason_of(cell)
    if reason:
        bound = value_of(cell.get("bound"))
        return Cell(f"refused (at most {plain(bound)})" if bound is not None else "refused", source, visible(reason))
    if not isinstance(cell, Mapping):
        numeric = isinstance(cell, int | float) and not isinstance(cell, bool)
        return Cell(plain(cell * scale if numeric and scale != 1 else cell), source, numeric=numeric)
    if "value" not in cell:
        return Cell("; ".join(f"{visible(k)}: {plain(v)}" for k, v in cell.items()), source)
    low, high = interval_of(cell) or (value_of(cell.get("low")), value_of(cell.get("high")))
    return Cell(spanned(value_of(cell), low, high, scale, unit), source, visible(cell.get("method") or ""), numeric=True)


def known(cell: Any) -> str | None:
    """A value with its interval as text; None where it is refused."""
    return None if is_refused(cell) else spanned(value_of(cell), value_of(cell.get("low")), value_of(cell.get("high")))


def span_cell(row: Mapping[str, Any], names: tuple[str, str, str], source: str, scale: float = 1.0) -> Cell:
    """Value, low and high that stand as three fields of one row, as one cell."""
    value, low, high = (value_of(_inside(row, name)) for name in names)
    if value is None:
        return Cell("–", numeric=True)
    return Cell(spanned(value, low, high, scale), f"{source}/{names[0]}", numeric=True)


def records_listing(name: str, title: str, rows: Iterable[Mapping[str, Any]], source: str, note: str = "") -> Listing:
    """Rows of `fits.json` as they are: one column for each field that holds a plain value or an interval."""
    kept = [row for row in rows if isinstance(row, Mapping)]
    fields = dict.fromkeys(k for row in kept for k, v in row.items() if not isinstance(v, list) or len(v) < 8)
    columns = [Column(str(k).replace("_", " "), str(k)) for k in fields if "/" not in str(k)]
    return listing(name, title, kept, source, columns, note)


def facts_listing(name: str, title: str, facts: Mapping[str, Any], source: str, note: str = "") -> Listing:
    """A mapping as two columns; mappings inside are flattened with a slash."""
    rows = [[Cell(visible(key.replace("_", " "))), number(value, pointer)] for key, value, pointer in _flat(facts, source)]
    return Listing(name, title, ["", ""], [[key, Cell(value.text, value.source, value.note)] for key, value in rows], note)


def _flat(facts: Mapping[str, Any], source: str, prefix: str = "") -> Iterable[tuple[str, Any, str]]:
    for key, value in facts.items():
        pointer = f"{source}/{escape_pointer(key)}"
        if isinstance(value, Mapping) and not ({"value", "refused"} & set(value)):
            yield from _flat(value, pointer, f"{prefix}{key} / ")
        elif value is not None and (not isinstance(value, list) or len(value) <= 12):
            yield f"{prefix}{key}", value, pointer


# ---- places ----


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
