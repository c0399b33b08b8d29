"""How long training takes, by the wall and by the processor: what a trial's row says of its speed, and what the next quote learns from.

pace = Pace(one_thread=True)
with pace.step(): ...          # one optimizer step
pace.add(train_s=1.2, eval_s=0.1); pace.ms_per_step, pace.cpu_ms_per_step
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any


class Pace:
    """Times of one program.

    Args:
        one_thread: a step is the work of the calling thread alone, so that its processor time is what an idle machine would take.
    """

    def __init__(self, one_thread: bool) -> None:
        self.one_thread = one_thread
        self.train_s = self.eval_s = self.wall_s = 0.0
        self._steps, self._cpu_steps = list[float](), list[float]()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time one optimizer step."""
        began, cpu_began = time.perf_counter(), time.thread_time()
        yield
        self._steps.append((time.perf_counter() - began) * 1e3)
        self._cpu_steps.append((time.thread_time() - cpu_began) * 1e3)

    def add(self, train_s: float, eval_s: float) -> None:
        """Count seconds of training and of evaluating."""
        self.train_s += train_s
        self.eval_s += eval_s
        self.wall_s += train_s + eval_s

    @property
    def ms_per_step(self) -> float | None:
        """Median wall time of an optimizer step; None where steps were not timed one by one."""
        return median(self._steps) if self._steps else None

    @property
    def cpu_ms_per_step(self) -> float | None:
        """Median processor time of an optimizer step; None where several threads or a GPU share its work."""
        return median(self._cpu_steps) if self.one_thread and self._cpu_steps else None

    def columns(self, steps: int) -> dict[str, float | None]:
        """What a trial's row says of so many steps."""
        ms_per_step = self.ms_per_step or (self.train_s / steps * 1e3 if steps else None)
        times = {"train_s": self.train_s, "eval_s": self.eval_s, "wall_s": self.wall_s}
        return {"ms_per_step": ms_per_step, "cpu_ms_per_step": self.cpu_ms_per_step, **times}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        seconds = {"train": self.train_s, "eval": self.eval_s, "wall": self.wall_s}
        return {"seconds": seconds, "ms_per_step": self.ms_per_step, "cpu_ms_per_step": self.cpu_ms_per_step}

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's: its medians stand for the steps before it."""
        self.train_s, self.eval_s, self.wall_s = (state["seconds"][name] for name in ("train", "eval", "wall"))
        self._steps = [state["ms_per_step"]] if state["ms_per_step"] else []
        self._cpu_steps = [state["cpu_ms_per_step"]] if state.get("cpu_ms_per_step") else []
