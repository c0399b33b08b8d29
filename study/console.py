"""Output that nobody reads any more: `... | head` closes its end, which is no fault of the program."""

import os
import sys
from collections.abc import Callable

CLOSED = 141
"""Exit code of a program whose reader went away, as shells report it (128 + SIGPIPE)."""


def until_closed(main: Callable[[], int]) -> int:
    """Run a main function; a closed output ends it quietly."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter's own last flush complains
        return CLOSED
    return code
