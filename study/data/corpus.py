"""Data: a text becomes a corpus of character tokens, prepared once, cached on disk, memory-mapped by every trial.

Three sources: `stories` (our own generator, with a known entropy), `tinystories` (downloaded), `text` (a file of yours).
Reads the source; writes `<cache>/corpora/<key>/{train.bin, val.bin, meta.json}`. No torch, no ray, no pandas.

    corpus = prepare(DataConfig(name="stories"))
    x, y = window(corpus.train, seed=0, step=7, batch_size=8, block_size=64)
"""

import hashlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from study.data import tinystories as download
from study.data.tokens import END_OF_TEXT, check_text_file, codes_of, count_vocabulary, lookup_table, read_codes, split_documents
from study.stories import generator as stories

if TYPE_CHECKING:
    from study.spec import DataConfig

CACHE_VERSION = 1  # raise it when the same source would give different tokens
VERIFY_BYTES = 1 << 28  # caches up to this size are hashed whenever they are opened; above it only their sizes are checked
ABANDONED_S = 6 * 3600.0  # a scratch folder that old was left behind
Progress = Callable[[str, int, int], None]  # (what, bytes done, bytes in all)


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus; its tokens stay on disk until they are touched."""

    name: str
    train: np.ndarray  # (n_train,) uint8, or uint16 above 256 ids
    val: np.ndarray  # (n_val,) same type
    characters: tuple[str, ...]  # index = token id; "<|endoftext|>" is 0 and "<unk>" is 1
    sha256: str  # of vocabulary and tokens: the identity of the data
    n_unknown: int  # validation characters that the training text never shows
    floor: float | None  # nats per token of the whole validation split: what a model that knew the source would score; None = unknown
    floor_se: float | None  # its standard error over stories
    source: str  # where the text is from, its licence, and how it was split
    path: Path  # the cache folder

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return len(self.characters)

    def encode(self, text: str) -> np.ndarray:
        """Token ids of a string; characters outside the vocabulary become the unknown id."""
        return lookup_table(self.characters)[codes_of(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The string of some token ids."""
        return "".join(self.characters[int(i)] for i in ids)


# ---- identity ----


def data_identity(config: "DataConfig") -> dict[str, Any]:
    """Canonical facts that fix the data before they are prepared; they enter the trial's id.

    Args:
        config: the data part of a study.

    Returns:
        JSON-ready dict. A text file is known by its content, so moving or renaming it changes nothing.
    """
    name = "text" if config.path else config.name
    if name == "stories":
        return {"name": name, "generator": stories.VERSION, "train_chars": config.train_chars, "seed": config.seed}
    if name == "tinystories":
        return {"name": name, "revision": download.REVISION, "train_bytes": config.train_bytes or None}
    if name == "text":
        if not config.path:
            raise ValueError("data.name=text needs a file; give one with --data.path FILE.")
        path = Path(config.path).expanduser()
        check_text_file(path)
        stat = path.stat()
        return {"name": name, "sha256": _file_sha256(str(path.resolve()), stat.st_size, stat.st_mtime_ns)}
    raise ValueError(f"data.name={name!r} is not known; choose stories, tinystories or text.")


def data_key(config: "DataConfig") -> str:
    """16 hex digits of `data_identity`: the word for the data in a trial's identity."""
    return hashlib.sha256(json.dumps(data_identity(config), sort_keys=True).encode()).hexdigest()[:16]


@lru_cache(maxsize=64)
def _file_sha256(path: str, size: int, mtime_ns: int) -> str:
    """Hash of a file's content; size and time are there to notice a changed file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- preparing ----


def prepare(config: "DataConfig", cache_dir: Path | None = None, progress: Progress | None = None) -> Corpus:
    """Return the corpus that `config` names, from the cache or made now.

    Two processes may prepare the same corpus at once: each writes a folder of its own and the first to rename it wins.

    Args:
        config: the data part of a study.
        cache_dir: where to keep it; default $SCALING_STUDY_CACHE, else ~/.cache/scaling-study.
        progress: called with (what, bytes done, bytes in all) during downloads; default a bar on a terminal's stderr.

    Raises:
        ValueError: the text cannot be used, with one sentence saying why.
        download.DownloadError: TinyStories could not be fetched.
    """
    root = cache_dir or default_cache_dir()
    found = find(config, root)
    if found is None:
        key, folder = _place(config, root)
        try:
            _make(config, root, folder, key, progress)
        except OSError as error:
            raise ValueError(
                f"the corpus cannot be written to {root} ({error}); name another folder: SCALING_STUDY_CACHE=FOLDER."
            ) from error
        found = find(config, root)
    if found is None:
        raise ValueError(f"the corpus in {root} was changed while it was being written; run again or name another cache.")
    return found


def find(config: "DataConfig", cache_dir: Path | None = None) -> Corpus | None:
    """The corpus if the cache has it, else None: nothing is made and nothing downloaded."""
    key, folder = _place(config, cache_dir or default_cache_dir())
    meta = _read_meta(folder, key)
    return None if meta is None else _open(folder, meta)


def _place(config: "DataConfig", root: Path) -> tuple[str, Path]:
    """The key of a corpus in the cache and its folder."""
    key = hashlib.sha256(json.dumps({**data_identity(config), "cache": CACHE_VERSION}, sort_keys=True).encode()).hexdigest()
    return key, root / "corpora" / key[:20]


def default_cache_dir() -> Path:
    """The cache folder: $SCALING_STUDY_CACHE, else ~/.cache/scaling-study."""
    return Path(os.environ.get("SCALING_STUDY_CACHE") or Path.home() / ".cache" / "scaling-study")


def _read_meta(folder: Path, key: str) -> dict[str, Any] | None:
    """Facts of a cached corpus, or None where there is none; a damaged or foreign folder is set aside first."""
    if not folder.exists():
        return None
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        _check_cache(folder, meta, key)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        aside = folder.with_name(f"{folder.name}.set-aside-{time.time_ns()}")
        try:
            folder.rename(aside)
        except FileNotFoundError:  # another process found the damage first
            return None
        print(f"the cached corpus {folder.name} is damaged ({error}); set aside as {aside.name} and made anew.", file=sys.stderr)
        return None
    return meta


def _check_cache(folder: Path, meta: dict[str, Any], key: str) -> None:
    if meta["key"] != key:
        raise ValueError("it belongs to other data")
    width = np.dtype(meta["dtype"]).itemsize
    for part in ("train", "val"):
        if (folder / f"{part}.bin").stat().st_size != meta[f"n_{part}"] * width:
            raise ValueError(f"{part}.bin has the wrong size")
    if (meta["n_train"] + meta["n_val"]) * width <= VERIFY_BYTES and _hash_corpus(folder, meta["characters"]) != meta["sha256"]:
        raise ValueError("its tokens do not match their hash")


def _hash_corpus(folder: Path, characters: Iterable[str]) -> str:
    """SHA-256 of vocabulary, training tokens and validation tokens."""
    digest = hashlib.sha256(json.dumps(list(characters)).encode())
    for part in ("train", "val"):
        with (folder / f"{part}.bin").open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _open(folder: Path, meta: dict[str, Any]) -> Corpus:
    train, val = (np.memmap(folder / f"{part}.bin", dtype=meta["dtype"], mode="r") for part in ("train", "val"))
    facts = {name: meta[name] for name in ("name", "sha256", "n_unknown", "floor", "floor_se", "source")}
    return Corpus(train=train, val=val, characters=tuple(meta["characters"]), path=folder, **facts)


def _make(config: "DataConfig", root: Path, folder: Path, key: str, progress: Progress | None) -> None:
    """Write a corpus beside its place and rename it there; whoever comes second throws his copy away."""
    scratch = folder.with_name(f".{folder.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    scratch.mkdir(parents=True)
    for left in folder.parent.glob(f".{folder.name}-*"):  # by a process that was killed
        if time.time() - left.stat().st_mtime > ABANDONED_S:
            shutil.rmtree(left, ignore_errors=True)
    try:
        meta = _fill(config, root, scratch, progress)
        meta |= {"key": key, "sha256": _hash_corpus(scratch, meta["characters"])}
        with (scratch / "meta.json").open("w", encoding="utf-8") as file:
            json.dump(meta, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        try:
            scratch.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fill(config: "DataConfig", root: Path, scratch: Path, progress: Progress | None) -> dict[str, Any]:
    """Write train.bin and val.bin; return the facts of the corpus."""
    identity = data_identity(config)
    name = identity["name"]
    floor: dict[str, float | None] = {"floor": None, "floor_se": None}
    if name == "stories":
        train, val, floor["floor"], floor["floor_se"] = _write_stories(config, scratch)
        ranges = [(train, 0, train.stat().st_size), (val, 0, val.stat().st_size)]
        source = (
            f"generated stories, version {stories.VERSION}, seed {config.seed}; no licence needed; validation from its own random stream"
        )
    elif name == "tinystories":
        train, val = download.tinystories(root / "tinystories", config.train_bytes or None, progress)
        ranges = [(train, 0, train.stat().st_size), (val, 0, val.stat().st_size)]
        source = (
            f"TinyStoriesV2-GPT4 (Eldan and Li 2023), licence {download.LICENCE}, revision {download.REVISION[:8]}; the published split"
        )
    else:
        path = Path(str(config.path)).expanduser()
        split = split_documents(path)
        ranges = [(path, *split.train), (path, *split.val)]
        source = f"your text {path.name}; licence: as you hold it; split 90/10 at {split.boundary}"
    return {"name": name, "source": source, **floor, **_write_tokens(ranges, scratch)}


def _write_stories(config: "DataConfig", scratch: Path) -> tuple[Path, Path, float, float]:
    """Generate the story corpus as two text files in `scratch`; return them with the floor and its standard error."""
    made = stories.build(config.train_chars, config.seed)
    paths = scratch / "train.txt", scratch / "val.txt"
    for path, part in zip(paths, (made.train, made.val), strict=True):
        path.write_text("".join(story + END_OF_TEXT for story in part), encoding="utf-8", newline="\n")
    return *paths, made.floor, made.floor_se


def _write_tokens(ranges: list[tuple[Path, int, int]], scratch: Path) -> dict[str, Any]:
    """Encode the training and the validation byte range into `scratch`; the vocabulary is the training text's alone."""
    characters = count_vocabulary(read_codes(*ranges[0]))
    table = lookup_table(characters)
    counts, n_unknown = [], 0
    for part, place in zip(("train", "val"), ranges, strict=True):
        n = 0
        with (scratch / f"{part}.bin").open("wb") as file:
            for codes in read_codes(*place):
                tokens = table[codes]
                n += len(tokens)
                n_unknown += int(np.count_nonzero(tokens == 1))
                tokens.tofile(file)
        counts.append(n)
    for path in scratch.glob("*.txt"):
        path.unlink()
    if min(counts) < 2:
        raise ValueError(f"{ranges[0][0]} is too short: {counts[0]} training and {counts[1]} validation characters; give more text.")
    return {"n_train": counts[0], "n_val": counts[1], "n_unknown": n_unknown, "dtype": table.dtype.name, "characters": characters}


# ---- batches ----


def first_tokens(tokens: np.ndarray, unique_tokens: int) -> np.ndarray:
    """The first `unique_tokens` tokens of a split, for studies of repetition; 0 means all."""
    if not 0 <= unique_tokens <= len(tokens):
        raise ValueError(f"unique_tokens={unique_tokens:,} must be 0 (all) or at most the {len(tokens):,} training tokens there are.")
    return tokens[:unique_tokens] if unique_tokens else tokens


def check_lengths(corpus: Corpus, block_size: int, unique_tokens: int) -> None:
    """Raise ValueError where a split has no whole window, or the training text fewer tokens than are to be repeated."""
    for tokens in (first_tokens(corpus.train, unique_tokens), corpus.val):
        _count_starts(tokens, block_size)


def window(tokens: np.ndarray, seed: int, step: int, batch_size: int, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """One training batch, a pure function of (seed, step): the same on every machine, whatever was drawn before.

    The starts come from the counter-based generator Philox (Salmon et al. 2011) keyed by (seed, step), read as raw 64-bit words,
    because the higher-level methods of NumPy's generators may change between its versions.

    Args:
        tokens: (n,) one split of a corpus.
        seed: the trial's seed, not negative.
        step: the optimizer step, not negative.
        batch_size: B, windows in the batch.
        block_size: T, characters in a window.

    Returns:
        (B, T) int64 inputs and (B, T) int64 targets, the inputs moved on by one character.
    """
    return _cut(tokens, window_starts(tokens, seed, step, batch_size, block_size), block_size)


def window_starts(tokens: np.ndarray, seed: int, step: int, batch_size: int, block_size: int) -> np.ndarray:
    """Where the windows of a training batch begin, (B,) int64: all that is random about `window`, whose arguments these are."""
    n_starts = _count_starts(tokens, block_size)
    raw = np.random.Philox(key=np.array([seed, step], dtype=np.uint64)).random_raw(batch_size)
    starts: np.ndarray = ((raw >> np.uint64(11)) * 2.0**-53 * n_starts).astype(np.int64)  # 53 random bits to [0, n_starts)
    return starts


def evaluation_windows(tokens: np.ndarray, n_windows: int, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The fixed windows on which every trial is evaluated: evenly spaced over the split, never overlapping.

    Returns:
        (n, T) int64 inputs and targets, n = `n_windows` or, in a short split, as many as fit side by side.
    """
    n_starts = _count_starts(tokens, block_size)
    n = min(n_windows, (len(tokens) - 1) // block_size)
    if n < 1:
        raise ValueError(f"evaluation needs at least one window; n_windows={n_windows} was given.")
    starts = np.arange(n, dtype=np.int64) * (n_starts - 1) // max(n - 1, 1)
    return _cut(tokens, starts, block_size)


def eval_sha256(x: np.ndarray, y: np.ndarray) -> str:
    """Hash of evaluation windows: two losses are comparable where it is equal."""
    return hashlib.sha256(np.stack([x, y]).astype("<i8").tobytes()).hexdigest()


def _count_starts(tokens: np.ndarray, block_size: int) -> int:
    n_starts = len(tokens) - block_size
    if n_starts < 1:
        raise ValueError(
            f"the text is too short for block_size={block_size}: a split has {len(tokens):,} characters and needs {block_size + 1:,}; "
            "give more text or a smaller block_size."
        )
    return n_starts


def _cut(tokens: np.ndarray, starts: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    windows = np.asarray(tokens)[starts[:, None] + np.arange(block_size + 1)].astype(np.int64)  # (B, T + 1)
    return windows[:, :-1], windows[:, 1:]
