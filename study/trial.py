"""Ray Tune: hand bundles of trials to its Tuner and train each bundle in a worker.

The only state that matters is ours: checkpoints and tables in the results folder, keyed by trial_id. What Ray Tune keeps of its own is
disposable, so a run is always "what is missing, from its newest whole checkpoint", never Ray's restore.

    with ray_session(options): run_bundles(work, options, out, callback)   # see study.cluster
"""

import contextlib
import errno
import os
import shutil
import socket
import tempfile
import time
import uuid
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray import tune
from safetensors import SafetensorError

from study.branches import lengths
from study.environment import no_room
from study.memory import memory_cap
from study.spec import Trial
from study.stores import Store, get_checkpoints, put_checkpoints, reason

if TYPE_CHECKING:
    from study.command import Options
    from study.searcher import Prober
    from study.trunk import Trunk

MAX_FAILURES = 2
"""A failed trial is tried again so often, each time from its newest checkpoint."""


@dataclass(frozen=True)
class Bundled:
    """Trials that share a process, and what that process reserves."""

    trials: tuple[Trial, ...]
    cpus: float
    gpus: float

    @property
    def at_once(self) -> int:
        """Trials of one length: those of a family follow one another, and only replicas train side by side."""
        return len(self.trials) // len(lengths(self.trials))


@dataclass(frozen=True)
class Tokens:
    """A split of the corpus where a worker finds it: a file on this machine, or an object that Ray copies once to each node."""

    where: Any
    dtype: str = ""
    length: int = 0

    def open(self) -> np.ndarray:
        """The tokens without copying them."""
        if isinstance(self.where, str):
            return np.memmap(self.where, dtype=self.dtype, mode="r", shape=(self.length,))
        tokens: np.ndarray = ray.get(self.where)
        return tokens


def share(tokens: np.ndarray, on_cluster: bool) -> Tokens:
    """Make tokens reachable for workers: through Ray's object store on a cluster, else by the name of their file."""
    if isinstance(tokens, np.memmap) and tokens.offset == 0 and not on_cluster:
        return Tokens(str(tokens.filename), tokens.dtype.name, len(tokens))
    return Tokens(ray.put(np.asarray(tokens)))


@dataclass(frozen=True)
class Work:
    """Everything that every worker is given, once."""

    bundles: tuple[Bundled, ...]
    train: Tokens
    val: Tokens
    vocab_size: int
    characters: tuple[str, ...]
    device: str
    precision: str
    checkpoints: Path
    checkpoint_s: float
    store: Store | None = None
    """object store that results go to: workers elsewhere put their checkpoints there"""
    marker: str = "study.json"
    """a file that stands in the driver's results folder: who sees it shares that folder"""
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    """names this run of the study"""


class BundleTrainable(tune.Trainable):
    """A worker. One `step` trains to the next evaluation; the process is reused for the next bundle."""

    bundle: "Trunk | None" = None

    def setup(self, config: dict[str, Any], work: Work) -> None:  # type: ignore[override]  # Ray Tune passes `with_parameters`
        """Open the data and begin the bundle that `config` names."""
        self.work = work
        self.tokens = work.train.open(), work.val.open()
        self._begin(config)

    def reset_config(self, config: dict[str, Any]) -> bool:
        """Begin another bundle in the same process; everything random in training depends on (seed, step) only."""
        self._begin(config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        from study.trunk import Trunk

        work, bundled = self.work, bundle_of(config, self.work.bundles)
        self._let_go()  # of the last model before the next one is made
        self.refused, self.earlier = "", list[dict[str, Any]]()
        try:
            self.bundle = Trunk(
                bundled.trials, *self.tokens, work.vocab_size, work.characters, _execution(work, bundled, self._share(bundled)), work.run
            )
        except ValueError as error:  # bad input: trying again would not help
            self.refused = str(error)
            return
        self.shared = (work.checkpoints.parent / work.marker).exists()
        self.place = work.checkpoints if self.shared else self._own_place()
        if work.store:
            self._with_store(get_checkpoints, "fetched from")
        if self.shared or work.store:
            self.earlier = self.bundle.curve if self.bundle.restore(self.place) else []
        else:
            names = ", ".join(trial.trial_id for trial in bundled.trials)
            self.bundle.notes.append(f"{socket.gethostname()} does not see {work.checkpoints.parent}: {names} cannot be checkpointed there")
        self.saved_at = time.monotonic()

    def step(self) -> dict[str, Any]:
        """Train to the next evaluation; a result that ends trials carries their outcomes."""
        if self.bundle is None:
            return {"refused": self.refused, "done": True}
        rows = [] if self.bundle.done else self.bundle.advance()
        notes = self.bundle.take_notes()
        result = {"rows": rows, "notes": notes, "restarts": self.bundle.restarts, "done": self.bundle.done, "earlier": self.earlier}
        self.earlier = []
        if self.bundle.ended:  # no checkpoint before the driver has these
            result["outcomes"] = [asdict(outcome) for outcome in self.bundle.outcomes]
            if self.shared:
                from study import weights

                notes += weights.keep(self.bundle.ended, self.work.checkpoints.parent / "weights")
        elif (self.shared or self.work.store) and time.monotonic() - self.saved_at >= self.work.checkpoint_s:
            self.bundle.save(self.place, beside=self.shared)
            if not self.shared:
                self._with_store(put_checkpoints, "put into")
            self.saved_at = time.monotonic()
        return result

    def _share(self, bundled: Bundled) -> float:
        """The part of a GPU that this process holds: what was planned, or more after it was too little."""
        request = self.trial_resources if getattr(self, "_trial_info", None) else None
        return float(request.required_resources.get("GPU", 0.0)) if request else bundled.gpus

    def _own_place(self) -> Path:
        """A folder of this process for checkpoints that go to the store; the last bundle's are dropped."""
        shutil.rmtree(getattr(self, "scratch", "") or "/nonexistent", ignore_errors=True)
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
        shutil.rmtree(getattr(self, "scratch", "") or "/nonexistent", ignore_errors=True)


def _execution(work: Work, bundled: Bundled, gpus: float) -> Any:
    """Where this worker trains: the GPU that Ray gave it, never one that it merely sees, and no more of its memory than its share."""
    import torch

    from study.device import Execution

    device = work.device
    if device == "auto" and not bundled.gpus and torch.cuda.is_available():
        device = "cpu"
    threads = max(1, int(bundled.cpus))
    cap = 0.0
    if device in ("auto", "cuda") and torch.cuda.is_available():
        cap = memory_cap(gpus, torch.cuda.get_device_properties(0).total_memory)
    return Execution(device=device, precision=work.precision, n_threads=threads, memory_fraction=cap)  # type: ignore[arg-type]


# ---- the run ----


def bundle_of(config: dict[str, Any], bundles: Sequence[Bundled]) -> Bundled:
    """The bundle that a Ray Tune config means: one of those known beforehand, or the one that a search put into it."""
    return config.get("bundled") or bundles[config["bundle"]]


def run_bundles(work: Work, options: "Options", out: Path, callback: tune.Callback, prober: "Prober | None" = None) -> None:
    """Train all bundles, in their order, as many at once as fit; returns when none is left. The callback has seen every result.

    Args:
        prober: makes bundles as the run goes on, in the place of those known beforehand.

    Raises:
        Interrupted: the callback acted upon a signal.
        ValueError: there is no room for what Ray Tune writes of its own.
    """
    shutil.rmtree(out / "ray", ignore_errors=True)
    bundles = work.bundles
    trainable = tune.with_resources(tune.with_parameters(BundleTrainable, work=work), requests(bundles))
    tuner = tune.Tuner(
        trainable,
        param_space={} if prober else {"bundle": tune.grid_search(list(range(len(bundles))))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=options.max_concurrent or None,
            reuse_actors=True,
            trial_name_creator=_ray_name,
            trial_dirname_creator=_ray_name,
            **_search_of(prober),
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(out / "ray"),
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[callback],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except tune.TuneError as error:
        if os.strerror(errno.ENOSPC) in str(error):
            raise ValueError(f"{no_room(out)}; what is done is kept, and the same command continues") from None
        raise


def reservation(cpus: float, gpus: float) -> tune.PlacementGroupFactory:
    """What Ray is asked to reserve."""
    return tune.PlacementGroupFactory([{"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}])


def requests(bundles: Sequence[Bundled]) -> Callable[[dict[str, Any]], tune.PlacementGroupFactory]:
    """What Ray is asked to reserve for a Ray Tune config.

    Ray Tune unpickles the function twice for every trial, so it holds two bytes of each bundle and not the bundles.
    """
    kinds = list(dict.fromkeys((bundled.cpus, bundled.gpus) for bundled in bundles))
    number = {kind: i for i, kind in enumerate(kinds)}
    kind_of = array("H", [number[bundled.cpus, bundled.gpus] for bundled in bundles])

    def wanted(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        bundled: Bundled | None = config.get("bundled")
        return reservation(bundled.cpus, bundled.gpus) if bundled else reservation(*kinds[kind_of[config["bundle"]]])

    return wanted


def _search_of(prober: "Prober | None") -> dict[str, Any]:
    """The part of a TuneConfig that lets a search make the trials."""
    if prober is None:
        return {}
    from study.searcher import SizesSearcher, WithinSize

    return {"search_alg": SizesSearcher(prober), "scheduler": WithinSize(prober), "num_samples": -1}


def _ray_name(trial: Any) -> str:
    return str(trial.trial_id)
