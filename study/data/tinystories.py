"""Fetch TinyStories with the standard library: resumed, checked, and honest when there is no network.

Reads the Hugging Face dataset roneneldan/TinyStories (or the mirror in $HF_ENDPOINT) at one fixed revision; writes its two V2 files
below the cache. The text's licence is CDLA-Sharing-1.0; nothing of it is part of this project.

    train, val = tinystories(folder, train_bytes=100_000_000)
"""

import contextlib
import errno
import hashlib
import http.client
import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

REVISION = "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
LICENCE = "CDLA-Sharing-1.0"
DEFAULT_ENDPOINT = "https://huggingface.co"
REACH_S = 0.9  # longest wait for a first connection before we say that there is no network
SILENCE_S = 30.0  # longest silence during a transfer
ATTEMPTS = 4  # connections per file before giving up; each goes on where the last one broke off
BLOCK = 1 << 20
_DISK_ERRORS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO))
_STORY_END = b"<|endoftext|>"
Progress = Callable[[str, int, int], None]


class DownloadError(ValueError):
    """The text could not be fetched; the message names the ways on."""


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch: its name, its size in bytes, its SHA-256 (None where only a prefix is wanted)."""

    name: str
    n_bytes: int
    sha256: str | None


TRAIN = RemoteFile("TinyStoriesV2-GPT4-train.txt", 2_227_753_162, "6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443")
VAL = RemoteFile("TinyStoriesV2-GPT4-valid.txt", 22_502_601, "6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d")


def tinystories(
    folder: Path, train_bytes: int | None = None, progress: Progress | None = None, train: RemoteFile = TRAIN, val: RemoteFile = VAL
) -> tuple[Path, Path]:
    """Return the paths of the training and the validation text in `folder`, fetching what is missing.

    Args:
        folder: where the files are kept.
        train_bytes: use only about the first `train_bytes` bytes of the training text, cut after its last whole story; None = all.
        progress: called with (file name, bytes done, bytes in all); default a bar on a terminal's stderr.
        train, val: the files, other ones in tests.

    Raises:
        DownloadError: no network, wrong checksum, a server that breaks off, a bad `train_bytes`.
    """
    if train_bytes is not None and not 1000 <= train_bytes <= train.n_bytes:
        raise ValueError(f"data.train_bytes={train_bytes:,} must lie between 1,000 and the {train.n_bytes:,} bytes of the training text.")
    folder.mkdir(parents=True, exist_ok=True)
    report = progress or terminal_bar
    val_path = fetch(val, folder, report)
    if train_bytes is None:
        return fetch(train, folder, report), val_path
    whole = folder / train.name
    wanted = train if whole.exists() else RemoteFile(train.name, train_bytes, None)
    path = fetch(wanted, folder, report, keep_as=train.name if wanted is train else f"{train.name}.first-{train_bytes}")
    return _cut_at_story_end(path, train_bytes), val_path


def _cut_at_story_end(path: Path, n_bytes: int) -> Path:
    """Write the whole stories among the first `n_bytes` bytes of `path` to a file beside it."""
    with path.open("rb") as file:
        text = file.read(n_bytes)
    end = text.rfind(_STORY_END)
    if end < 0:
        raise ValueError(f"data.train_bytes={n_bytes:,} holds no whole story; ask for more.")
    target = path.with_name(f"{path.name.split('.first-')[0]}.stories-{n_bytes}")
    scratch = target.with_name(f".{target.name}-{os.getpid()}")
    scratch.write_bytes(text[: end + len(_STORY_END)])
    scratch.replace(target)
    return target


# ---- one file ----


def fetch(wanted: RemoteFile, folder: Path, progress: Progress, keep_as: str | None = None) -> Path:
    """Return the path of one whole, checked file in `folder`; go on with what an earlier attempt left in `.part`.

    A file put there by hand is checked and used as well.
    """
    path = folder / (keep_as or wanted.name)
    with _only_process(path.with_name(path.name + ".lock")):
        return _fetch_alone(wanted, path, progress)


@contextlib.contextmanager
def _only_process(lock: Path) -> Iterator[None]:
    """Wait until no other process on this machine fetches the same file; a process that dies frees its lock."""
    try:
        import fcntl
    except ImportError:  # Windows: two processes there must not fetch the same file at once
        yield
        return
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch_alone(wanted: RemoteFile, path: Path, progress: Progress) -> Path:
    mark = path.with_name(path.name + ".checked")
    if path.exists() and mark.exists() and path.stat().st_size == wanted.n_bytes:
        return path
    part = path.with_name(path.name + ".part")
    if path.exists():
        path.rename(part)
    if not part.exists() or part.stat().st_size != wanted.n_bytes:
        _transfer(wanted, part, progress)
    _check(wanted, part)
    mark.touch()
    part.replace(path)
    return path


def _check(wanted: RemoteFile, part: Path) -> None:
    """Compare a complete file with its published hash; set a wrong one aside."""
    if wanted.sha256 is None:
        return
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted.sha256:
        aside = part.with_name(wanted.name + ".wrong")
        part.replace(aside)
        raise DownloadError(
            f"{wanted.name} has SHA-256 {found[:16]}..., but {wanted.sha256[:16]}... was expected; "
            f"it was set aside as {aside}. Run again to fetch it anew, or fetch it elsewhere and put it at {part.with_name(wanted.name)}."
        )


def _transfer(wanted: RemoteFile, part: Path, progress: Progress) -> None:
    """Fill `part` up to the wanted size over up to ATTEMPTS connections."""
    address = f"{endpoint()}/datasets/roneneldan/TinyStories/resolve/{REVISION}/{wanted.name}"
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(min(0.2 * 2**attempt, 5.0))
        else:
            _probe(address, wanted, part)
        try:
            _receive(address, wanted, part, progress)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise DownloadError(_ways_on(wanted, part, f"{address} answered {error.code} {error.reason}")) from error
            reason = f"the server answered {error.code}"
        except (OSError, http.client.HTTPException) as error:  # includes URLError and timeouts
            if getattr(error, "errno", None) in _DISK_ERRORS or getattr(error, "filename", None):
                raise DownloadError(
                    f"{part} cannot be written ({error}); free some space or name another cache: SCALING_STUDY_CACHE=FOLDER."
                ) from error
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        have = part.stat().st_size if part.exists() else 0
        if have == wanted.n_bytes:
            return
        reason = reason or "the server broke off"
        if have > wanted.n_bytes:
            part.unlink()
            reason = f"the server sent more than the {wanted.n_bytes:,} bytes of this file"
    have = part.stat().st_size if part.exists() else 0
    raise DownloadError(
        _ways_on(wanted, part, f"{have:,} of {wanted.n_bytes:,} bytes arrived in {ATTEMPTS} attempts ({reason}); run again to go on there")
    )


def _receive(address: str, wanted: RemoteFile, part: Path, progress: Progress) -> None:
    """One connection: ask for what is missing and append it; a server without Range support starts over from byte 0."""
    have = part.stat().st_size if part.exists() else 0
    if have > wanted.n_bytes:  # not a beginning of this file
        part.unlink()
        have = 0
    headers = {"User-Agent": "scaling-study", "Range": f"bytes={have}-{wanted.n_bytes - 1}"}
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=SILENCE_S) as answer:
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if resumed else 0
        # Without Range support the server sends the whole file; when a prefix is wanted we stop reading there. A file with a
        # checksum is read to its end, so that a longer file shows as one.
        limit = wanted.n_bytes if wanted.sha256 is None else wanted.n_bytes + 1
        with part.open("r+b" if have else "wb") as file:
            file.seek(have)
            while have < limit and (block := answer.read(min(BLOCK, limit - have))):
                file.write(block)
                have += len(block)
                progress(wanted.name, have, wanted.n_bytes)


def endpoint() -> str:
    """The server's address: $HF_ENDPOINT, else Hugging Face."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


# ---- no network ----


def _probe(address: str, wanted: RemoteFile, part: Path) -> None:
    """Fail within REACH_S where the server cannot be reached: name look-up alone may otherwise hang for half a minute.

    The look-up cannot be given a time limit, so it runs in a thread that is left behind when it hangs.
    """
    parsed = urllib.parse.urlsplit(address)
    if parsed.scheme not in ("http", "https") or not parsed.hostname:
        raise DownloadError(f"HF_ENDPOINT={endpoint()} is not a web address; give one like {DEFAULT_ENDPOINT}.")
    proxy = urllib.request.getproxies().get(parsed.scheme)
    if proxy and not urllib.request.proxy_bypass(parsed.hostname):
        parsed = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    host, port = parsed.hostname or "", parsed.port or (80 if parsed.scheme == "http" else 443)
    outcome: list[str] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=REACH_S).close()
            outcome.append("")
        except OSError as error:
            outcome.append(error.strerror or str(error))

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(REACH_S)
    reason = outcome[0] if outcome else f"no answer within {REACH_S} s"
    if reason:
        raise DownloadError(_ways_on(wanted, part, f"{host} cannot be reached ({reason})"))


def _ways_on(wanted: RemoteFile, part: Path, reason: str) -> str:
    """An error text with the four ways to go on."""
    place = part.parent / wanted.name
    return (
        f"TinyStories was not fetched: {reason}. Four ways on:\n"
        f"  1. fetch {wanted.name} on another machine from {DEFAULT_ENDPOINT}/datasets/roneneldan/TinyStories and put it at {place}\n"
        "  2. name a mirror: HF_ENDPOINT=https://your-mirror\n"
        "  3. use a text of your own: --data.path FILE\n"
        "  4. use the embedded corpus, which needs no network: --data.name stories"
    )


_last_drawn: dict[str, float] = {}


def terminal_bar(name: str, done: int, total: int) -> None:
    """Draw a progress bar on stderr, at most five times a second; say nothing where stderr is not a terminal."""
    now = time.monotonic()
    if not sys.stderr.isatty() or (done < total and now - _last_drawn.get(name, 0.0) < 0.2):
        return
    _last_drawn[name] = now
    filled = round(30 * done / total)
    end = "\n" if done >= total else ""
    print(
        f"\r{name} [{'#' * filled}{'.' * (30 - filled)}] {done / 1e6:,.1f} of {total / 1e6:,.1f} MB", end=end, file=sys.stderr, flush=True
    )
