"""Ctrl-C, SIGTERM and a terminal that is closed: the first one ends the run in order, the second one at once.

with Interrupts() as interrupts: ...; interrupts.deferred = True   # from here on a signal only raises the flag `signum`
"""

import os
import signal
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """Raised where a deferred signal is acted upon; not an Exception, so that nothing in between takes it for a failed trial."""


class Interrupts:
    """Signal handlers of a run. Ray puts its own in place when it starts, so `install` is called again after that."""

    def __init__(self) -> None:
        self.signum = 0
        self.deferred = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        before = {number: signal.getsignal(number) for number in SIGNALS}
        nohup = before[signal.SIGHUP] == signal.SIG_IGN
        self._before = {number: handler for number, handler in before.items() if not (nohup and number == signal.SIGHUP)}
        self.install()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Put our handlers in place."""
        for number in self._before:
            signal.signal(number, self._handle)

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
        return 128 + self.signum

    @property
    def name(self) -> str:
        """What came, in a person's words."""
        return "Ctrl-C" if self.signum == signal.SIGINT else signal.Signals(self.signum).name

    def check(self) -> None:
        """Act upon a deferred signal: raises Interrupted where one has come."""
        if self.signum:
            raise Interrupted

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum and signum == signal.SIGHUP:  # the shell of a closed terminal sends it once more
            return
        if self.signum:  # asked twice: tables are written whole or not at all, so leaving at once loses nothing
            os.write(2, b"\nstudy.run: stopped at once; the same command continues\n")
            os._exit(128 + signum)
        self.signum = signum
        if not self.deferred:
            raise Interrupted
