"""Files of a data set on the Hugging Face hub, through the hub's own library: its cache, mirrors, token and offline mode hold here too.

Imported where a text comes from there, and only then: the library takes a second to load.

    revision, files = listing("roneneldan/TinyStories", "", cache); path = fetch("roneneldan/TinyStories", revision, files[0], scratch)
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, get_session, hf_hub_download, hf_hub_url
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from study.files import read_json, write_json

PATIENCE_S = 5.0
"""Longest wait for the hub's first answer."""


def listing(dataset: str, revision: str, cache: Path) -> tuple[str, list[str]]:
    """The commit and the files of a data set: as `cache` has noted them at their first use, so that a study keeps its text, else as of now.

    Args:
        revision: commit, branch or tag; "" is the newest.

    Raises:
        ValueError: the hub cannot be asked.
    """
    note = cache / "hub" / f"{dataset.replace('/', '--')}@{revision or 'newest'}.json"
    known = read_json(note)
    if not known:
        with _said_in_a_sentence(dataset, revision):
            about = HfApi(endpoint=_endpoint()).dataset_info(dataset, revision=revision or None, timeout=PATIENCE_S)
        known = {"revision": str(about.sha), "files": sorted(file.rfilename for file in about.siblings or ())}
        write_json(note, known)
    return known["revision"], known["files"]


def fetch(dataset: str, revision: str, file: str, scratch: Path, first_bytes: int = 0) -> Path:
    """The path of a file, from the hub's cache or fetched now.

    Args:
        first_bytes: only so many are wanted: where the cache lacks the file, no more are fetched, into `scratch`; 0 is all.

    Raises:
        ValueError: it cannot be fetched; one sentence names the ways on.
    """
    how: dict[str, Any] = {"repo_type": "dataset", "revision": revision, "endpoint": _endpoint()}
    with _said_in_a_sentence(dataset, revision):
        if not first_bytes:
            return Path(hf_hub_download(dataset, file, etag_timeout=PATIENCE_S, **how))
        try:
            return Path(hf_hub_download(dataset, file, local_files_only=True, **how))
        except LocalEntryNotFoundError:
            return _fetch_beginning(hf_hub_url(dataset, file, **how), first_bytes, scratch / file.rpartition("/")[2])


def _fetch_beginning(address: str, n_bytes: int, target: Path) -> Path:
    headers = {**build_hf_headers(), "Range": f"bytes=0-{n_bytes - 1}"}
    with get_session().stream("GET", address, headers=headers, follow_redirects=True) as answer, target.open("wb") as out:
        hf_raise_for_status(answer)
        for block in answer.iter_bytes():
            out.write(block[: n_bytes - out.tell()])
            if out.tell() >= n_bytes:  # a server that knows no ranges sends all of it
                break
    return target


def _endpoint() -> str | None:
    """A mirror as the environment names it now: the library reads it when it is imported."""
    return os.environ.get("HF_ENDPOINT") or None


@contextmanager
def _said_in_a_sentence(dataset: str, revision: str) -> Iterator[None]:
    try:
        yield
    except (httpx2.HTTPError, OSError, ValueError) as error:
        deepest: BaseException = error
        while deepest.__cause__ is not None:
            deepest = deepest.__cause__
        why = (str(deepest).strip().splitlines() or [type(deepest).__name__])[0].rstrip(".")[:200]
        elsewhere = f"hf download --repo-type dataset {dataset}{f' --revision {revision}' if revision else ''}"
        raise ValueError(
            f"{dataset} could not be fetched from the Hugging Face hub ({why}): name a mirror with HF_ENDPOINT=ADDRESS, give HF_TOKEN="
            f"TOKEN where the data set asks for one, run `{elsewhere}` on another machine and copy its cache here, or use your own text "
            "(--data.path FILE) or the embedded one (--data.name stories)"
        ) from error
