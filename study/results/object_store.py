"""Object stores as results folders: `--out s3://bucket/path` or `gs://bucket/path`, through pyarrow's file systems.

A store has no append, no rename and no locks, so a run works in a local staging folder below the cache and `study.results.store_sync`
keeps the store equal to it. Credentials come from where the cloud's own tools find them (environment, profile, instance role) and are
never written anywhere; the endpoint from AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL (S3) and STORAGE_EMULATOR_HOST (GCS).

    store = Store.at("s3://bucket/quick"); store.write("study.json", b"{}"); store.entries(); store.read("study.json")
"""

import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from study.files import T, replaced, retried

SCHEMES = ("s3", "gs")
PAUSES_S = (0.5, 2.0, 5.0)
"""Pauses before a failed request is tried again; longer outages are the mirror's business."""
CONNECT_S, REQUEST_S = 5.0, 30.0
"""Seconds until an unanswered connection, or a request, counts as failed."""


class Entry(NamedTuple):
    """What a listing tells of an object: enough to see that it was replaced."""

    size: int
    mtime_ns: int


def is_address(out: str) -> bool:
    """Whether --out names an object store rather than a folder."""
    return "://" in out


def check_address(address: str) -> None:
    """Refuse what cannot be a place in a store.

    Raises:
        ValueError: another scheme, no bucket, or a path that leaves its place.
    """
    scheme, _, rest = address.partition("://")
    parts = rest.rstrip("/").split("/")
    if scheme not in SCHEMES or not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}", parts[0]):
        raise ValueError(f"out={address} is not a place for results; give a folder, s3://BUCKET/PATH or gs://BUCKET/PATH")
    if any(part in ("", ".", "..") for part in parts[1:]) or re.search(r"[\x00-\x1f?#]", rest):
        raise ValueError(
            f"out={address} has a path that cannot be used; write plain names between single slashes, without '.', '..', '?' or '#'"
        )


def staging(address: str, cache: Path) -> Path:
    """The local folder in which runs of this address work: below the cache, one for each address."""
    plain = address.rstrip("/")
    return (
        cache / "stores" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', plain)[-60:].strip('.-')}-{hashlib.sha256(plain.encode()).hexdigest()[:10]}"
    )


@dataclass(frozen=True)
class Store:
    """One prefix of a bucket. Picklable, and without any secret: each process opens its own connection."""

    address: str
    endpoint: str = ""
    region: str = ""

    @classmethod
    def at(cls, address: str) -> "Store":
        """The store of an address, with the endpoint and region that this process's environment names."""
        names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if address.startswith("s3://") else ("STORAGE_EMULATOR_HOST",)
        endpoint = next(filter(None, map(os.environ.get, names)), "")
        return cls(address.rstrip("/"), endpoint, os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "")

    @cached_property
    def _filesystem(self) -> Any:
        from pyarrow import fs

        if self.address.startswith("gs://"):
            from datetime import timedelta

            scheme, _, host = self.endpoint.rpartition("://")
            where = {"endpoint_override": host, "scheme": scheme or "http", "anonymous": True} if host else {}
            return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=REQUEST_S), **where)
        region = self.region or (None if self.endpoint else fs.resolve_s3_region(self._root.partition("/")[0]))
        return fs.S3FileSystem(
            region=region,
            endpoint_override=self.endpoint or None,
            connect_timeout=CONNECT_S,
            request_timeout=REQUEST_S,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=2),
            allow_delayed_open=True,  # a small object in one request instead of three
        )

    @property
    def _root(self) -> str:
        return self.address.partition("://")[2]

    # ---- single requests; all raise OSError ----

    def read(self, name: str) -> bytes:
        """One object's bytes."""
        with self._filesystem.open_input_stream(f"{self._root}/{name}") as file:
            return bytes(file.read())

    def write(self, name: str, content: Any) -> Entry:
        """Put one object, whole or not at all (bytes or a pyarrow buffer); returns what a listing will say of it."""
        place = f"{self._root}/{name}"
        with self._filesystem.open_output_stream(place) as file:
            file.write(content)
        info = self._filesystem.get_file_info(place)
        return Entry(info.size or 0, info.mtime_ns or 0)

    def remove(self, name: str) -> None:
        """Delete one object; one that is gone already is fine."""
        with suppress(FileNotFoundError):
            self._filesystem.delete_file(f"{self._root}/{name}")

    def entries(self, below: str = "") -> dict[str, Entry]:
        """All objects below a prefix, by their name within this store."""
        from pyarrow import fs

        place = f"{self._root}/{below}".rstrip("/")
        found = self._filesystem.get_file_info(fs.FileSelector(place, recursive=True, allow_not_found=True))
        return {
            info.path[len(self._root) + 1 :]: Entry(info.size or 0, info.mtime_ns or 0) for info in found if info.type == fs.FileType.File
        }

    # ---- files ----

    def upload(self, local: Path, name: str) -> Entry:
        """Put a file; it is mapped, not read, so that its size costs no memory."""
        import pyarrow as pa

        if not local.stat().st_size:
            return self.write(name, b"")
        with pa.memory_map(str(local)) as file:
            return self.write(name, file.read_buffer())

    def download(self, name: str, local: Path) -> None:
        """Fetch an object into a file, which then is whole or absent."""
        content = self.read(name)
        with replaced(local) as file:
            file.write(content)


def patiently(what: str, request: Callable[[], T]) -> T:
    """Make a request again after short pauses.

    Raises:
        ValueError: it failed each time; the sentence starts with `what`.
    """
    try:
        return retried(request, PAUSES_S)
    except OSError as error:
        raise ValueError(
            f"{what} ({reason(error)}); check the address, the network and the credentials, then give the same command"
        ) from None


def reason(error: BaseException) -> str:
    """The telling part of a file system's message, in one short line."""
    text = " ".join(str(error).split())
    match = re.search(r"AWS Error (\w+).*?(?:: (.*?))?(?:; Details|\(Request|$)", text)
    return (f"{match[1].replace('_', ' ').lower()}: {match[2] or ''}".strip(": ") if match else text)[:200]


# ---- checkpoints of workers that do not see the staging folder ----


def put_checkpoints(store: Store, folder: Path, trial_ids: tuple[str, ...]) -> None:
    """Put a worker's own checkpoints below `checkpoints/` and drop older ones there: tensors first, so that a state.json means a whole one.

    Raises:
        OSError: the store cannot be written.
    """
    for trial_id in trial_ids:
        here = {path.name for path in (folder / trial_id).glob("step-*") if path.name[5:].isdigit()}
        there = {name.split("/")[2] for name in store.entries(f"checkpoints/{trial_id}") if name.endswith("/state.json")}
        for step in sorted(here - there):
            for part in ("state.safetensors", "state.json"):
                store.upload(folder / trial_id / step / part, f"checkpoints/{trial_id}/{step}/{part}")
        for step in sorted(there - here):
            for part in ("state.json", "state.safetensors"):
                store.remove(f"checkpoints/{trial_id}/{step}/{part}")


def get_checkpoints(store: Store, folder: Path, trial_ids: tuple[str, ...]) -> None:
    """Fetch the whole checkpoints of some trials that this machine lacks.

    Raises:
        OSError: the store cannot be read.
    """
    for trial_id in trial_ids:
        for name in store.entries(f"checkpoints/{trial_id}"):
            _, _, step, part = name.split("/")
            if part == "state.json" and not (folder / trial_id / step).exists():
                scratch = folder / trial_id / f".{step}.{os.getpid()}"
                for wanted in ("state.safetensors", "state.json"):
                    store.download(f"checkpoints/{trial_id}/{step}/{wanted}", scratch / wanted)
                os.replace(scratch, folder / trial_id / step)
