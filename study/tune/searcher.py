"""The Ray side of a search: one Optuna search per size shares the machine, and runs are given up only against runs of their own size.

Every size has at most one run under way, and what it runs next depends on that size's finished runs alone: the order in which sizes take
turns, interruptions and the number of workers change nothing.

    prober = Prober(searches, sizes, resources); run_bundles(work, options, out, monitor, prober)
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import optuna
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from study.search.architecture import ShapeSearch, unfold
from study.search.learning_rate import Found, Point, Probe, Refine, alike, at_common_step, guess, middle, rounded, stops_at
from study.search.search_state import Searches, SizeSearch
from study.search_settings import WHOLE
from study.spec import Trial
from study.tune.monitor import Monitor
from study.tune.worker_input import Bundled

ATTEMPTS = 20
"""Suggestions asked for before the middle of the bracket is taken: close to its best TPE repeats itself."""


class Prober:
    """What the searcher and the scheduler of a run share.

    Args:
        searches: with what the records say.
        sizes: those to search in this run.
        resources: (CPUs, GPUs) of a run.
        cost: what a run of a size takes, in any unit: the most expensive sizes go first.
        shapes: searches over shapes; their batches come before the sizes.
    """

    def __init__(
        self,
        searches: Searches,
        sizes: Sequence[SizeSearch],
        resources: Callable[[Trial], tuple[float, float]],
        cost: Callable[[Trial], float],
        shapes: Sequence[ShapeSearch] = (),
    ) -> None:
        self.searches, self.resources = searches, resources
        self.sizes = sorted(sizes, key=lambda size: -cost(size.base))
        self.monitor: Monitor | None = None
        self.shapes = list(shapes)
        self.running: dict[str, SizeSearch | None] = {}
        self.curves: dict[str, dict[int, float]] = {}

    # ---- suggestions ----

    def next(self) -> Bundled | None:
        """A run for a size that has none under way; None where there is nothing to start now."""
        self._collect()
        for trial in self._shapes():
            self.running[trial.trial_id] = None
            return Bundled((trial,), *self.resources(trial))
        for size in self.sizes:
            if size.failed or size in self.running.values():
                continue
            point = next_point(size, self.searches.replicate_noise)
            if point is None:
                continue
            trial = size.probe(point)
            self.running[trial.trial_id] = size
            return Bundled((trial,), *self.resources(trial))
        return None

    def _shapes(self) -> Iterator[Trial]:
        """Trials of the present batches of the searches over shapes that are neither under way nor failed."""
        for search in self.shapes:
            pending = unfold(search, self.searches.rows)[1]
            yield from (trial for trial in pending if trial.trial_id not in self.running and trial.trial_id not in search.failed)

    @property
    def done(self) -> bool:
        """Whether no run is under way; after `next` has found nothing to start, the search is over."""
        return not self.running

    def _collect(self) -> None:
        """Take the runs that were recorded since into account."""
        assert self.monitor is not None
        for trial_id, size in list(self.running.items()):
            row = self.monitor.recorder.rows.get(trial_id)
            if row is None:
                continue
            del self.running[trial_id]
            if size is None:
                self._collect_shape(trial_id, row)
                continue
            curve = tuple(sorted(self.curves.get(trial_id, {}).items()))
            if not size.see({"val_loss_se": None, **row}, curve):
                size.failed = str(row.get("reason") or row["status"])

    def _collect_shape(self, trial_id: str, row: dict[str, Any]) -> None:
        if row["status"] in ("COMPLETED", "DIVERGED"):
            self.searches.rows[trial_id] = row
        else:
            for search in self.shapes:
                search.failed.add(trial_id)

    # ---- early stopping ----

    def stop(self, result: dict[str, Any]) -> bool:
        """Whether the run that reported is given up; rows after its last step are taken out of the report."""
        rows, earlier = result.get("rows") or [], result.get("earlier") or []
        for row in [*earlier, *rows]:  # a run that was continued is judged by all of it, as if it had never been cut off
            self.curves.setdefault(row["trial_id"], {})[row["step"]] = row["val_loss"]
        trial_id = rows[0]["trial_id"] if rows else ""
        size = self.running.get(trial_id)
        if size is None or result.get("done"):
            return False
        probes, noise = list(size.probes.values()), size.noise(self.searches.replicate_noise)
        step = stops_at(size.settings, size.base.train, self.curves[trial_id], probes, noise)
        if step is None:
            return False
        for reported in (rows, earlier):
            reported[:] = [row for row in reported if row["step"] <= step]
        self.curves[trial_id] = {at: loss for at, loss in self.curves[trial_id].items() if at <= step}
        return True


def next_point(size: SizeSearch, replicate_noise: float | None) -> Point | None:
    """What a size runs next; None where its search is over."""
    decision = size.decide(replicate_noise)
    if isinstance(decision, Found):
        return None
    return suggest(size, decision) if isinstance(decision, Refine) else decision.point


# ---- Optuna ----


def suggest(size: SizeSearch, bounds: Refine) -> Point:
    """A point between two worse rates, never one that was run.

    Where the rate alone is searched, the vertex of the parabola through the best run and its neighbors comes first; after it, and where
    several fields are searched, TPE (Bergstra et al. 2011), rebuilt from the runs that are recorded.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    probes = list(size.probes.values())
    if (vertex := guess(size.settings, bounds, probes)) is not None:
        return vertex
    inside = sorted((p for p in probes if bounds.low <= p.lr <= bounds.high), key=lambda p: sorted(p.point.items()))
    points = [{name: _clipped(size, name, value) for name, value in p.point.items()} for p in inside]
    sampler = optuna.samplers.TPESampler(seed=_seed(size), n_startup_trials=1, multivariate=len(size.settings.fields) > 1)
    search = OptunaSearch(
        space=_space(size, bounds, points),
        metric="val_loss",
        mode="min",
        points_to_evaluate=points,
        evaluated_rewards=_losses(inside),
        sampler=sampler,
    )
    for attempt in range(ATTEMPTS):
        asked = search.suggest(str(attempt)) or {}
        point = {name: rounded(asked[name], name in WHOLE) for name in size.settings.fields}
        if bounds.low < point["lr"] < bounds.high and not any(alike(point, p.point) for p in probes):
            return point
    return middle(bounds, probes)


def _seed(size: SizeSearch) -> int:
    """Follows from the size and from how many runs it has: the same records give the same suggestion."""
    return (int(size.base.config_id[:7], 16) + len(size.probes)) % 2**31


def _clipped(size: SizeSearch, name: str, value: float) -> float:
    """A field other than the rate lies in its range, also where another sweep ran it outside."""
    low, high = size.settings.ranges[name]
    value = value if name == "lr" else min(max(value, low), high)
    return int(value) if name in WHOLE else value


def _space(size: SizeSearch, bounds: Refine, points: Sequence[Point]) -> dict[str, Any]:
    rates = [point["lr"] for point in points]
    space: dict[str, Any] = {"lr": optuna.distributions.FloatDistribution(min(rates), max(rates), log=True)}
    for name in size.settings.fields[1:]:
        low, high = size.settings.ranges[name]
        whole = name in WHOLE
        kind = optuna.distributions.IntDistribution if whole else optuna.distributions.FloatDistribution
        space[name] = kind(int(low) if whole else low, int(high) if whole else high, log=True)  # type: ignore[arg-type]
    return space


def _losses(probes: Sequence[Probe]) -> list[float]:
    """A loss for every run: one that was stopped is put above the best by what it lay above it when it was stopped."""
    best = min((p for p in probes if p.status == "COMPLETED"), key=lambda p: p.loss)
    found = []
    for p in probes:
        pair = at_common_step([p, best]) if p.status == "STOPPED" else None
        found.append(p.loss if p.status == "COMPLETED" else best.loss + (pair[0] - pair[1]) if pair else math.nan)
    worst = max(loss for loss in found if math.isfinite(loss))
    return [loss if math.isfinite(loss) else worst + 1.0 for loss in found]


# ---- what Ray Tune calls ----


class SizesSearcher(Searcher):
    """Hands Ray Tune the next run of any size."""

    def __init__(self, prober: Prober) -> None:
        super().__init__()
        self.prober = prober

    def __getstate__(self) -> dict[str, Any]:
        """Ray keeps its experiment; the search is rebuilt from the records."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """The config of the next run; None to wait, FINISHED at the end."""
        prober = self.prober
        bundled = prober.next()
        if bundled is None:
            return Searcher.FINISHED if prober.done else None
        assert prober.monitor is not None
        return {"bundle": prober.monitor.expect(bundled), "bundled": bundled}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Ray Tune's own space is empty: the sizes know theirs."""
        return True

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: what a run left is read from the records."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to read."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing to keep."""


class WithinSize(FIFOScheduler):
    """Stops a run that is worse than others of its own size."""

    def __init__(self, prober: Prober) -> None:
        super().__init__()
        self.prober = prober

    def __getstate__(self) -> dict[str, Any]:
        """As for the searcher."""
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether a run goes on."""
        return str(TrialScheduler.STOP if self.prober.stop(result) else TrialScheduler.CONTINUE)
