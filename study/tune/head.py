"""Ends a run in one sentence when Ray's head process is gone: Ray itself would end the driver from inside, with a line of its own.

Imports nothing of Ray; knocks at the head's port once a second.

    with watched(ray.get_runtime_context().gcs_address): ...
"""

import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Seconds until Ray gives up on its head, 60 where nothing is set."""
FAILURES = 3
"""Knocks in a row that must fail."""
AHEAD_S = 2.0
"""We speak so long before Ray does."""


@contextmanager
def watched(address: str) -> Iterator[None]:
    """Watch a head (HOST:PORT) from a thread of its own for as long as the body runs."""
    ended = threading.Event()
    patience_s = max(1.0, float(os.environ.get(RECONNECT, "60")) - AHEAD_S)
    thread = threading.Thread(target=_watch, args=(address, patience_s, ended), name="head", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(address: str, patience_s: float, ended: threading.Event) -> None:
    host, _, port = address.rpartition(":")
    failed = list[float]()
    while not ended.wait(1.0):
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
            failed.clear()
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno in (errno.EMFILE, errno.ENFILE):
                continue  # says something about us, nothing about the head
            failed.append(time.monotonic())  # from the first failure on: a driver that was itself stopped for a while knocks again
            if len(failed) >= FAILURES and failed[-1] - failed[0] > patience_s - 1 and not ended.is_set():
                _leave(address)


def _leave(address: str) -> None:
    """End this process at once: tables and checkpoints are written whole or not at all, and the main thread may wait for Ray for ever."""
    if sys.stdout.isatty():
        os.write(1, b"\x1b[?25h")  # the live table hides the cursor
    said = f"Ray's head at {address} is gone; what is done is kept, and the same command continues"
    os.write(2, f"\nstudy.run: {said}\n".encode())
    os._exit(1)
