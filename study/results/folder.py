"""The results folder of a study: who may write it, what is done in it, what is missing.

Reads and writes files only; knows nothing of Ray.

    with locked(out): state = survey(out, trials, data_sha256)
"""

import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study import records
from study.spec import RECIPE_VERSION, Trial

FINAL = ("COMPLETED", "DIVERGED")
"""A trial with such a row is not run again: training is deterministic, so a diverged one would diverge again."""


# ---- who may write ----


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the results folder for this process; the lock goes with the process, however it ends.

    Raises:
        ValueError: another run holds it, or the folder cannot be written.
    """
    probe = out / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"results cannot be written to {out} ({error.strerror or error}); choose another folder with --out") from None
    with open(out / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise in_use(str(out), read_note(file.read())) from None
        except OSError:
            pass  # a file system without locks: the note below is all there is
        file.truncate(0)
        file.write(note())
        file.flush()
        yield


def note(**more: str) -> str:
    """What a lock says of the process that holds it, as JSON."""
    return json.dumps({**more, "pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")})


def read_note(text: str | bytes) -> dict[str, Any]:
    """What `note` wrote; {} where it is damaged."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def in_use(place: str, holder: dict[str, Any], hint: str = "") -> ValueError:
    """Why a run cannot have a place that another one holds."""
    who = "process {pid} on {host} since {since}".format(**holder) if {"pid", "host", "since"} <= holder.keys() else "of unknown origin"
    return ValueError(f"{place} is in use by another run ({who}); wait for it, end it, or choose another --out{hint}")


# ---- what is there ----


@dataclass(frozen=True)
class Survey:
    """What a results folder holds of a study's trials."""

    done: dict[str, dict[str, Any]]
    """rows of trials that need not run, by trial_id"""
    missing: tuple[Trial, ...]
    """trials to run, in the study's order"""
    failed_before: int
    """missing trials that ended FAILED or INTERRUPTED last time"""
    stale: int
    """rows of an older recipe or of other data: kept, never mixed in"""
    foreign: int
    """rows of trials that the study, as it is now, does not hold"""
    notes: tuple[str, ...] = ()
    """damaged files, set aside"""
    again: frozenset[str] = frozenset()
    """missing trials whose completed row stays until it is replaced: they run again for their times only"""


def survey(out: Path, trials: Sequence[Trial], data_sha256: str, set_aside: bool = True) -> Survey:
    """Compare a results folder with the trials of a study.

    Args:
        set_aside: rename damaged files, so that their trials run again; else only name them.

    Raises:
        OSError: a file cannot be opened or read.
        records.RecordError: a table of a newer version of this program.
    """
    notes = set_aside_damaged(out) if set_aside else []
    rows = {row["trial_id"]: row for row in records.read(out, "trials", None if set_aside else notes).to_pylist()}
    wanted = {trial.trial_id: trial for trial in trials}

    def is_stale(row: dict[str, Any]) -> bool:
        return row["recipe_version"] != RECIPE_VERSION or row["data_sha256"] != data_sha256

    def is_final(row: dict[str, Any]) -> bool:
        return row["status"] in FINAL or (row["status"] == "STOPPED" and wanted[row["trial_id"]].may_stop)

    done = {i: row for i, row in rows.items() if i in wanted and is_final(row) and not is_stale(row)}
    return Survey(
        done=done,
        missing=tuple(trial for trial in trials if trial.trial_id not in done),
        failed_before=sum(row["status"] in ("FAILED", "INTERRUPTED") for i, row in rows.items() if i in wanted),
        stale=sum(is_stale(row) for row in rows.values()),
        foreign=sum(i not in wanted and not is_stale(row) for i, row in rows.items()),
        notes=tuple(notes),
    )


def describe_anew(out: Path, trials: Sequence[Trial], study: str) -> None:
    """Bring sweeps and lr_status of recorded rows up to date.

    A row tells why its trial was trained as it was known then: another sweep may hold it by now, or a search may have chosen it.
    """
    wanted = {trial.trial_id: trial for trial in trials}
    for row in records.read(out, "trials", problems=[]).to_pylist():
        trial = wanted.get(row["trial_id"])
        if trial and (tuple(row["sweeps"] or ()), row["lr_status"]) != (trial.sweeps, trial.lr_status):
            told = row | {"sweeps": list(trial.sweeps), "lr_status": trial.lr_status}
            records.write(out / "trials" / f"{trial.trial_id}.parquet", "trials", [told], study)


def set_aside_damaged(out: Path) -> list[str]:
    """Rename result files that were read and are no whole Parquet files to *.bad, so that their trials run again; a sentence for each.

    Raises:
        OSError: a file cannot be opened or read, which says nothing about what it holds; nothing is renamed.
    """
    damaged = []
    for table in records.PER_TRIAL:
        with suppress(records.RecordError):
            records.read(out, table)
            continue
        for path in records.files(out, table):
            try:
                records.read_file(path, table)
            except records.DamagedError:
                damaged.append(path)
            except records.RecordError:
                continue
    notes = []
    for path in damaged:
        aside = path.rename(path.with_name(f"{path.name}.bad-{time.time_ns()}"))
        notes.append(f"{path.relative_to(out)} is damaged; set aside as {aside.name}")
    return notes
