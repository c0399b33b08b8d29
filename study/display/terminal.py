"""The run on a terminal: one live table, or plain lines where there is no terminal or where it cannot redraw.

view = open_view(trials, vocab_size, done_before=3); view.progress(row); view.ended(row, samples); view.close()
"""

import os
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from study.spec import Trial

PLAIN_EVERY_S = 10.0
REFRESH_S = 0.25


def printable(text: str) -> str:
    """Text without control characters: what comes from a model or another process cannot drive the terminal."""
    return "".join(c if c == "\n" or unicodedata.category(c)[0] != "C" else "?" for c in text)


def compact(number: float) -> str:
    """`1.23M`, `45.6K`, `1.10e+15`: three digits and a suffix."""
    for limit, suffix, scale in ((1e3, "", 1.0), (1e6, "K", 1e3), (1e9, "M", 1e6), (1e12, "B", 1e9)):
        if abs(number) < limit:
            return f"{number / scale:.3g}{suffix}"
    return f"{number:.2e}"


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 05 min`."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    return f"{s // 3600} h {s % 3600 // 60:02d} min"


def shape_name(row: Mapping[str, Any]) -> str:
    """`4 layers x 64, 8 heads`."""
    layers, heads = ("s" if row[name] > 1 else "" for name in ("n_layer", "n_head"))
    return f"{row['n_layer']} layer{layers} x {row['n_embd']}, {row['n_head']} head{heads}"


def trial_name(trial: Trial, distinctions: Mapping[str, str]) -> str:
    """Shape and seed of a trial, with what tells its configuration from others of that shape."""
    return f"{shape_name(asdict(trial.shape))}{distinctions.get(trial.config_id, '')}, seed {trial.seed}"


def distinctions(trials: Iterable[Trial]) -> dict[str, str]:
    """For configurations that share depth, width and heads with another one: the fewest fields that tell them apart, by config_id.

    `, 1.64M tokens`; `, lr 0.002, batch_size 16`.
    """
    shapes: dict[tuple[int, int, int], dict[str, dict[str, Any]]] = {}
    for trial in trials:
        shape = trial.shape
        facts = {"tokens": trial.n_tokens, "lr": trial.train.lr} | asdict(shape) | asdict(trial.train) | asdict(trial.data)
        shapes.setdefault((shape.n_layer, shape.n_embd, shape.n_head), {})[trial.config_id] = facts
    told: dict[str, str] = {}
    for alike in shapes.values():
        names, apart = list[str](), 1
        for name in next(iter(alike.values())) if len(alike) > 1 else ():
            if (more := len({tuple(str(facts[kept]) for kept in (*names, name)) for facts in alike.values()})) > apart:
                names, apart = [*names, name], more
        told |= {config: "".join(f", {_fact(name, facts[name])}" for name in names) for config, facts in alike.items()}
    return told


def _fact(name: str, value: Any) -> str:
    if name == "tokens":
        return f"{compact(value)} tokens"
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"


@dataclass
class Plain:
    """What is known about the run so far, in lines for logs and pipes: one per finished trial, and a headline every ten seconds."""

    trials: Mapping[str, Trial]
    """trials to run now, by trial_id"""
    flops: dict[str, float]
    """expected FLOPs of each"""
    done_before: int = 0
    say: Callable[[str], None] = lambda text: print(printable(text), flush=True)
    began: float = field(default_factory=time.monotonic)
    said_at: float = field(default_factory=time.monotonic)
    latest: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """last evaluation of each running trial"""
    gone: set[str] = field(default_factory=set)
    """trials that have ended"""
    statuses: Counter[str] = field(default_factory=Counter)
    """of trials that have ended"""
    finished: dict[str, tuple[Mapping[str, Any], int, float]] = field(default_factory=dict)
    """by config_id: the first completed row, completed trials, sum of their losses"""
    flops_done: float = 0.0
    distinctions: dict[str, str] = field(init=False)
    """by config_id: what tells a configuration from others of its shape"""

    def __post_init__(self) -> None:
        self.distinctions = distinctions(self.trials.values())

    # ---- what the monitor calls ----

    def expect(self, flops: Mapping[str, float]) -> None:
        """Count trials that a search has added, with the FLOPs of each."""
        self.flops.update(flops)
        self.distinctions = distinctions(self.trials.values())

    def progress(self, row: Mapping[str, Any]) -> None:
        """Remember the latest evaluation."""
        if row["trial_id"] not in self.gone:
            self.latest[row["trial_id"]] = row

    def ended(self, row: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> None:
        """Count a trial that has ended, at a cost that does not grow with the study, and say how."""
        self.latest.pop(row["trial_id"], None)
        if row["trial_id"] not in self.gone:
            self.gone.add(row["trial_id"])
            self.statuses[row["status"]] += 1
            self.flops_done += self.flops.get(row["trial_id"], 0.0)
            if row["status"] == "COMPLETED":
                first, n, total = self.finished.get(row["config_id"], (row, 0, 0.0))
                self.finished[row["config_id"]] = first, n + 1, total + row["val_loss"]
        self.say_end(row)

    def say_end(self, row: Mapping[str, Any]) -> None:
        """How a trial ended."""
        n, end = self.counts(), f"{row['status']}: {row['reason']}"
        if row["status"] == "COMPLETED":
            end = f"val_loss {row['val_loss']:.4f} in {duration(row['wall_s'])}"
        self.say(f"[{n['done']}/{n['all']}] {self.name(row)}, seed {row['seed']}: {end}")

    def note(self, text: str) -> None:
        """Say something."""
        self.say(f"note: {text}")

    def tick(self) -> None:
        """The headline, now and then."""
        if time.monotonic() - self.said_at > PLAIN_EVERY_S:
            self.said_at = time.monotonic()
            self.say(self.headline())

    def close(self) -> None:
        """The last headline."""
        self.say(self.headline())

    # ---- what is known ----

    def name(self, row: Mapping[str, Any]) -> str:
        """Shape of a row, with what tells it from others of that shape."""
        return shape_name(row) + self.distinctions.get(row["config_id"], "")

    def counts(self) -> dict[str, int]:
        """Trials by state."""
        return {
            "done": self.statuses["COMPLETED"] + self.done_before,
            "running": len(self.latest),
            "failed": self.statuses["FAILED"] + self.statuses["DIVERGED"],
            "all": len(self.trials) + self.done_before,
        }

    def share(self) -> float:
        """Share of this run's FLOPs that is done, from 0 to 1."""
        total = sum(self.flops.values())
        done = self.flops_done + sum(self.flops[i] * row["step"] / self.trials[i].train.n_steps for i, row in self.latest.items())
        return done / total if total else 1.0

    def seconds_left(self) -> float | None:
        """Remaining time at the speed so far, weighted by FLOPs; None while there is nothing to go by."""
        share = self.share()
        return (time.monotonic() - self.began) * (1 - share) / share if share > 0.01 else None

    def headline(self) -> str:
        """One line on the whole run."""
        n = self.counts()
        left = self.seconds_left()
        text = f"{n['done']} of {n['all']} trials done, {n['running']} running"
        text += f", {n['failed']} failed" if n["failed"] else ""
        text += f"; {duration(time.monotonic() - self.began)}"
        return text + (f", about {duration(left)} left" if left is not None and self.share() < 1 else "")

    def configurations(self) -> list[tuple[str, int, float]]:
        """(shape, trials, mean val_loss) of finished configurations, largest first."""
        ordered = sorted(self.finished.values(), key=lambda group: -group[0]["params_non_embedding"])
        return [(self.name(first), n, total / n) for first, n, total in ordered]


class Screen(Plain):
    """A live table on a terminal; notes and failures stay above it."""

    def __init__(self, trials: Mapping[str, Trial], flops: dict[str, float], done_before: int = 0, console: Console | None = None) -> None:
        super().__init__(trials, flops, done_before, lambda text: self.live.console.print(Text(printable(text)), soft_wrap=True))
        self.live = Live(console=console or Console(), auto_refresh=False, transient=False)
        self.live.start()

    def say_end(self, row: Mapping[str, Any]) -> None:
        """Only what the table does not show."""
        if row["status"] != "COMPLETED":
            super().say_end(row)

    def tick(self) -> None:
        """Draw, a few times a second."""
        if time.monotonic() - self.said_at > REFRESH_S:
            self.said_at = time.monotonic()
            self.live.update(self.draw(), refresh=True)

    def close(self) -> None:
        """Leave the last table on the screen."""
        self.live.update(self.draw(), refresh=True)
        self.live.stop()

    def draw(self) -> Group:
        """The headline, the running trials and the finished configurations, cut to the terminal's height."""
        room = max(4, self.live.console.size.height - 8)
        running = _table("running", "step", "val_loss", "tokens/s")
        for trial_id, row in list(self.latest.items())[: room // 2]:
            trial, speed = self.trials[trial_id], row.get("tokens_per_s")
            steps = f"{row['step']:,} of {trial.train.n_steps:,}"
            running.add_row(trial_name(trial, self.distinctions), steps, f"{row['val_loss']:.4f}", f"{speed:,.0f}" if speed else "")
        finished = _table("finished", "trials", "mean val_loss")
        found = self.configurations()
        for shape, n, loss in found[: room - running.row_count]:
            finished.add_row(shape, str(n), f"{loss:.4f}")
        parts: list[Any] = [Text(self.headline(), style="bold")]
        return Group(*parts, *([running] if running.row_count else []), *([finished] if found else []))


def _table(what: str, *numbers: str) -> Table:
    return Table(what, *(Column(title, justify="right") for title in numbers), box=None, padding=(0, 2, 0, 0), header_style="dim")


def open_view(trials: Mapping[str, Trial], vocab_size: int, done_before: int) -> Plain:
    """A live table on a terminal, else plain lines. Whoever adds a trial later adds it to `trials` and has the view expect it."""
    view = Screen if sys.stdout.isatty() and can_redraw() else Plain
    return view(trials, {trial_id: trial.flops(vocab_size) for trial_id, trial in trials.items()}, done_before)


def can_redraw() -> bool:
    """Whether the cursor of this terminal can go up: not in a notebook's cell, which keeps all that a program writes, nor on a dumb one."""
    kind = os.environ.get("TERM", "")
    in_notebook = "JPY_PARENT_PID" in os.environ or (kind == "xterm-color" and os.environ.get("PAGER") == "cat")  # as ipykernel sets them
    return not in_notebook and kind not in ("", "dumb", "unknown")
