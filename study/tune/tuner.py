"""Hand bundles of trials to Ray Tune's Tuner, at most once each: what Ray Tune keeps of its own is disposable.

with ray_session(options): run_bundles(work, options, out, callback)   # see study.tune.cluster
"""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

from ray import tune

from study.options import Options
from study.tune.local_ray import no_room
from study.tune.searcher import Prober, SizesSearcher, WithinSize
from study.tune.trainable import BundleTrainable
from study.tune.worker_input import Work, requests

MAX_FAILURES = 2
"""A failed trial is tried again so often, each time from its newest checkpoint."""


def run_bundles(work: Work, options: Options, out: Path, callback: tune.Callback, prober: Prober | None = None) -> None:
    """Train all bundles, in their order, as many at once as fit; returns when none is left. The callback has seen every result.

    Args:
        prober: makes bundles as the run goes on, in the place of those known beforehand.

    Raises:
        Interrupted: the callback acted upon a signal.
        ValueError: there is no room for what Ray Tune writes of its own.
    """
    shutil.rmtree(out / "ray", ignore_errors=True)
    bundles = work.bundles
    search: dict[str, Any] = {}
    if prober:
        search = {"search_alg": SizesSearcher(prober), "scheduler": WithinSize(prober), "num_samples": -1}
    trainable = tune.with_resources(tune.with_parameters(BundleTrainable, work=work), requests(bundles))
    tuner = tune.Tuner(
        trainable,
        param_space={} if prober else {"bundle": tune.grid_search(list(range(len(bundles))))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=options.max_concurrent or None,
            reuse_actors=True,
            trial_name_creator=_ray_name,
            trial_dirname_creator=_ray_name,
            **search,
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


def _ray_name(trial: Any) -> str:
    return str(trial.trial_id)
