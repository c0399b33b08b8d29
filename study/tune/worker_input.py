"""What workers are given: bundles of trials, the corpus where they find it, and what each bundle reserves of a machine."""

import uuid
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune

from models import module_file
from models.tokenizer import Tokenizer
from study.options import Options
from study.results.object_store import Store
from study.spec import Trial
from study.train.branches import lengths


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
    tokenizer: Tokenizer | None
    options: Options
    checkpoints: Path
    mps: str = ""
    """what `study.train.mps.join` is given"""
    store: Store | None = None
    """object store that results go to: workers elsewhere put their checkpoints there"""
    marker: str = "study.json"
    """a file that stands in the driver's results folder: who sees it shares that folder"""
    modules: dict[str, str] = field(default_factory=lambda: dict(module_file.texts))
    """the files of models of the user's own, which lie on the driver's machine"""
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    """names this run of the study"""


def bundle_of(config: dict[str, Any], bundles: Sequence[Bundled]) -> Bundled:
    """The bundle that a Ray Tune config means: one of those known beforehand, or the one that a search put into it."""
    return config.get("bundled") or bundles[config["bundle"]]


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
