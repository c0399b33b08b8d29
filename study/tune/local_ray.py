"""A Ray of this study's own on this machine: what it needs is looked at first, and whatever goes wrong is said in one sentence.

with started(): ...
"""

import contextlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray

from study.plan import machine
from study.tune import ray_internals
from study.tune.environment import temporary_folder, why_not

OBJECT_STORE_BYTES = 100 * 2**20
"""On one machine tokens are memory-mapped files, so Ray's store holds small things only; a /dev/shm of 64 MB (Docker) is no obstacle."""
LEAST_ROOM_BYTES = 16 * 2**20
"""A session's logs and sockets take about 1 MiB at first."""
THREADS, THREADS_EACH = 200, 40
"""Processes and threads of Ray's own on a machine, and of one worker (counted on Linux with Ray 2.60 and two processors: 175 and 26)."""
ATTEMPTS = 3
"""A busy machine's second start is faster: what the first one read is in memory."""
SHARED_MEMORY = Path("/dev/shm")


@contextlib.contextmanager
def started(cpus: int | None = None) -> Iterator[None]:
    """Ray with as many processors as this process may use, until the body ends.

    Args:
        cpus: another number of processors.

    Raises:
        ValueError: it cannot start; why, and what to do.
    """
    check()
    options: dict[str, Any] = {
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "num_cpus": cpus or machine.processors(),
    }
    if SHARED_MEMORY.exists() and not os.access(SHARED_MEMORY, os.W_OK):
        options["_plasma_directory"] = str(temporary_folder())
    _start(options)
    try:
        yield
    finally:
        ray.shutdown()


def _start(options: dict[str, Any]) -> None:
    """Start, again where the machine was too slow for Ray's own patience; Ray raises what it likes, plain Exception too."""
    for attempt in range(ATTEMPTS):
        begun = list[Any]()
        with quiet() as said:
            try:
                with ray_internals.watched_start() as begun:
                    ray.init(address="local", log_to_driver=False, logging_level=logging.ERROR, **options)
                return
            except Exception as error:
                ray.shutdown()
                logs = ray_internals.logs_of(begun)
                reason = ray_internals.last_words(logs) or str(error) or said()
                if attempt == ATTEMPTS - 1 or not is_too_slow(reason):
                    raise ValueError(explain(reason, logs)) from error


def check() -> None:
    """Look at what Ray needs of this machine: without it, it waits half a minute and does not say why, or ends this very process.

    Raises:
        ValueError: something is missing; what, and what to do.
    """
    folder = temporary_folder()
    if reason := why_not(folder):
        raise ValueError(f"Ray cannot keep its session in {folder}: {reason}; name another folder with RAY_TMPDIR")
    with contextlib.suppress(OSError):  # Ray makes the folder, or says why not
        if shutil.disk_usage(folder).free < LEAST_ROOM_BYTES:
            raise ValueError(no_room())
    left, needed = machine.processes_left(), THREADS + THREADS_EACH * machine.processors()
    if left is not None and left < needed:
        raise ValueError(
            f"this account may start {max(0, left)} more processes and threads and Ray takes about {needed}; "
            "raise the limit (ulimit -u, or pids.max of the control group) or end other programs"
        )


def no_room(out: Path | None = None) -> str:
    """What a person is told where a disk that Ray writes to is full: that of its temporary folder, or that of the results `out`."""
    folder = temporary_folder()
    free, left = (shutil.disk_usage(place).free >> 20 for place in (folder, out or folder))
    if left < free:
        return f"the disk of {out} has {left} MiB left; free some space there or name another folder with --out"
    return f"the disk of Ray's temporary folder {folder} has {free} MiB left; free some space there or name another folder with RAY_TMPDIR"


def is_too_slow(reason: str) -> bool:
    """Whether Ray gave up because its processes were not ready in time."""
    return "timed out" in reason.lower()


def explain(reason: str, logs: Path | None) -> str:
    """What a person is told where the start failed although nothing was missing."""
    if is_too_slow(reason):
        busy = f"its load is {os.getloadavg()[0]:.0f} on {machine.processors()} processors"
        return f"Ray cannot start on this machine: its processes were not ready in time ({busy}); try again when it has less to do"
    return f"Ray cannot start on this machine: {first_sentence(reason)}" + (f"; its logs are in {logs}" if logs else "")


def first_sentence(text: str) -> str:
    """What an error says, cut to one sentence."""
    return " ".join(text.split()).split(". ")[0][:300]


@contextlib.contextmanager
def quiet() -> Iterator[Callable[[], str]]:
    """Keep back what this process's libraries write to the standard error; yields a function that returns its last line."""
    with tempfile.TemporaryFile() as held:
        before = os.dup(2)
        sys.stderr.flush()
        os.dup2(held.fileno(), 2)

        def last_line() -> str:
            held.seek(0)
            lines = held.read().decode(errors="replace").strip().splitlines()
            return lines[-1] if lines else ""

        try:
            yield last_line
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
