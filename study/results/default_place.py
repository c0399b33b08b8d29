"""Where results go when nobody says: a folder below results/ for each study and each text, named after both.

A preset is known by its name; study files and texts are known by where they are, for two of them may have one name. An existing folder of
the same study that an earlier version named continues.

    default_place("宽度.yaml", data, own_data)   # <working directory>/results/宽度-5f0c1a
"""

import hashlib
import os
import re
import shlex
import unicodedata
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.home import expanded
from study.files import is_file_name, read_json
from study.spec import DataConfig

MOST_BYTES = 80
"""Of each part of a name; file systems allow 255 for all of it."""


def safe_name(text: str) -> str:
    """A name that is safe as a folder: letters and digits of any script, dot, dash and underscore, not starting with a dot."""
    kept = "".join(c if c in "._" or unicodedata.category(c)[0] in "LMN" else "-" for c in unicodedata.normalize("NFC", text))
    short = re.sub("-+", "-", kept).strip(".-").encode()[:MOST_BYTES].decode(errors="ignore")
    return short.strip(".-") or "study"


def default_place(study: str, data: DataConfig, own: DataConfig) -> Path:
    """The results folder of a preset's name or a study file (a path), trained on `data` where the study's own are `own`."""
    here = Path("results").resolve()
    named = f"{safe_name(Path(study).stem)}-{_mark(study)}" if is_file_name(study) else safe_name(study)
    place = here / (f"{named}-{_data_name(data)}" if _source(data) != _source(own) else named)
    return place if place.exists() else _former_place(here, study, data, own) or place


def _data_name(data: DataConfig) -> str:
    """The file's or the data set's name, with a hash where that does not tell all."""
    name = f"{safe_name(Path(data.path).stem)}-{_mark(data.path)}" if data.path else safe_name(data.name)
    plain = DataConfig(data.name, data.path)
    return name if (data.path or name == data.name) and _source(data) == _source(plain) else f"{name}-{_digest(str(_source(data)))}"


def _source(data: DataConfig) -> tuple[str | int, ...]:
    """What tells one text, or one text's tokens, from another."""
    if data.path:
        return _mark(data.path), data.column, data.tokenizer, data.vocab_size
    if data.from_hub:
        return data.name, data.column, data.tokenizer, data.train_bytes
    return data.name, data.tokenizer, data.train_chars, data.seed


def _mark(path: str) -> str:
    """A short hash of where a file is: below the working directory from there on, so that a project may be moved with its results."""
    place = expanded(path, "path").resolve()
    return _digest(str(place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place))


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:6]


# ---- folders of earlier versions, whose names kept ASCII only ----


def _former_place(here: Path, study: str, data: DataConfig, own: DataConfig) -> Path | None:
    """The folder that an earlier version named, if its study.json was written for this study and these data."""
    name = _ascii(Path(study).stem if is_file_name(study) else study)
    other = _ascii(Path(data.path).stem) if data.path else _ascii(data.name) if data.name != own.name else ""
    place = here / (f"{name}-{other}" if other and data != own else name)
    facts = read_json(place / "study.json")
    held = facts["study"].get("data") if isinstance(facts.get("study"), dict) else None
    if facts.get("name") != name or not isinstance(held, dict) or _canonical(held) != _canonical(asdict(data)):
        return None
    named = {Path(word).resolve() for word in shlex.split(str(facts.get("command", ""))) if is_file_name(word) and word.endswith("ml")}
    return place if named <= ({expanded(study, "STUDY").resolve()} if is_file_name(study) else set()) else None


def _ascii(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-") or "study"


def _canonical(data: dict[str, Any]) -> dict[str, Any]:
    return {**asdict(DataConfig()), **data, "path": str(Path(data["path"]).resolve()) if data.get("path") else ""}
