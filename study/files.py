"""Files that are replaced whole, requests that are made again, what a person means by a name, and where the cache is.

with replaced(path) as file: file.write(b"...")   # a reader sees the old file or the whole new one
"""

import errno
import json
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from models.home import expanded, home

T = TypeVar("T")
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk that is full, or of a person's share of it."""


def is_file_name(name: str) -> bool:
    """Whether STUDY means a file rather than a preset."""
    return name.endswith((".yaml", ".yml")) or "/" in name


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file to write in the place of `path`: through one beside it, fsync and rename, so that a power cut leaves the old or the new.

    Raises:
        OSError: it cannot be written; the old file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex[:8]}")
    try:
        with open(scratch, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def write_json(path: Path, facts: dict[str, Any]) -> None:
    """Write JSON whole or not at all, readable by a person."""
    with replaced(path) as file:
        file.write(json.dumps(facts, indent=1, ensure_ascii=False).encode(errors="surrogateescape"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; {} where there is none or its text is damaged (it is written anew), OSError where it cannot be read."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except (FileNotFoundError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def cache_folder() -> Path:
    """The cache folder: $SCALING_STUDY_CACHE, else ~/.cache/scaling-study, else (in a home that cannot be written) a temporary folder."""
    if named := os.environ.get("SCALING_STUDY_CACHE"):
        return expanded(named, "SCALING_STUDY_CACHE")
    at_home = home() / ".cache" / "scaling-study"
    existing = next(folder for folder in (at_home, *at_home.parents) if folder.exists())
    return at_home if os.access(existing, os.W_OK | os.X_OK) else Path(tempfile.gettempdir()) / f"scaling-study-{os.getuid()}"


def retried(request: Callable[[], T], pauses_s: Sequence[float]) -> T:
    """Make a request again after each of some pauses, then let its OSError through."""
    for pause in pauses_s:
        with suppress(OSError):
            return request()
        time.sleep(pause)
    return request()
