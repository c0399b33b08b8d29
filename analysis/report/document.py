"""What a report is made of: cells, listings, pictures, sections. One content, rendered as HTML, Markdown, LaTeX and CSV.

Every number carries the JSON pointer (RFC 6901) of its place in `fits.json`, so that a reader can trace it and a test can check it.
A table is built from the place of its rows, and of columns of (heading, place inside a row, format):

    listing(fits, "/sweeps/0/levels", "noise", "Seeds", [("loss (nats)", ("mean", "low", "high")), ("seeds", "n")])
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from analysis.estimate import is_refused, reason_of, value_of
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
    stories: Sequence[Story] = ()

    def having(self, drawn: Container[str]) -> Section:
        """What there is of it: pictures that are drawn, tables that have rows."""
        pictures = [picture for picture in self.pictures if picture.name in drawn]
        return replace(self, pictures=pictures, listings=[table for table in self.listings if table.rows])

    def has_something(self) -> bool:
        """Whether there is anything to read."""
        return bool(self.prose or self.pictures or self.stories or any(table.rows for table in self.listings))


# ---- tables ----

Place = str | tuple[str, str, str] | None
"""Inside a row: a path such as "outcome/loss", three paths (value, low, high), "" for the whole row, None for its name."""
Show = Callable[[Any], str | Cell | None]
"""Text or cell of what stands at a place; numbers and intervals need none."""
Column = tuple[str, Place] | tuple[str, Place, Show]
"""Heading, place, and how it is shown."""


def listing(
    document: Any,
    source: str,
    name: str,
    title: str,
    columns: Sequence[Column] | None = None,
    note: str = "",
    keep: Callable[[Any], bool] = lambda row: True,
    limit: int = LIMIT,
) -> Listing:
    """A table of rows of `fits.json`; a column that is empty in every row is left out.

    Args:
        source: JSON pointer of the rows, a list or a mapping of them by name; "/*" in it stands for each entry there.
        columns: None for every field of a row that holds a plain value or an interval.
        keep: whether a row is shown.
    """
    rows = {place: row for place, row in _rows(document, source) if keep(row)}
    if columns is None:
        fields = dict.fromkeys(k for row in rows.values() for k, v in row.items() if not isinstance(v, list) or len(v) < 8)
        columns = [(str(k).replace("_", " "), escape_pointer(k)) for k in fields]
    cells = [(heading, [_cell(row, place, *how) for place, row in [*rows.items()][:limit]]) for heading, *how in columns]
    kept = [(heading, own) for heading, own in cells if any(cell.text not in ("–", "") for cell in own)]
    more = f" {len(rows) - limit} more rows are in fits.json." if len(rows) > limit else ""
    return Listing(name, title, [heading for heading, _ in kept], [*zip(*(own for _, own in kept), strict=True)], (note + more).strip())


def _rows(document: Any, source: str) -> Iterator[tuple[str, Any]]:
    """(place, row) of each entry at a pointer; none where nothing stands there, or a refusal."""
    head, _, tail = source.partition("/*")
    found = _found(document, head)
    for key, row in () if is_refused(found) else found.items() if isinstance(found, Mapping) else enumerate(found):
        place = f"{head}/{escape_pointer(key)}"
        yield from _rows(document, place + tail) if tail else [(place, row)]


def _cell(row: Any, here: str, where: Any, show: Any = None) -> Cell:
    if isinstance(where, tuple):
        ends = {name: value_of(_found(row, f"/{end}")) for name, end in zip(("value", "low", "high"), where, strict=True)}
        return number(None if ends["value"] is None else ends, f"{here}/{where[0]}")
    path = f"/{where}" if where else ""
    place, value = ("", here.rpartition("/")[2]) if where is None else (here + path, _found(row, path))
    if show is None:
        return number(value, place)
    told = None if value is None else show(value)
    return told if isinstance(told, Cell) else Cell("–" if told is None else told, place, numeric=isinstance(value, int | float))


def number(cell: Any, source: str) -> Cell:
    """A value of `fits.json` as text: plain, with its interval, or "refused" with the reason as the note."""
    if cell is None:
        return Cell("–", numeric=True)
    if reason := reason_of(cell):
        return Cell("refused", source, visible(reason))
    if not isinstance(cell, Mapping):
        return Cell(plain(cell), source, numeric=isinstance(cell, int | float) and not isinstance(cell, bool))
    if "value" not in cell:
        return Cell("; ".join(f"{visible(k)}: {plain(v)}" for k, v in cell.items()), source)
    return Cell(spanned(cell), source, visible(cell.get("method") or ""), numeric=True)


def known(cell: Any) -> str | None:
    """A value with its interval as text; None where it is refused."""
    return None if is_refused(cell) else spanned(cell)


def facts_listing(name: str, title: str, facts: Mapping[str, Any], source: str) -> Listing:
    """A mapping as two columns; mappings inside are flattened with a slash."""
    rows = [
        (Cell(visible(key.replace("_", " "))), replace(number(value, place), numeric=False)) for key, value, place in _flat(facts, source)
    ]
    return Listing(name, title, ["", ""], rows)


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
    """The value at a JSON pointer.

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


def _found(document: Any, pointer: str) -> Any:
    """The value at a JSON pointer, or None where there is none."""
    try:
        return at(document, pointer)
    except KeyError:
        return None
