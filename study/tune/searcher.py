"""The Ray side of a search: searches share the machine, and runs are given up only against runs of their own size.

A search has the runs under way that its records ask for (a size has one), and they depend on its own finished runs alone: the order in
which searches take turns, interruptions and the number of workers change nothing.

    prober = Prober(searches, wanted, shares, vocab_size, monitor); run_bundles(work, monitor, prober)
"""

from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from study.search.architecture import ShapeSearch
from study.search.learning_rate import SizeSearch
from study.search.search_state import Searches
from study.spec import Trial
from study.tune.monitor import Monitor
from study.tune.worker_input import Bundled


class Prober(Searcher):
    """Hands Ray Tune the next run of any search.

    Args:
        searches: with what the records say.
        wanted: those of them to go on with in this run: searches over shapes go first, then the most expensive sizes.
        shares: (CPUs, GPUs) of a run.
        vocab_size: to tell what a size costs.
        monitor: knows which runs are recorded, and is told of new ones.
    """

    def __init__(
        self,
        searches: Searches,
        wanted: Sequence[SizeSearch | ShapeSearch],
        shares: Callable[[Trial], tuple[float, float]],
        vocab_size: int,
        monitor: Monitor,
    ) -> None:
        super().__init__()
        self.searches, self.shares, self.monitor = searches, shares, monitor
        self.wanted = sorted(wanted, key=lambda search: (isinstance(search, SizeSearch), -search.base.flops(vocab_size)))
        self.running: dict[str, SizeSearch | ShapeSearch] = {}
        self.failed: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Ray keeps its experiment; the search is rebuilt from the records."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """The config of the next run; None to wait, FINISHED at the end."""
        self._collect()
        for search in self.wanted:
            for trial in search.pending():
                if trial.trial_id not in self.running and trial.trial_id not in self.failed:
                    self.running[trial.trial_id] = search
                    bundled = Bundled((trial,), *self.shares(trial))
                    return {"bundle": self.monitor.expect(bundled), "bundled": bundled}
        return None if self.running else Searcher.FINISHED

    def _collect(self) -> None:
        """Take the runs that were recorded since into account; one that failed waits for another run of the study."""
        rows = self.monitor.recorder.rows
        for trial_id in [trial_id for trial_id in self.running if trial_id in rows]:
            search = self.running.pop(trial_id)
            self.searches.rows[trial_id] = rows[trial_id]
            search.see(self.searches.rows, self.searches.curves)
            if any(trial.trial_id == trial_id for trial in search.pending()):
                self.failed.add(trial_id)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Ray Tune's own space is empty: the sizes know theirs."""
        return True

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: what a run left is read from the records."""

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
        """Decide whether a run goes on; rows after the last step of one that does not are taken out of its report."""
        rows, earlier = result.get("rows") or [], result.get("earlier") or []
        curves = self.prober.searches.curves
        for row in [*earlier, *rows]:  # a run that was continued is judged by all of it, as if it had never been cut off
            curves.setdefault(row["trial_id"], {})[row["step"]] = row["val_loss"]
        trial_id = rows[0]["trial_id"] if rows else ""
        search = self.prober.running.get(trial_id)
        if search is None or result.get("done") or (last := search.stops_at(curves[trial_id])) is None:
            return str(TrialScheduler.CONTINUE)
        for reported in (rows, earlier):
            reported[:] = [row for row in reported if row["step"] <= last]
        curves[trial_id] = {step: loss for step, loss in curves[trial_id].items() if step <= last}
        return str(TrialScheduler.STOP)
