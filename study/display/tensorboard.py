"""The TensorBoard board: one run per trial and one `_study` run for figures, written by the driver alone.

x is training tokens. Each run holds scalars (`loss/val` first), the shape as hparams, and the stories that the model wrote. The event files
are written with TensorBoard's own protocol buffers: the driver needs neither torch nor tensorflow.

    board = Board(out / "tensorboard", trials, vocab_size); board.progress(row); board.ended(row, samples); board.close()
"""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import textwrap
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from io import FileIO
from itertools import count
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from study import records
from study.console import shown
from study.display.terminal import compact, printable
from study.results.provenance import environment
from study.spec import Trial

SCALARS = {
    "loss/val": "val_loss",
    "loss/val_bits_per_byte": "val_bpb",
    "loss/train": "batch_loss",
    "optimizer/grad_norm": "grad_norm",
    "optimizer/lr": "lr",
    "speed/tokens_per_s": "tokens_per_s",
}
"""TensorBoard tag -> column of `curves`."""
STORIES_PER_STEP = 4
LINE = 100
"""Characters in a line of a story: a code block does not wrap by itself."""
STUDY_RUN = "_study"
PORT = 6006
DRAWN_RUNS = 40
"""With more runs than this TensorBoard opens with none of them ticked."""
MIN_PAUSE_S = 30.0
NEW_TRIALS = 3
FIGURES_SHARE = 20
"""Pause between two drawings over the time that one takes."""
_numbers = count()


class EventFile:
    """A new event file in a run's folder; each event is in it when `add` returns.

    TensorBoard's own writer has a thread for each file, which prints a traceback of its own when a write fails.

    Raises:
        OSError: it cannot be written, here or in `add`.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard looks for "tfevents" in the name and reads a run's files in the order of their names.
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self._file = FileIO(folder / name, "x")
        self._records = RecordWriter(self)
        self.add(file_version="brain.Event:2")

    def add(self, **facts: Any) -> None:
        """Append one event of this moment."""
        self._records.write(Event(wall_time=time.time(), **facts).SerializeToString())

    def write(self, record: bytes) -> None:
        """Append bytes, all of them: a disk that fills up takes a part first and refuses the rest."""
        while record:
            record = record[self._file.write(record) :]

    def close(self) -> None:
        """Close the file; what was added is in it already."""
        self._file.close()


class Board:
    """Writers of one study's event files.

    Args:
        trials: of this run, by trial_id; whoever adds one later adds it here.
        vocab_size: for the parameter counts among the hparams.
    """

    def __init__(self, folder: Path, trials: Mapping[str, Trial], vocab_size: int) -> None:
        self.folder, self.trials, self.vocab_size = folder, trials, vocab_size
        self.writers: dict[str, EventFile] = {}
        self.steps: dict[str, int] = {}
        self.painter: subprocess.Popen[bytes] | None = None
        self.painted_at, self.pause_s, self.n_new = time.monotonic(), MIN_PAUSE_S, 0

    def how_to_open(self) -> str:
        """The command, and a link to the learning curves without smoothing, seeds of one configuration in one color."""
        pinned = json.dumps([{"plugin": "scalars", "tag": tag} for tag in ("loss/val", "loss/train")], separators=(",", ":"))
        query = urllib.parse.urlencode({"pinnedCards": pinned, "smoothing": 0, "runColorGroup": "regex:(.*)-s"})
        hint = "   (tick the box beside Run: of so many, none is drawn at first)" if len(self.trials) >= DRAWN_RUNS else ""
        return f"tensorboard --logdir {shlex.quote(shown(self.folder))}   then open http://localhost:{PORT}/?{query}#timeseries{hint}"

    # ---- what the monitor calls ----

    def progress(self, row: Mapping[str, Any]) -> None:
        """Scalars of an evaluation; one that was seen before a restart is not drawn twice."""
        if row["step"] > self.steps.get(row["trial_id"], -1):
            writer = self._writer(row)
            self.steps[row["trial_id"]] = row["step"]
            values = [Summary.Value(tag=tag, simple_value=row[name]) for tag, name in SCALARS.items() if row.get(name) is not None]
            writer.add(step=row["tokens"], summary=Summary(value=values))

    def ended(self, row: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> None:
        """Stories, the end of the session, and the file is closed: hundreds of trials keep no file open."""
        self.n_new += row["status"] == "COMPLETED"
        writer = self.writers.pop(row["trial_id"], None)
        if writer is None:
            return
        tokens_per_step = row["batch_size"] * row["block_size"]
        for step in sorted({sample["step"] for sample in samples}):
            texts = [sample for sample in samples if sample["step"] == step]
            stories = text_pb("stories", ["\n\n".join(map(story_markdown, texts[:STORIES_PER_STEP]))])
            writer.add(step=step * tokens_per_step, summary=stories)
        status = api_pb2.STATUS_SUCCESS if row["status"] == "COMPLETED" else api_pb2.STATUS_FAILURE
        info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
        ends = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=info))
        value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=ends, tensor=metadata.NULL_TENSOR)
        writer.add(summary=Summary(value=[value]))
        writer.close()

    def tick(self) -> None:
        """Draw the study's figures anew after more trials have ended, in a process of its own and of low priority.

        The pause grows with what drawing costs, so that it never takes more than a few percent of the machine.
        """
        now = time.monotonic()
        if self.painter is not None and self.painter.poll() is not None:
            self.pause_s, self.painter = max(MIN_PAUSE_S, FIGURES_SHARE * (now - self.painted_at)), None
        if self.painter is None and self.n_new >= NEW_TRIALS and now - self.painted_at > self.pause_s:
            self.n_new, self.painted_at = 0, now
            command = [sys.executable, "-m", "analysis.report.board_figures", str(self.folder.parent)]
            self.painter = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def close(self) -> None:
        """Close what is still open."""
        if self.painter is not None:
            self.painter.kill()
            self.painter.wait()
        for writer in self.writers.values():
            writer.close()
        self.writers.clear()

    def _writer(self, row: Mapping[str, Any]) -> EventFile:
        """The run's file: made anew for a trial from its start, continued for one from a checkpoint."""
        trial = self.trials[row["trial_id"]]
        if trial.trial_id not in self.writers:
            folder = self.folder / run_name(trial)
            if row["step"] == 0:
                shutil.rmtree(folder, ignore_errors=True)
            writer = self.writers[trial.trial_id] = EventFile(folder)
            if row["step"]:  # later points of an earlier file are void
                writer.add(step=row["tokens"], session_log=SessionLog(status=SessionLog.START))
            # Without an experiment record TensorBoard finds columns and ranges by itself, from the hparams of all runs there are.
            writer.add(summary=hparams_pb(hparams(trial, self.vocab_size), trial_id=run_name(trial)))
        return self.writers[trial.trial_id]


# ---- names and values ----


def run_name(trial: Trial) -> str:
    """A run's folder, `06x0256-h08-1.64M-s1-0c9b55`: depth x width, heads, tokens, seed, and the start of the id, so that runs sort."""
    shape = trial.shape
    return f"{shape.n_layer:02d}x{shape.n_embd:04d}-h{shape.n_head:02d}-{compact(trial.n_tokens)}-s{trial.seed}-{trial.config_id[:6]}"


def hparams(trial: Trial, vocab_size: int) -> dict[str, float]:
    """Six facts; TensorBoard shows the first five by name until more are ticked, and the size follows from depth and width."""
    model = trial.model(vocab_size)
    return {
        "arch/depth": float(model.n_layer),
        "arch/heads": float(model.n_head),
        "arch/width": float(model.n_embd),
        "data/tokens_M": round(trial.n_tokens / 1e6, 4),
        "lr": trial.train.lr,
        "params_M": round(model.params_non_embedding / 1e6, 4),
    }


def story_markdown(sample: Mapping[str, Any]) -> str:
    """A story as an indented code block: whatever a model wrote is shown as it is, never run as HTML or Markdown."""
    text = printable(f"{sample['prompt']}|{sample['text']}")
    title = f"temperature {sample['temperature']:g}, prompt and text divided by a bar"
    lines = [part for line in text.split("\n") for part in textwrap.wrap(line, LINE, drop_whitespace=False, tabsize=1) or [""]]
    return "\n".join([title, "", *(f"    {line}" for line in lines)])


def publish(results: Path, images: Mapping[str, bytes]) -> None:
    """Put PNG images, by name, under `plots/` in the study's own run, at the tokens that all recorded trials have seen."""
    tokens = sum(row["n_tokens"] for row in records.read(results, "trials", problems=[]).to_pylist())
    names = {name: "0_loss" if name == "loss" else name for name in images}  # the figure that answers the question comes first
    writer = EventFile(results / "tensorboard" / STUDY_RUN)
    found = Summary()
    for name, png in sorted(images.items()):
        width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")  # a PNG file names its size there
        image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
        found.value.add(tag=f"plots/{names[name]}", image=image)
    writer.add(step=tokens, summary=found)
    writer.close()
