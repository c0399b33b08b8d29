"""An experiment tracker beside the board (`--track wandb|trackio|mlflow`): one run per trial, grouped by configuration.

The tracker's library lives in a process of its own (`study.display.tracker_process`), which is told what happens by one JSON object a line:
what it prints, waits for or breaks over touches neither the driver nor a row. It is a view; the results folder holds everything without it.

    tracker = Tracker("wandb", out, trials, vocab_size, say); tracker.progress(row); tracker.ended(row, samples); tracker.close()
"""

import importlib.util
import json
import os
import secrets
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from study.display.tensorboard import SCALARS, run_name
from study.display.terminal import printable
from study.files import read_json, write_json
from study.results.provenance import environment
from study.spec import Trial

PACKAGES = {"wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow-skinny"}
"""Tracker, which is also the module's name -> the package that brings it."""
FINAL = ("val_loss", "val_loss_se", "val_bpb", "best_val_loss", "train_loss", "tokens_per_s", "train_s", "peak_memory_bytes", "mfu")
"""Columns of a trial's last row that a tracker is told."""
KEY_FILE = "tracker.json"
LOG_FILE = "tracker.log"
WAIT_S = 30.0
"""How long a tracker may take for what it has not sent when the run is over."""


def check(name: str) -> None:
    """Refuse (ValueError) a tracker that is not installed."""
    if name and importlib.util.find_spec(name) is None:
        raise ValueError(f"track={name} needs the package {PACKAGES[name]}, which is not installed; run: pip install {PACKAGES[name]}")


class Tracker:
    """A view that tells a tracker of every trial.

    Args:
        out: the results folder; its name is the project's (mlflow: experiment's) unless the tracker's own variable names one.
        trials: of this run, by trial_id; whoever adds one later adds it here.
        vocab_size: for the parameter counts in a run's configuration.
    """

    def __init__(self, name: str, out: Path, trials: Mapping[str, Trial], vocab_size: int, say: Callable[[str], None]) -> None:
        self.name, self.out, self.trials, self.vocab_size, self.say = name, out, trials, vocab_size, say
        self.steps: dict[str, int] = {}
        self.waiting: deque[bytes] = deque()
        self.log = (out / LOG_FILE).open("wb")
        self.process: subprocess.Popen[bytes] | None = subprocess.Popen(
            _line(name, out),
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=self.log,
            env=environment(),
            start_new_session=True,  # Ctrl-C ends the run; the tracker ends when it has been told so
        )
        assert self.process.stdin is not None
        self.input = self.process.stdin
        os.set_blocking(self.input.fileno(), False)

    # ---- what the monitor calls ----

    def progress(self, row: Mapping[str, Any]) -> None:
        """Scalars of a new evaluation, over training tokens."""
        trial_id = row["trial_id"]
        if row["step"] > self.steps.get(trial_id, -1):
            self._begin(trial_id)
            self.steps[trial_id] = row["step"]
            values = {tag: row[column] for tag, column in SCALARS.items() if row.get(column) is not None}
            self._tell("log", run=trial_id, step=row["tokens"], values=values)

    def ended(self, row: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> None:
        """The last row, and the run is over."""
        self._begin(row["trial_id"])
        self.steps.pop(row["trial_id"], None)
        final = {column: row[column] for column in FINAL if row.get(column) is not None}
        self._tell("end", run=row["trial_id"], step=row.get("n_tokens") or 0, status=row["status"], final=final)

    def tick(self) -> None:
        """Send what waits; say it once where the tracker is gone."""
        if self.process is not None and self.process.poll() is not None:
            self._give_up()
        self._send()

    def close(self) -> None:
        """Let the tracker send the rest, for a while."""
        if self.process is None:
            return
        deadline = time.monotonic() + WAIT_S
        while self.waiting and self.process.poll() is None and time.monotonic() < deadline:
            self._send()
            time.sleep(0.02)
        with suppress(BrokenPipeError):
            self.input.close()
        try:
            if self.process.wait(max(0.0, deadline - time.monotonic())):
                self._give_up()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            self.say(_too_late(self.name))
        self.log.close()

    # ---- the tracker's process ----

    def _begin(self, trial_id: str) -> None:
        if trial_id not in self.steps:
            self.steps[trial_id] = -1
            trial = self.trials[trial_id]
            name = run_name(trial)
            group = name.replace(f"-s{trial.seed}-", "-")
            self._tell("start", run=trial_id, name=name, group=group, config=configuration(trial, self.vocab_size))

    def _tell(self, what: str, **facts: Any) -> None:
        if self.process is not None:
            self.waiting.append(json.dumps({"do": what, **facts}, default=str).encode() + b"\n")
            self._send()

    def _send(self) -> None:
        """Write as much as the pipe takes: a tracker that waits for its server must not hold up a run."""
        try:
            while self.waiting:
                n = os.write(self.input.fileno(), self.waiting[0])
                self.waiting[0] = self.waiting[0][n:]
                if not self.waiting[0]:
                    self.waiting.popleft()
        except BlockingIOError:
            pass
        except OSError:  # it has ended: the next tick says why
            self.waiting.clear()

    def _give_up(self) -> None:
        self.say(_given_up(self.name, (self.out / LOG_FILE).read_text(errors="replace")))
        self.process = None
        self.waiting.clear()
        self.input.close()
        self.log.close()


def publish(name: str, out: Path, figures: Mapping[str, Path]) -> str:
    """Give a tracker the report's figures, in a run of the study; returns what a person should know, or ""."""
    event = json.dumps({"do": "figures", "paths": figures}, default=str).encode() + b"\n"
    try:
        done = subprocess.run(_line(name, out), input=event, capture_output=True, env=environment(), timeout=WAIT_S, check=False)
    except subprocess.TimeoutExpired:
        return _too_late(name)
    return _given_up(name, (done.stderr + done.stdout).decode(errors="replace")) if done.returncode else ""


def _line(name: str, out: Path) -> list[str]:
    return [sys.executable, "-m", "study.display.tracker_process", name, out.name, key(out)]


def _given_up(name: str, said: str) -> str:
    why = printable(said.strip().splitlines()[-1]) if said.strip() else "it ended without a word"
    return f"{name} is given up ({why}); the results are whole without it"


def _too_late(name: str) -> str:
    return f"{name} took longer than {WAIT_S:g} s to send the rest, which it lacks; the results are whole"


def configuration(trial: Trial, vocab_size: int) -> dict[str, Any]:
    """What a run was, by the names of the table `trials`."""
    model = trial.model(vocab_size)
    names = ("n_layer", "n_embd", "n_head", "block_size", "vocab_size", "params_total", "params_non_embedding", "flops_per_token")
    return {
        "trial_id": trial.trial_id,
        "config_id": trial.config_id,
        "seed": trial.seed,
        "sweeps": list(trial.sweeps),
        "n_tokens": trial.n_tokens,
        **{name: getattr(model, name) for name in names},
        **{name: value for name, value in vars(trial.train).items() if name not in ("eval_interval", "eval_windows")},
    }


def key(out: Path) -> str:
    """What tells this folder's runs from those of another folder, or person, that tracks the same trials; it moves with the folder."""
    if not (out / KEY_FILE).exists():
        write_json(out / KEY_FILE, {"key": secrets.token_hex(4)})
    return str(read_json(out / KEY_FILE)["key"])
