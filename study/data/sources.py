"""Where a text comes from, what names it, and the plain text files that it is read from.

Sources are `stories` (our own generator, with a known entropy), a file or a folder of yours (.txt, .jsonl, .parquet, the first two also
with .gz) and data sets of the Hugging Face hub. No torch, no ray, no pandas.

    key = identity(config, cache); texts = gather(config, cache, scratch)   # texts.train, texts.val: UTF-8 files
"""

import gzip
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from models.home import expanded
from study.data.tokens import END_OF_TEXT, check_text_file
from study.spec import DataConfig
from study.stories import generator as stories

TINYSTORIES = "hub:roneneldan/TinyStories@f54c09fd23315a6f9c86f9dc80f725de7d8f9c64/TinyStoriesV2-GPT4-"
"""The published study's text (Eldan and Li 2023; licence CDLA-Sharing-1.0): its second version, written by GPT-4 alone."""
KINDS = (".txt", ".jsonl", ".parquet", ".txt.gz", ".jsonl.gz")
"""Files of a folder or of a data set that are read; a single file of any other name is read as plain text."""
BLOCK = 1 << 22
"""Characters or rows copied at a time."""
_TRAINING, _VALIDATION, _TEST = (
    re.compile(rf"(^|[/_.-])({words})(?![a-z])", re.IGNORECASE) for words in ("train(ing)?", "val|valid|validation|dev", "test")
)


@dataclass(frozen=True)
class Texts:
    """Plain text files; without a validation file, the end of the training file serves. `floor`: entropy in nats per character token."""

    train: Path
    val: Path | None
    about: str
    floor: float | None = None
    floor_se: float | None = None
    n_val_characters: int = 0
    """character tokens that `floor` is spread over"""


def hub_name(name: str) -> dict[str, str]:
    """The parts of `hub:OWNER/DATASET[@REVISION][/BEGINNING][:COLUMN]`; BEGINNING keeps the files whose path begins so.

    Raises:
        ValueError: it has another form.
    """
    form = r"hub:(?P<dataset>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<beginning>[^:]*))?(?::(?P<column>.+))?"
    match = re.fullmatch(form, TINYSTORIES if name == "tinystories" else name)
    if not match:
        raise ValueError(f"data.name={name!r} names no data set of the hub; write hub:OWNER/DATASET or hub:OWNER/DATASET:COLUMN")
    return match.groupdict("")


# ---- identity ----


def identity(config: DataConfig, cache: Path) -> dict[str, Any]:
    """What `corpus.data_identity` says of the text alone."""
    if config.path:
        return {"name": "text", **_path_identity(config)}
    if config.name == "stories":
        return {"name": "stories", "generator": stories.VERSION, "train_chars": config.train_chars, "seed": config.seed}
    named = hub_name(config.name)
    if config.name == "tinystories":
        return {"name": config.name, "revision": named["revision"], "train_bytes": config.train_bytes or None}
    from study.data import hub  # its library takes a second to load

    revision, _ = hub.listing(named["dataset"], named["revision"], cache)
    own = {"name": "hub", "revision": revision, "column": named["column"] or config.column, "train_bytes": config.train_bytes}
    return named | own


def _path_identity(config: DataConfig) -> dict[str, Any]:
    path = expanded(config.path, "data.path")
    files = text_files(path)
    if files == [path] and not _holds_records(path):
        return {"sha256": file_sha256(path)}
    return {"files": [file_sha256(file) for file in files], "column": config.column if any(map(_holds_records, files)) else ""}


def file_sha256(path: Path) -> str:
    """Hash of a file's content, read once while its size and time stay."""
    stat = path.stat()
    return _file_sha256(str(path.resolve()), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _file_sha256(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_files(path: Path) -> list[Path]:
    """A file itself, or the text files below a folder, sorted by their path.

    Raises:
        ValueError: there is none, or it cannot be one.
    """
    if not os.path.isdir(path):
        if not path.name.endswith((".parquet", ".gz")):
            check_text_file(path)
        elif not path.is_file():
            raise ValueError(f"data.path={path} does not exist; give a text file or a folder of them")
        return [path]
    found = sorted(file for file in path.rglob("*") if file.is_file() and file.name.endswith(KINDS) and not file.name.startswith("."))
    if not found:
        raise ValueError(f"data.path={path} is a folder without {', '.join(KINDS)}; give one with such files, or train.bin and val.bin")
    return found


# ---- plain text ----


def gather(config: DataConfig, cache: Path, scratch: Path) -> Texts:
    """The text of `config` as plain files: those of the user where they are plain, else written to `scratch`.

    Raises:
        ValueError: the text cannot be had or used, with one sentence saying why.
    """
    if config.name == "stories":
        return _write_stories(config, scratch)
    if config.path:
        path = expanded(config.path, "data.path")
        files = {str(file.relative_to(path)): file for file in text_files(path)}
        train, val = ([files[name] for name in names] for names in split_by_name(list(files)))
        column, about = config.column, f"your text {path.name}; licence: as you hold it"
    else:
        train, val, column, about = _fetch(config, cache, scratch)
    return Texts(_one_file(train, column, scratch / "train.txt"), _one_file(val, column, scratch / "val.txt") if val else None, about)


def _fetch(config: DataConfig, cache: Path, scratch: Path) -> tuple[list[Path], list[Path], str, str]:
    """Training and validation files of a data set of the hub, the column of their text, and where they are from."""
    from study.data import hub  # its library takes a second to load

    named, first = hub_name(config.name), config.train_bytes
    dataset = named["dataset"]
    revision, files = hub.listing(dataset, named["revision"], cache)
    wanted = [name for name in files if name.startswith(named["beginning"]) and name.endswith(KINDS)]
    if not wanted:
        raise ValueError(f"{dataset} has no {', '.join(KINDS)} that begins with {named['beginning']!r}; it has {', '.join(files[:8])}")
    train, val = split_by_name(wanted)
    if first and (len(train) > 1 or not train[0].endswith(".txt")):
        raise ValueError(f"data.train_bytes={first} takes the beginning of one .txt file, and {dataset} has {', '.join(train[:3])}")
    paths = [hub.fetch(dataset, revision, name, scratch, first) for name in train]
    if first:
        paths = [_whole_documents(paths[0], first, scratch)]
    about = f"{dataset} of the Hugging Face hub, revision {revision[:8]}; licence: as its page says"
    return paths, [hub.fetch(dataset, revision, name, scratch) for name in val], named["column"] or config.column, about


def split_by_name(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Training and validation files by their names; a test split is left out where there are others."""
    val = [name for name in names if _VALIDATION.search(name) and not _TRAINING.search(name)]
    train = [name for name in names if _TRAINING.search(name)] or [n for n in names if n not in val and not _TEST.search(n)]
    return (train, val) if train else (list(names), [])


def _one_file(files: Sequence[Path], column: str, target: Path) -> Path:
    """A plain file itself; else all documents written to `target`, each ended by the end-of-text marker."""
    if len(files) == 1 and not _holds_records(files[0]) and not files[0].name.endswith(".gz"):
        check_text_file(files[0])
        return files[0]
    with target.open("w", encoding="utf-8", newline="\n") as out:
        for file in files:
            if _holds_records(file):
                records = (_read_parquet if file.suffix == ".parquet" else _read_jsonl)(file, column)
                out.writelines(text + END_OF_TEXT for text in records if text)
                continue
            block = END_OF_TEXT
            for block in _read_blocks(file):
                out.write(block)
            if not block.rstrip().endswith(END_OF_TEXT):
                out.write(END_OF_TEXT)
    check_text_file(target)
    return target


def _holds_records(path: Path) -> bool:
    return path.name.endswith((".jsonl", ".jsonl.gz", ".parquet"))


def _read_blocks(path: Path) -> Iterator[str]:
    try:
        with _open_text(path) as file:
            yield from iter(lambda: file.read(BLOCK), "")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as UTF-8 text ({error}); convert it, or leave it out") from error


def _read_jsonl(path: Path, column: str) -> Iterator[str]:
    try:
        with _open_text(path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    record = json.loads(line)
                    if not isinstance(record, dict) or not isinstance(record.get(column), str):
                        raise _wrong_column(f"line {number} of {path}", column, record if isinstance(record, dict) else ())
                    yield record[column]
    except (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as lines of JSON in UTF-8 ({error}); mend it, or leave it out") from error


def _read_parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            kinds = {field.name: field.type for field in file.schema_arrow}
            if not any(kinds.get(column) == kind for kind in (pa.string(), pa.large_string(), pa.string_view())):
                raise _wrong_column(str(path), column, kinds)
            for batch in file.iter_batches(batch_size=4096, columns=[column]):
                yield from batch.column(0).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet ({str(error).splitlines()[0][:200]}); mend it, or leave it out") from error


def _wrong_column(where: str, column: str, there: Iterable[str]) -> ValueError:
    return ValueError(
        f"{where} has no text in the column {column!r}; it has {', '.join(there) or 'no columns'}: name one with --data.column"
    )


def _open_text(path: Path) -> Any:
    return (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig")


def _whole_documents(path: Path, n_bytes: int, scratch: Path) -> Path:
    """The whole documents among the first `n_bytes` bytes of a text."""
    with path.open("rb") as file:
        text = file.read(n_bytes)
    if len(text) < n_bytes or n_bytes < 1000:
        raise ValueError(f"data.train_bytes={n_bytes:,} must lie between 1,000 and the {path.stat().st_size:,} bytes of the training text")
    end = text.rfind(END_OF_TEXT.encode())
    if end < 0:
        raise ValueError(f"data.train_bytes={n_bytes:,} holds no whole document; ask for more")
    target = scratch / "beginning.txt"
    target.write_bytes(text[: end + len(END_OF_TEXT)])
    return target


def _write_stories(config: DataConfig, scratch: Path) -> Texts:
    made = stories.build(config.train_chars, config.seed)
    train, val = scratch / "train.txt", scratch / "val.txt"
    for path, part in ((train, made.train), (val, made.val)):
        path.write_text("".join(story + END_OF_TEXT for story in part), encoding="utf-8", newline="\n")
    about = f"generated stories, version {stories.VERSION}, seed {config.seed}; no licence needed; validation from its own random stream"
    return Texts(train, val, about, made.floor, made.floor_se, sum(len(story) + 1 for story in made.val))
