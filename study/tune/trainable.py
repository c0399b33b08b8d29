"""A worker of Ray Tune: it trains one bundle of trials after another, evaluation by evaluation.

The only state that matters is ours: checkpoints and tables in the results folder, keyed by trial_id. What Ray Tune keeps of its own is
disposable, so a run is always "what is missing, from its newest whole checkpoint", never Ray's restore.

Comes in: `Work`, once, and the config that names a bundle. Goes out: rows and outcomes, as results of `step`.
"""

import contextlib
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from safetensors import SafetensorError

from models import module_file
from study.plan.memory import is_out_of_memory, memory_cap
from study.results.object_store import Store, get_checkpoints, put_checkpoints, reason
from study.train import mps
from study.tune import ray_internals
from study.tune.worker_input import Bundled, Work

if TYPE_CHECKING:
    from study.train.branched_bundle import BranchedBundle


class BundleTrainable(tune.Trainable):
    """A worker. One `step` trains to the next evaluation; the process is reused for the next bundle."""

    bundle: "BranchedBundle | None" = None
    scratch = "/nonexistent"
    """folder for checkpoints that only this process knows"""

    def setup(self, config: dict[str, Any], work: Work) -> None:  # type: ignore[override]  # Ray Tune passes `with_parameters`
        """Open the data and begin the bundle that `config` names."""
        self.work = work
        module_file.texts.update(work.modules)
        self.mps = mps.join(work.mps, self._share(work.bundle(config)))
        self.tokens = work.train(), work.val()
        self._begin(config)

    def reset_config(self, config: dict[str, Any]) -> bool:
        """Begin another bundle in the same process; everything random in training depends on (seed, step) only."""
        self._begin(config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        from study.train.branched_bundle import BranchedBundle

        work, bundled = self.work, self.work.bundle(config)
        self._let_go()  # of the last model before the next one is made
        self.refused, self.earlier = "", list[dict[str, Any]]()
        self.shared = (work.checkpoints.parent / work.marker).exists()
        self.place = work.checkpoints if self.shared else self._own_place()
        how = _execution(work, bundled, self._share(bundled))
        try:
            self.bundle = BranchedBundle(bundled.trials, self.place, *self.tokens, work.vocab_size, work.tokenizer, how, work.run)
        except ValueError as error:  # bad input: trying again would not help
            self.refused = str(error)
            return
        if work.store:
            self._with_store(get_checkpoints, "fetched from")
        if self.shared or work.store:
            self.earlier = self.bundle.curve if self.bundle.restore() else []
        else:
            names = ", ".join(trial.trial_id for trial in bundled.trials)
            self.bundle.notes.append(f"{socket.gethostname()} does not see {work.checkpoints.parent}: {names} cannot be checkpointed there")
        self.saved_at = time.monotonic()

    def step(self) -> dict[str, Any]:
        """Train to the next evaluation; a result that ends trials carries their outcomes."""
        rows = self._advance()
        if self.bundle is None:
            return {"refused": self.refused, "done": True}
        notes, earlier, self.earlier = self.bundle.take_notes(), self.earlier, []
        result = {"rows": rows, "notes": notes, "done": self.bundle.done, "earlier": earlier, "mps": self.mps}
        if self.bundle.ended:  # no checkpoint before the driver has these
            result["outcomes"] = [replica.left() for replica in self.bundle.outcomes]
            if self.shared:
                from study.train.branched_bundle import keep_weights

                notes += keep_weights(self.bundle.ended, self.work.checkpoints.parent / "weights")
        elif (self.shared or self.work.store) and time.monotonic() - self.saved_at >= self.work.options.checkpoint_s:
            self.bundle.save(beside=self.shared)
            if not self.shared:
                self._with_store(put_checkpoints, "put into")
            self.saved_at = time.monotonic()
        return result

    def _advance(self) -> list[dict[str, Any]]:
        """Rows of the next evaluation; a bundle whose model raises is let go: trying again would help only where it lacked memory."""
        try:
            return [] if self.bundle is None or self.bundle.done else self.bundle.advance()
        except ValueError as error:
            if is_out_of_memory(str(error)):
                raise
            self.refused = str(error)
            self._let_go()
            return []

    def _share(self, bundled: Bundled) -> float:
        """The part of a GPU that this process holds: what was planned, or more after it was too little."""
        reserved = ray_internals.reserved_gpus(self)
        return bundled.gpus if reserved is None else reserved

    def _own_place(self) -> Path:
        """A folder of this process for checkpoints that go to the store; the last bundle's are dropped."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch = tempfile.mkdtemp(prefix="scaling-study-")
        return Path(self.scratch)

    def _with_store(self, move: "Callable[[Store, Path, tuple[str, ...]], None]", how: str) -> None:
        """Move checkpoints from or to the store; a store that is away for a while costs a note, not the trial."""
        assert self.bundle is not None
        assert self.work.store is not None
        try:
            move(self.work.store, self.place, self.bundle.trial_ids)
        except OSError as error:
            self.bundle.notes.append(f"a checkpoint could not be {how} {self.work.store.address} ({reason(error)}); training goes on")

    def _let_go(self) -> None:
        bundle, self.bundle = self.bundle, None
        if bundle is not None:
            with contextlib.suppress(OSError, SafetensorError):  # without it, whoever continues begins one checkpoint earlier
                bundle.settle()

    def cleanup(self) -> None:
        """Let go of the model and of checkpoints that only this process knows; the last one of the others is whole when this returns."""
        self._let_go()
        shutil.rmtree(self.scratch, ignore_errors=True)


def _execution(work: Work, bundled: Bundled, gpus: float) -> Any:
    """Where this worker trains: the GPU that Ray gave it, never one that it merely sees, and no more of its memory than its share."""
    import torch

    from study.train.device import Execution

    device, cap = work.options.device, 0.0
    if torch.cuda.is_available():
        if device == "auto" and not bundled.gpus:
            device = "cpu"
        if device in ("auto", "cuda"):
            cap = memory_cap(gpus, torch.cuda.get_device_properties(0).total_memory)
    return Execution(device, work.options.precision, n_threads=max(1, int(bundled.cpus)), memory_fraction=cap)
