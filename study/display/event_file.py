"""One TensorBoard event file, written by whoever calls: no thread, no queue, so that a full disk is an OSError here and not elsewhere.

TensorBoard's own writer has a thread for each file, which prints a traceback of its own when a write fails.

    file = EventFile(folder); file.add(Event(...)); file.close()
"""

import os
import socket
import time
from io import FileIO
from itertools import count
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

_numbers = count()


class EventFile:
    """A new event file in a run's folder; each event is in it when `add` returns.

    Raises:
        OSError: it cannot be written, here or in `add`.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard looks for "tfevents" in the name and reads a run's files in the order of their names.
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self._file = FileIO(folder / name, "x")
        self._records = RecordWriter(self)
        self.add(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, event: Event) -> None:
        """Append one event."""
        self._records.write(event.SerializeToString())

    def write(self, record: bytes) -> None:
        """Append bytes, all of them: a disk that fills up takes a part first and refuses the rest."""
        while record:
            record = record[self._file.write(record) :]

    def close(self) -> None:
        """Close the file; what was added is in it already."""
        self._file.close()
