"""Keeps an object store equal to a local folder while a run writes it, and fetches what other machines put there.

The store is the truth between runs: at the start newer objects come here, files that vanished there go here too, and what an earlier
run could not bring up goes there. `.mirror.json` remembers what was equal last. An object `.lock.json`, renewed while a run lives, keeps
a second run out.

    with held("s3://bucket/quick", folder) as mirror: ...; mirror.problem   # "" while all is well
"""

import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from study import records
from study.files import read_json, write_json
from study.results.folder import in_use, locked, note, read_note
from study.results.object_store import Entry, Store, is_address, patiently, reason

MEMORY = ".mirror.json"
LOCK = ".lock.json"
POLL_S = 3.0
"""Pause between two looks at the folder."""
BOARD_S = 60.0
"""Event files grow all the time and are put again whole: this seldom."""
BEAT_S, STALE_S = 40.0, 180.0
"""A living run renews its lock so often; an older lock's run has died or lost its network. By the store's clock, never a machine's."""
PATIENCE_S = 600.0
"""A run goes on for so long without its store; then it stops, to be continued."""
LAST_PATIENCE_S = 60.0
LONGEST_PAUSE_S = 30.0
CONNECTIONS = 8


@contextmanager
def held(out: str, folder: Path) -> "Iterator[Mirror | None]":
    """Hold the results of `--out` for this run: the folder itself and, where `out` is an address, the store that it mirrors: it is fetched,
    follows the folder, and gets the last changes at the end.

    Raises:
        ValueError: another run holds them, they cannot be read or written, or a store lacks the last changes at the end.
    """
    with locked(folder):
        if not is_address(out):
            yield None
            return
        mirror = Mirror(Store.at(out), folder)
        mirror.acquire()
        try:
            mirror.pull()
            mirror.follow()
            yield mirror
        except BaseException:
            if problem := mirror.finish():
                print(f"study.run: {problem}", file=sys.stderr, flush=True)
            raise
        if problem := mirror.finish():
            raise ValueError(problem)


def fetch(address: str, folder: Path) -> None:
    """Bring a store's objects into the folder, for reading only.

    Raises:
        ValueError: it cannot be reached.
    """
    Mirror(Store.at(address), folder).pull()


class Mirror:
    """One folder and its store. `pull` and `push` may raise OSError; `follow` pushes from a thread and keeps trying."""

    def __init__(self, store: Store, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.store, self.folder = store, folder
        self.token = uuid.uuid4().hex
        self.problem = ""
        """why the run must stop, or "" """
        self.notes: list[str] = []
        """sentences for a person; whoever shows them takes them out"""
        self.equal = {name: (Entry(*here), Entry(*there)) for name, (here, there) in read_json(folder / MEMORY).items()}
        """name -> (local file, object) when the two were equal last"""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._beat_at = self._board_at = 0.0

    # ---- the lock ----

    def acquire(self) -> None:
        """Take the store for this run.

        Raises:
            ValueError: it cannot be written, or another run holds it.
        """
        place = self.store.address
        probe = f".probe-{self.token[:8]}"
        now = patiently(f"results cannot be written to {place}", lambda: self.store.write(probe, b"x"))
        found = patiently(f"{place} cannot be read", self.store.entries)
        self.store.remove(probe)
        if LOCK in found and (now.mtime_ns - found[LOCK].mtime_ns) / 1e9 < STALE_S and not self._is_dead(holder := self._holder()):
            raise self._in_use(holder)
        self._write_lock()
        time.sleep(0.5)  # of two that start together the one that wrote last stays
        if (holder := self._holder()).get("token") != self.token:
            raise self._in_use(holder)

    def _write_lock(self) -> None:
        self.store.write(LOCK, note(token=self.token).encode())
        self._beat_at = time.monotonic()

    def _holder(self) -> dict[str, Any]:
        try:
            return read_note(self.store.read(LOCK))
        except FileNotFoundError:
            return {}

    def _lost(self) -> str:
        """What to say where another run has taken the store meanwhile (this machine slept, say), or ""."""
        holder = self._holder()
        return "" if holder.get("token") in (self.token, None) else str(self._in_use(holder))

    def _in_use(self, holder: dict[str, Any]) -> ValueError:
        return in_use(self.store.address, holder, f" (a run that died is taken for dead after {STALE_S / 60:.3g} minutes)")

    def _is_dead(self, holder: dict[str, Any]) -> bool:
        """Whether the holder was a process of this machine that has ended."""
        if holder.get("host") != socket.gethostname():
            return not holder
        try:
            os.kill(int(holder["pid"]), 0)
        except (OSError, KeyError, ValueError, TypeError) as error:
            return not isinstance(error, PermissionError)
        return False

    # ---- from the store ----

    def pull(self) -> None:
        """Make the folder what the store holds, but for files that changed here since they were equal.

        Raises:
            ValueError: the store cannot be read.
        """
        there = {name: e for name, e in patiently(f"{self.store.address} cannot be read", self.store.entries).items() if _is_kept(name)}
        here = self._files()
        wanted = []
        for name, entry in there.items():
            known = self.equal.get(name)
            dropped_here = name.startswith("checkpoints/") and known is not None and name not in here
            torn = name.startswith("checkpoints/") and f"{name.rpartition('/')[0]}/state.json" not in there
            if not torn and not dropped_here and (known is None or known[1] != entry or name not in here):
                wanted.append(name)
        for name in set(self.equal) - set(there):
            if here.get(name) == self.equal[name][0]:
                (self.folder / name).unlink(missing_ok=True)
            self.equal.pop(name)
        self._in_parallel(lambda name: patiently(f"{self.store.address}/{name} cannot be read", lambda: self._fetch(name)), wanted)
        self.equal |= {name: (_entry(self.folder / name), there[name]) for name in wanted if (self.folder / name).exists()}
        self._remember()

    def _fetch(self, name: str) -> None:
        with suppress(FileNotFoundError):  # it has gone since it was listed
            self.store.download(name, self.folder / name)

    # ---- to the store ----

    def push(self, board: bool = True) -> int:
        """Put what changed since it was equal and remove what is gone here; returns how many objects changed.

        A trial's row and a checkpoint's state.json go last: where they are, the rest is.

        Raises:
            OSError: the store cannot be written; what was put is remembered.
        """
        here = self._files()
        wanted = {name: entry for name, entry in here.items() if board or not name.startswith("tensorboard/")}
        changed = [name for name, entry in wanted.items() if name not in self.equal or self.equal[name][0] != entry]
        gone = [name for name in self.equal if name not in here]
        last = [name for name in changed if name.startswith("trials") or name.endswith("/state.json")]
        try:
            self._in_parallel(self._put, sorted(set(changed) - set(last)))
            self._in_parallel(self._put, last)
            self._in_parallel(self._drop, gone)
        finally:
            if changed or gone:
                self._remember()
        return len(changed) + len(gone)

    def _in_parallel(self, act: Callable[[str], None], names: Sequence[str]) -> None:
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(act, names))  # where one fails, those that have not begun are dropped: they would wait for the same store

    def _put(self, name: str) -> None:
        path = self.folder / name
        try:
            before = _entry(path)  # a file that grows while it is put is put again next time
            there = self.store.upload(path, name)
        except FileNotFoundError:
            if path.exists():
                raise
            return  # a checkpoint that was replaced meanwhile
        self.equal[name] = (before, there)

    def _drop(self, name: str) -> None:
        self.store.remove(name)
        self.equal.pop(name, None)

    # ---- while the run lives ----

    def follow(self) -> None:
        """Push from a thread until `finish`."""
        self._thread = threading.Thread(target=self._follow, name="mirror", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        failing_since, pause = 0.0, POLL_S
        while not self._stop.wait(pause) and not self.problem:
            try:
                self._step()
            except OSError as error:
                if not failing_since:
                    failing_since, pause = time.monotonic(), 1.0
                    self.notes.append(f"{self.store.address} cannot be reached ({reason(error)}); training goes on, and it is tried again")
                elif time.monotonic() - failing_since > PATIENCE_S:
                    self.problem = f"{self.store.address} has not been reachable for {PATIENCE_S / 60:.3g} minutes ({reason(error)})"
                pause = min(2 * pause, LONGEST_PAUSE_S, max(1.0, PATIENCE_S / 4))
            else:
                if failing_since:
                    self.notes.append(f"{self.store.address} can be reached again")
                failing_since, pause = 0.0, POLL_S

    def _step(self) -> None:
        if time.monotonic() - self._beat_at > BEAT_S:
            self.problem = self._lost()
            if self.problem:
                return
            self._write_lock()
        board = time.monotonic() - self._board_at > BOARD_S
        self.push(board)
        if board:
            self._board_at = time.monotonic()

    def finish(self) -> str:
        """Stop following, bring up the last changes, let go of the store; returns why that failed, or ""."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        end, pause = time.monotonic() + (0 if self.problem else min(LAST_PATIENCE_S, PATIENCE_S)), 0.5
        while True:
            try:
                if lost := self._lost():
                    return lost
                for _ in range(3):  # what is still being written comes with the next look
                    if not self.push():
                        break
                self._clean_up()
                self.store.remove(LOCK)
                return ""
            except OSError as error:
                if time.monotonic() >= end:
                    return (
                        f"{self.store.address} cannot be reached ({reason(error)}); nothing is lost: all results are in {self.folder}, "
                        "and the same command brings them there"
                    )
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)

    def _clean_up(self) -> None:
        """Remove checkpoints that workers put there themselves of trials that will not be continued."""
        rows = records.read(self.folder, "trials", problems=[]).to_pylist()
        done = {row["trial_id"] for row in rows if row["status"] != "INTERRUPTED"}
        for name in self.store.entries("checkpoints"):
            if name.split("/")[1] in done and not (self.folder / name).exists():
                self.store.remove(name)

    # ---- the folder ----

    def _files(self) -> dict[str, Entry]:
        """Everything in the folder that belongs to the results; raises OSError where a part of it cannot be listed: it is not gone."""
        found = {}
        for top, folders, names in os.walk(self.folder, onerror=_unless_gone):
            inside = Path(top).relative_to(self.folder).as_posix()
            prefix = "" if inside == "." else f"{inside}/"
            folders[:] = [name for name in folders if _is_kept(f"{prefix}{name}/")]
            for name in names:
                if _is_kept(prefix + name):
                    with suppress(FileNotFoundError):
                        found[prefix + name] = _entry(Path(top) / name)
        return found

    def _remember(self) -> None:
        write_json(self.folder / MEMORY, dict(self.equal))


def _entry(path: Path) -> Entry:
    found = path.stat()
    return Entry(found.st_size, found.st_mtime_ns)


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _is_kept(name: str) -> bool:
    """Whether a file belongs to the results: not Ray's own state, nothing half-written or set aside."""
    return not name.startswith(("ray/", ".")) and "/." not in name and ".bad" not in name
