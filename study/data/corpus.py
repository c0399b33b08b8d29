"""Data: a text becomes a corpus of token ids, prepared once, cached on disk, memory-mapped by every trial.

Reads what `study.data.sources` gathers; writes `<cache>/corpora/<key>/{train.bin, val.bin, meta.json}`. No torch, no ray, no pandas.

    corpus = prepare(DataConfig(name="stories"))
"""

import hashlib
import json
import os
import shutil
import sys
import time
import uuid
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from models.home import expanded
from models.tokenizer import BYTES, Tokenizer
from study.data import sources
from study.data import tokens as text_tokens
from study.files import cache_folder, write_json
from study.spec import DataConfig

CACHE_VERSION = 1  # raise it when the same source would give different tokens
VERIFY_BYTES = 1 << 28  # caches up to this size are hashed whenever they are opened; above it only their sizes are checked
ABANDONED_S = 6 * 3600.0  # a scratch folder that old was left behind
TINYSTORIES_CHARACTERS = 228
"""Vocabulary assumed of characters that were not read yet (the published study's)."""
PARTS = ("train", "val")
MOST_UNKNOWN = 0.01
"""Share of a text that a tokenizer may lose."""


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus; its tokens stay on disk until they are touched."""

    name: str
    train: np.ndarray  # (n_train,) uint8, uint16 or uint32, by the size of the vocabulary
    val: np.ndarray  # (n_val,) same type
    vocab_size: int  # number of token ids
    tokenizer: Tokenizer | None  # None: arrays of token ids came without one
    sha256: str  # of vocabulary and tokens: the identity of the data
    n_unknown: int  # validation tokens that stand for what the vocabulary lacks
    floor: float | None  # nats per token of the whole validation split: what a model that knew the source would score; None = unknown
    floor_se: float | None  # its standard error over stories
    source: str  # where the text is from, its licence, and how it was split
    path: Path  # the folder


# ---- identity ----


def data_identity(config: DataConfig, cache_dir: Path | None = None) -> dict[str, Any]:
    """Canonical facts, ready for JSON, that fix the data before they are prepared; they enter the trial's id.

    Files are known by their content, so moving or renaming one changes nothing.
    """
    if folder := _arrays(config):
        hashes = [sources.file_sha256(folder / f"{part}.bin") for part in PARTS]
        return {"name": "arrays", "sha256": hashes, "vocab_size": config.vocab_size}
    facts = sources.identity(config, cache_dir or cache_folder())
    if config.tokenizer == "char":
        return facts
    named = config.tokenizer == "bytes" or config.tokenizer.startswith("bpe:")
    return facts | {"tokenizer": config.tokenizer if named else hashlib.sha256(_file_tokenizer(config).json.encode()).hexdigest()}


def data_key(config: DataConfig) -> str:
    """16 hex digits of `data_identity`: the word for the data in a trial's identity."""
    return _hash(data_identity(config))[:16]


def _hash(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def expected_vocab_size(config: DataConfig) -> int:
    """Token ids that a corpus has or will have, as far as that is known without reading its text."""
    if config.vocab_size or config.tokenizer == "char":
        return config.vocab_size or TINYSTORIES_CHARACTERS
    if config.tokenizer.startswith("bpe:"):
        return int(config.tokenizer.removeprefix("bpe:"))
    return BYTES if config.tokenizer == "bytes" else _file_tokenizer(config).size


def _file_tokenizer(config: DataConfig) -> Tokenizer:
    return text_tokens.read_file(expanded(config.tokenizer, "data.tokenizer"))


# ---- preparing ----


def prepare(config: DataConfig, cache_dir: Path | None = None) -> Corpus:
    """Return the corpus that `config` names, from the cache (by default `study.files.cache_folder`) or made now.

    Two processes may prepare the same corpus at once: each writes a folder of its own and the first to rename it wins.

    Raises:
        ValueError: the text cannot be had or used, with one sentence saying why.
    """
    root = cache_dir or cache_folder()
    found = find(config, root)
    if found is None:
        try:
            _make(config, root)
        except OSError as error:
            raise ValueError(
                f"the corpus cannot be written to {root} ({error}); name another folder: SCALING_STUDY_CACHE=FOLDER."
            ) from error
        found = find(config, root)
    if found is None:
        raise ValueError(f"the corpus in {root} was changed while it was being written; run again or name another cache.")
    return found


def find(config: DataConfig, cache_dir: Path | None = None) -> Corpus | None:
    """The corpus if the cache has it, else None: nothing is made and no text downloaded. A folder whose bytes are wrong is set aside.

    Raises:
        ValueError: a file of it cannot be opened or read, which says nothing about what it holds: it stays.
    """
    if arrays := _arrays(config):
        return _open_arrays(config, arrays)
    key, folder = _place(config, cache_dir or cache_folder())
    try:
        return _open(folder, key) if folder.exists() else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        aside = folder.with_name(f"{folder.name}.set-aside-{time.time_ns()}")
        try:
            folder.rename(aside)
        except FileNotFoundError:  # another process found the damage first
            return None
        print(f"the cached corpus {folder.name} is damaged ({error}); set aside as {aside.name} and made anew.", file=sys.stderr)
        return None
    except OSError as error:
        raise ValueError(
            f"the cached text {error.filename or folder} cannot be read ({error.strerror or error}); mend that, or name another "
            "cache with SCALING_STUDY_CACHE=FOLDER"
        ) from error


def _place(config: DataConfig, root: Path) -> tuple[str, Path]:
    """The key of a corpus in the cache and its folder."""
    key = _hash({**data_identity(config, root), "cache": CACHE_VERSION})
    return key, root / "corpora" / key[:20]


def _open(folder: Path, key: str) -> Corpus:
    """A cached corpus, checked; raises ValueError, or whatever its damaged facts lead to."""
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    if meta["key"] != key:
        raise ValueError("it belongs to other data")
    parts = [np.memmap(folder / f"{part}.bin", dtype=meta["dtype"], mode="r") for part in PARTS]
    for part, tokens in zip(PARTS, parts, strict=True):
        if len(tokens) != meta[f"n_{part}"]:
            raise ValueError(f"{part}.bin has the wrong size")
    tokenizer = _tokenizer(meta)
    if sum(tokens.nbytes for tokens in parts) <= VERIFY_BYTES and _hash_corpus(folder, tokenizer) != meta["sha256"]:
        raise ValueError("its tokens do not match their hash")
    facts = {name: meta[name] for name in ("name", "sha256", "n_unknown", "floor", "floor_se", "source")}
    return Corpus(train=parts[0], val=parts[1], vocab_size=tokenizer.size, tokenizer=tokenizer, path=folder, **facts)


def _hash_corpus(folder: Path, tokenizer: Tokenizer) -> str:
    """SHA-256 of vocabulary, training tokens and validation tokens."""
    digest = hashlib.sha256(tokenizer.dump().encode())
    for part in PARTS:
        with (folder / f"{part}.bin").open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _tokenizer(meta: dict[str, Any]) -> Tokenizer:
    return Tokenizer(tuple(meta["characters"]), meta.get("tokenizer", ""))


def _make(config: DataConfig, root: Path) -> None:
    """Write a corpus beside its place and rename it there; whoever comes second throws his copy away."""
    key, folder = _place(config, root)
    scratch = folder.with_name(f".{folder.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    scratch.mkdir(parents=True)
    for left in folder.parent.glob(f".{folder.name}-*"):  # by a process that was killed
        if time.time() - left.stat().st_mtime > ABANDONED_S:
            shutil.rmtree(left, ignore_errors=True)
    try:
        meta = _fill(config, root, scratch)
        write_json(scratch / "meta.json", meta | {"key": key, "sha256": _hash_corpus(scratch, _tokenizer(meta))})
        try:
            scratch.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fill(config: DataConfig, root: Path, scratch: Path) -> dict[str, Any]:
    """Write train.bin and val.bin; return the facts of the corpus."""
    texts = sources.gather(config, root, scratch)
    if texts.val:
        ranges, split = [(path, 0, path.stat().st_size) for path in (texts.train, texts.val)], ""
    else:
        cut, found_by = text_tokens.split_documents(texts.train)
        ranges, split = [(texts.train, 0, cut), (texts.train, cut, texts.train.stat().st_size)], f"; split 90/10 at {found_by}"
    meta = {"name": config.name, "source": texts.about + split, **_write_tokens(config.tokenizer, ranges, scratch)}
    for name in ("floor", "floor_se"):  # the text's entropy is one; it is spread over as many tokens as there are
        value = getattr(texts, name)
        meta[name] = value if value is None else value * (texts.n_val_characters / meta["n_val"])
    for path in scratch.glob("*.txt"):
        path.unlink()
    return meta


def _write_tokens(named: str, ranges: list[tuple[Path, int, int]], scratch: Path) -> dict[str, Any]:
    """Encode the training and the validation byte range into `scratch`; the vocabulary is the training text's alone."""
    tokenizer = text_tokens.make_tokenizer(named, text_tokens.read_text(*ranges[0]))
    _check_fits(named, tokenizer, next(text_tokens.read_text(*ranges[0]), "")[:100_000])
    facts: dict[str, Any] = {"n_unknown": 0, "dtype": np.min_scalar_type(tokenizer.size - 1).name, "characters": tokenizer.characters}
    for name, place in zip(PARTS, ranges, strict=True):
        facts[f"n_{name}"] = 0
        with (scratch / f"{name}.bin").open("wb") as file:
            for tokens in text_tokens.read_ids(tokenizer, text_tokens.read_text(*place)):
                facts[f"n_{name}"] += len(tokens)
                facts["n_unknown"] += int(np.count_nonzero(tokens == tokenizer.unknown_id))
                tokens.tofile(file)
    n_train, n_val = facts["n_train"], facts["n_val"]
    if min(n_train, n_val) < 2:
        raise ValueError(f"{ranges[0][0]} is too short: {n_train} training and {n_val} validation tokens; give more text.")
    return facts | ({"tokenizer": tokenizer.json} if tokenizer.json else {})


def _check_fits(named: str, tokenizer: Tokenizer, text: str) -> None:
    """Raise ValueError where a tokenizer loses more of a text than a few strange characters."""
    ids = tokenizer.encode(text)
    unknown = sum(token == tokenizer.unknown_id for token in ids)
    back = tokenizer.decode(ids, marks=tokenizer.end_id is not None)
    if unknown > MOST_UNKNOWN * len(ids) or abs(len(back) - len(text)) > MOST_UNKNOWN * len(text) + 1:
        raise ValueError(
            f"data.tokenizer={named} does not fit the text: of its first {len(text):,} characters {unknown:,} tokens are unknown and "
            f"{len(back):,} characters come back; give another, or bpe:SIZE, which is learned from the text"
        )


# ---- arrays of token ids ----


def _arrays(config: DataConfig) -> Path | None:
    """The folder that holds train.bin and val.bin, where the data are such arrays."""
    folder = expanded(config.path, "data.path")
    if not config.path or not all(os.path.isfile(folder / f"{part}.bin") for part in PARTS):
        return None
    if not config.vocab_size:
        raise ValueError(f"data.path={folder} holds arrays of token ids; give the size of their vocabulary too: --data.vocab-size 50257")
    return folder


def _open_arrays(config: DataConfig, folder: Path) -> Corpus:
    """The arrays where they lie; with a tokenizer.json beside the command, generated texts can be read."""
    train, val = (_open_array(folder / f"{part}.bin", config.vocab_size) for part in PARTS)
    tokenizer = None if config.tokenizer == "char" else _file_tokenizer(config)
    if tokenizer and tokenizer.size > config.vocab_size:
        raise ValueError(
            f"data.tokenizer={config.tokenizer} has {tokenizer.size:,} tokens and data.vocab-size={config.vocab_size:,}; give its size"
        )
    source = f"your arrays of token ids in {folder.name}; licence: as you hold them"
    return Corpus("arrays", train, val, config.vocab_size, tokenizer, _hash(data_identity(config)), 0, None, None, source, folder)


def _open_array(path: Path, vocab_size: int) -> np.ndarray:
    """Token ids of nanoGPT's layout: uint16, or uint32 where the vocabulary needs it or every other 16 bits are empty."""
    size = path.stat().st_size
    tokens = np.memmap(path, dtype=np.uint16, mode="r", shape=(size // 2,))
    if size % 4 == 0 and (vocab_size > 1 << 16 or not tokens[1 : 1 << 20 : 2].any()):
        tokens = np.memmap(path, dtype=np.uint32, mode="r", shape=(size // 4,))
    largest = _largest_id(str(path), tokens.dtype.name, size, path.stat().st_mtime_ns)
    if largest >= vocab_size:
        raise ValueError(f"{path} holds the token id {largest:,}, outside of data.vocab-size={vocab_size:,}; give at least {largest + 1:,}")
    return tokens


@lru_cache(maxsize=64)
def _largest_id(path: str, dtype: str, size: int, mtime_ns: int) -> int:
    """The largest token id of a file, read once while its size and time stay."""
    tokens = np.memmap(path, dtype=dtype, mode="r", shape=(size // np.dtype(dtype).itemsize,))
    return max((int(tokens[start : start + (1 << 24)].max()) for start in range(0, len(tokens), 1 << 24)), default=0)
