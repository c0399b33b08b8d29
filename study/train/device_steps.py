"""Training steps that need nothing from the host: for GPUs, where launches and waiting, not arithmetic, set a small model's pace.

Tokens stay on the device and a step cuts its windows there; learning rates and window starts of a whole stretch between evaluations are
laid down in tables before it; losses and norms are read after it. A cursor on the device says which row is next, so that every step is
the same program, and on a GPU it is captured once as a CUDA graph and replayed: one launch per step.

    steps = DeviceSteps(model, trials, tokens, device); losses, norms = steps.run(first=0, goal=250)   # (250, K) each, on the CPU

The windows are those of `study.data.batches.window`. Where capture fails the same steps are launched one by one, and `note` says why.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.transformer import Network
from study.data import batches
from study.spec import Trial
from study.train.optimizer import AdamW, clip, groups_by_replica, norm_limits

MOST_BYTES = 4 << 30
MOST_SHARE = 0.25
"""Largest corpus kept on a device, in bytes and as a part of the memory this process may take; a larger one is read on the host."""
MOST_ROWS = 500
"""Steps that tables are laid down for at a time."""
WARM_UP = 3
"""Steps launched one by one before a capture, so that libraries have chosen their kernels and made their workspaces."""
CHUNK = 1 << 26
"""Tokens copied to the device at a time: the host's copy of a large corpus stays a file."""
DTYPES = {"uint8": torch.uint8, "uint16": torch.int32, "uint32": torch.int32}
"""Of tokens on the device: torch indexes no unsigned integers but bytes."""


def fits(tokens: np.ndarray, dropout: float, room: int) -> bool:
    """Whether a bundle can train this way: its corpus is small enough, and no mask is drawn from a host's random stream.

    Args:
        room: bytes of the device's memory that this process may take.
    """
    dtype = DTYPES.get(tokens.dtype.name)
    return dtype is not None and not dropout and len(tokens) * dtype.itemsize <= min(MOST_BYTES, MOST_SHARE * room)


_kept: list[tuple[np.ndarray, torch.device, Tensor]] = []
"""The corpus that this process last kept on a device: a trunk, its branches and the worker's next bundle share it."""


def keep(tokens: np.ndarray, device: torch.device) -> Tensor:
    """Tokens on the device, (n,); of the corpus kept last, or of a longer part of it, no second copy is made."""
    for host, where, kept in _kept:
        if host.ctypes.data == tokens.ctypes.data and host.dtype == tokens.dtype and len(host) >= len(tokens) and where == device:
            return kept[: len(tokens)]
    kept = torch.empty(len(tokens), dtype=DTYPES[tokens.dtype.name], device=device)
    for start in range(0, len(tokens), CHUNK):
        part = np.asarray(tokens[start : start + CHUNK])
        kept[start : start + CHUNK] = torch.from_numpy(part.astype(np.int32 if part.itemsize > 1 else np.uint8)).to(device)
    _kept[:] = [(tokens, device, kept)]  # holding the host's array keeps its address from being given to another
    return kept


class DeviceSteps:
    """The optimizer steps of one bundle.

    Args:
        model: K replicas on the device.
        optimizer: from `make_optimizer(..., on_device=True)`: its learning rates and counters are tensors.
        trials: one per replica, of one bundle key.
        tokens: (n,) the training split, of which each trial sees its first `unique_tokens`.
    """

    def __init__(self, model: Network, optimizer: AdamW, trials: Sequence[Trial], tokens: np.ndarray) -> None:
        self.model, self.optimizer, self.trials = model, optimizer, trials
        self.parts = [batches.first_tokens(tokens, trial.train.unique_tokens) for trial in trials]
        longest = max(self.parts, key=len)
        device, K = model.flat.device, len(trials)
        recipe, self.block_size = trials[0].train, trials[0].shape.block_size
        self.rows = min(recipe.eval_interval, MOST_ROWS)
        self.tokens = keep(longest, device)
        self.reach = torch.arange(self.block_size + 1, device=device)
        self.starts = torch.zeros(self.rows, K, recipe.batch_size, dtype=torch.int64, device=device)
        self.rates = torch.zeros(self.rows, K, device=device)
        self.losses, self.norms = torch.zeros_like(self.rates), torch.zeros_like(self.rates)
        self.cursor = torch.zeros(1, dtype=torch.int64, device=device)
        self.limits = norm_limits([trial.train for trial in trials], device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.note = ""
        self._taken = 0
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        """where a capture is still to be made"""

    def run(self, first: int, goal: int, silent: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Steps `first` to `goal`; returns losses and gradient norms before clipping, (steps, K) each, on the CPU.

        Args:
            silent: replicas that have diverged; their learning rate is 0.
        """
        parts = []
        for begin in range(first, goal, self.rows):
            count = min(self.rows, goal - begin)
            self._lay_down(begin, count, silent)
            for _ in range(count):
                self._step()
            parts.append([table[:count].to("cpu", copy=True) for table in (self.losses, self.norms)])  # the only time the host waits
        losses, norms = (torch.cat(tables) for tables in zip(*parts, strict=True))
        return losses, norms

    def _lay_down(self, first: int, count: int, silent: Sequence[int]) -> None:
        """Fill the tables for `count` steps from `first` and set the cursor to their first row."""
        B, T = self.starts.shape[-1], self.block_size
        steps, replicas = range(first, first + count), list(enumerate(self.trials))
        starts = np.stack([[batches.window_starts(self.parts[k], t.seed, step, B, T) for k, t in replicas] for step in steps])
        rates = [[0.0 if k in silent else t.train.lr_at(step) for k, t in replicas] for step in steps]
        self.starts[:count].copy_(torch.from_numpy(starts))
        self.rates[:count].copy_(torch.tensor(rates))
        self.cursor.zero_()

    def windows(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets at the cursor, (K, B, T) each."""
        starts = self.starts.index_select(0, self.cursor).squeeze(0)  # (K, B)
        windows = self.tokens[starts.unsqueeze(-1) + self.reach].long()  # (K, B, T + 1)
        return windows[..., :-1].contiguous(), windows[..., 1:].contiguous()

    def _program(self) -> None:
        """One optimizer step of every replica at the cursor, which moves on. No value leaves the device."""
        rates = self.rates.index_select(0, self.cursor).squeeze(0)
        for k, groups in enumerate(groups_by_replica(self.optimizer)):
            for group in {id(group["lr"]): group for group in groups}.values():  # groups of one rate hold the same tensor
                torch.mul(rates[k], group["rate"], out=group["lr"])
        self.model.flat_grad.zero_()
        losses = self.model.loss(*self.windows())
        losses.sum().backward()
        norms = clip(self.model.flat_grad, self.limits)
        self.optimizer.step()
        self.losses.index_copy_(0, self.cursor, losses.detach().unsqueeze(0))
        self.norms.index_copy_(0, self.cursor, norms.unsqueeze(0))
        self.cursor += 1

    def _step(self) -> None:
        if self._stream is not None and self._taken == WARM_UP:
            self._capture(self._stream)
        if self.graph is not None:
            self.graph.replay()
        elif self._stream is not None:  # where the capture will be: autograd remembers the stream on which a gradient was first added
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._program()
            torch.cuda.current_stream().wait_stream(self._stream)
        else:
            self._program()
        self._taken += 1

    def _capture(self, stream: torch.cuda.Stream) -> None:
        """Record the program without running it; where that fails, go on launching its kernels one by one."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        try:
            with torch.cuda.graph(graph, stream=stream):
                self._program()
        except RuntimeError as error:
            why = str(error).splitlines()[0][:100]
            self.note = f"a training step cannot be captured as a CUDA graph ({why}); its kernels are launched one by one"
            self._stream = None
            return
        self.graph = graph
