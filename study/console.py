"""Output that nobody reads or that cannot be written is no fault of the work: printing never ends a program, and never loses a row.

A closed pipe, a full device, a terminal that is gone, a descriptor that was closed from the start, an encoding that lacks a letter.
"""

import io
import os
import select
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CLOSED = 141
"""Exit code of a program whose reader went away, as shells report it (128 + SIGPIPE)."""


class LenientFile(io.FileIO):
    """A descriptor on which every write succeeds; the first error is kept in `problem`."""

    problem: OSError | None = None

    def write(self, data: Any) -> int:
        """Write what can be written; the rest is dropped."""
        try:
            while (written := super().write(data)) is None:  # another program made it non-blocking
                select.select([], [self], [], 1.0)
        except OSError as error:
            self.problem = self.problem or error
            return len(data)
        return written


def _lenient(name: str, descriptor: int) -> LenientFile:
    """Put such a file behind `sys.stdout` or `sys.stderr`."""
    before = getattr(sys, name)
    raw = LenientFile(descriptor, "w", closefd=False)
    encoding = before.encoding if before is not None else "utf-8"
    errors = "replace" if name == "stdout" else "backslashreplace"
    setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors=errors, line_buffering=True))
    return raw


def until_closed(main: Callable[[], int]) -> int:
    """Run a main function to its end, whatever becomes of its output; returns its exit code, or 141 where the reader went away."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # else the next file that is opened would take its place, and what is printed would go there
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    files = [_lenient("stdout", 1), _lenient("stderr", 2)]
    code = main()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    problem = files[0].problem
    if problem and not isinstance(problem, BrokenPipeError):
        print(f"what was printed is lost: the standard output cannot be written ({problem.strerror})", file=sys.stderr)
    return CLOSED if isinstance(problem, BrokenPipeError) else code


# ---- words ----


def complain(text: str, code: int) -> int:
    """Say on the standard error what went wrong; returns the code."""
    print(f"study.run: {text}", file=sys.stderr, flush=True)
    return code


def how_to_continue(what: str, argv: Sequence[str]) -> str:
    """What ended a run early, and the command that continues it."""
    again = shlex.join(["python", "-m", "study.run", *argv])
    return f"{what}; what is done is kept, and the same command continues: {again}"


def shown(path: Path) -> str:
    """A path as a person would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
