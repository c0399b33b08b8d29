"""What workers are given: bundles of trials, the corpus where they find it, and what each bundle reserves of a machine."""

import uuid
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
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


def share(tokens: np.ndarray, on_cluster: bool) -> Callable[[], np.ndarray]:
    """With what a worker opens tokens: their file's name, or on a cluster an object that Ray copies once to each node."""
    if isinstance(tokens, np.memmap) and tokens.offset == 0 and not on_cluster:
        return partial(np.memmap, str(tokens.filename), tokens.dtype, "r", shape=(len(tokens),))
    return partial(ray.get, ray.put(np.asarray(tokens)))  # type: ignore[return-value]


@dataclass(frozen=True)
class Work:
    """Everything that every worker is given, once."""

    bundles: tuple[Bundled, ...]
    train: Callable[[], np.ndarray]
    val: Callable[[], np.ndarray]
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

    def bundle(self, config: dict[str, Any]) -> Bundled:
        """What a Ray Tune config means: one of the bundles known beforehand, or the one that a search put into it."""
        return config.get("bundled") or self.bundles[config["bundle"]]


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
