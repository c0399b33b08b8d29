"""`make bench-early-stopping`: does early stopping bend the answer? ASHA replayed offline on a study that was run in full.

Every run of the study is fed again, evaluation by evaluation, to asynchronous successive halving (Li et al. 2020, algorithm 2, in the
stopping form of Ray's AsyncHyperBand): at a rung a run goes on only if its loss is among the best 1/eta of those that came there before.
Twice: among runs of one size, and, naively, among all runs. The slope d ln L / d ln N is then fitted to what was trained to its end, and
held against the slope and the interval of the whole study. Where several learning rates were tried, it is fitted to all seeds at the best
rate of each model that a finished run shows. Runs start in random order, so that each figure is over many replays.

    python -m benchmarks.early_stopping RESULTS [--grace 0.15] [--eta 3] [--slots 2] [--replays 50]
"""

from __future__ import annotations

import argparse
import heapq
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.findings.size_law import Fitted, all_fits, observations
from analysis.fits import intervals
from analysis.fits.quantities import Slope
from analysis.table import configurations as replicates
from analysis.table import load as tables
from analysis.table.load import SAME_SIZE
from analysis.table.recipe import one_recipe

SIZE = "params_non_embedding"


@dataclass(frozen=True)
class Rule:
    """Successive halving: first rung as a share of a run's steps, reduction factor, runs side by side."""

    grace: float = 0.15
    eta: float = 3.0
    slots: int = 2

    def __post_init__(self) -> None:
        if not (0 < self.grace < 1 and self.eta > 1 and self.slots >= 1):
            raise ValueError(
                f"grace={self.grace}, eta={self.eta}, slots={self.slots}; grace lies between 0 and 1, eta above 1, slots from 1 on"
            )


@dataclass(frozen=True)
class Run:
    """One trained model: where it competes, its evaluations, and how long a step takes (any unit)."""

    trial_id: str
    group: int
    steps: NDArray[np.int64]
    losses: NDArray[np.float64]
    step_time: float


def rungs(run: Run, rule: Rule) -> list[int]:
    """Indices of the evaluations at which a run is judged: the first at or after grace * eta^k of its steps, before its last one."""
    found = []
    share = rule.grace
    while share < 1:
        index = int(np.searchsorted(run.steps, share * run.steps[-1] * (1 - 1e-9)))
        if index < len(run.steps) - 1 and index not in found:
            found.append(index)
        share *= rule.eta
    return found


def replay(runs: Sequence[Run], rule: Rule) -> dict[str, int]:
    """Last step that each run is trained to, by trial_id; runs start in the given order, `slots` side by side."""
    recorded: dict[tuple[int, int], list[float]] = {}
    ended: dict[str, int] = {}
    waiting = list(range(len(runs)))[::-1]
    events: list[tuple[float, int, int]] = []

    def start(time: float) -> None:
        if waiting:
            number = waiting.pop()
            heapq.heappush(events, (time + _until(runs[number], rule, -1), number, 0))

    for _ in range(rule.slots):
        start(0.0)
    while events:
        time, number, at = heapq.heappop(events)
        run = runs[number]
        judged = rungs(run, rule)
        if at == len(judged):
            ended[run.trial_id] = int(run.steps[-1])
            start(time)
            continue
        index = judged[at]
        others = recorded.setdefault((run.group, at), [])
        loss = float(run.losses[index])
        goes_on = math.isfinite(loss) and (not others or loss <= float(np.quantile(others, 1 / rule.eta)))
        if math.isfinite(loss):
            others.append(loss)
        if goes_on:
            heapq.heappush(events, (time + _until(run, rule, at), number, at + 1))
        else:
            ended[run.trial_id] = int(run.steps[index])
            start(time)
    return ended


def _until(run: Run, rule: Rule, at: int) -> float:
    """Time from rung `at` (-1: the start) to the next one, or to the end."""
    judged = [*rungs(run, rule), len(run.steps) - 1]
    before = 0 if at < 0 else int(run.steps[judged[at]])
    return (int(run.steps[judged[at + 1]]) - before) * run.step_time


# ---- the study ----


def read_runs(table: tables.Table) -> list[Run]:
    """The usable trials with their curves; trials of sizes within 5 % and of equal tokens share a group.

    Raises:
        ValueError: no curves, or of fewer than two evaluations.
    """
    trials, curves = table.trials, table.curves
    trials = trials.sort_values(SIZE)
    step = np.diff(np.log(trials[SIZE].to_numpy(dtype=float)), prepend=-np.inf)
    sizes = np.cumsum(step > math.log1p(SAME_SIZE))
    group = pd.factorize(pd.Series(list(zip(sizes, trials["n_tokens"], strict=True))))[0]
    held = {str(name): own for name, own in curves.dropna(subset=["val_loss"]).groupby("trial_id")}
    runs = []
    for number, trial_id, ms in zip(group, trials["trial_id"].astype(str), trials["ms_per_step"].astype(float), strict=True):
        own = held.get(trial_id)
        if own is not None and len(own) > 1:
            runs.append(Run(trial_id, int(number), own["step"].to_numpy(), own["val_loss"].to_numpy(dtype=float), ms if ms > 0 else 1.0))
    if len(runs) < 2:
        raise ValueError(f"{table.path} holds {len(runs)} trials with a curve; give the results of a study that was run in full")
    return runs


@dataclass(frozen=True)
class Answer:
    """The slope that a set of runs gives; not a number where they allow none, and then the reason."""

    slope: float
    low: float
    high: float
    n_sizes: int
    reason: str = ""

    def inside(self, other: Answer) -> bool:
        """Whether this slope lies in the other's interval."""
        return other.low <= self.slope <= other.high


def answer(trials: pd.DataFrame, at: dict[str, float] | None) -> tuple[Answer, dict[str, float]]:
    """Slope of the joint fit at the given columns (None: at its own reference, which is returned), with its profile interval."""
    n_sizes = tables_sizes(trials)
    cells = replicates.average(trials[one_recipe(trials)])
    fitted = next((f for f in all_fits(cells) if isinstance(f, Fitted)), None)
    if fitted is None or fitted.df < 1:
        return Answer(math.nan, math.nan, math.nan, n_sizes, f"{len(cells)} configurations of {n_sizes} sizes allow no interval"), at or {}
    place = at or dict(fitted.result.reference)
    found = intervals.profile(observations(fitted), Slope(place, SIZE))
    return Answer(fitted.slope(place[SIZE]), found.low, found.high, n_sizes), place


def tables_sizes(trials: pd.DataFrame) -> int:
    """Distinct sizes among trials."""
    values = np.sort(trials[SIZE].to_numpy(dtype=float))
    return int(1 + np.sum(np.diff(np.log(values)) > math.log1p(SAME_SIZE))) if len(values) else 0


def at_chosen_rates(trials: pd.DataFrame, finished: NDArray[np.bool_]) -> pd.DataFrame:
    """The finished runs; where models were tried at several learning rates, all seeds at the rate of each model's best finished run.

    That is how a search is used: it finds the rate, then every seed is trained at it. A model without a finished run drops out.
    """
    model = ["n_layer", "n_embd", "n_head", "n_tokens"]
    if trials.groupby(model)["lr"].nunique().max() <= 1:
        return trials[finished]
    best = trials[finished].sort_values("val_loss").drop_duplicates(model)[[*model, "lr"]]
    return trials.merge(best, on=[*model, "lr"])


@dataclass(frozen=True)
class Outcome:
    """What one way of stopping does to a study, over all replays.

    Args:
        within: share of replays whose slope lies in the whole study's interval.
        undefined: share of replays that allow no slope with an interval.
        unbounded: share whose slope has no bounded interval, those without any included.
        slope, width: medians over the defined ones; width is that of the slope's interval.
        sizes: mean number of sizes with a finished run.
        smallest_kept: share of replays in which a run of the smallest size is finished.
        steps: mean share of the study's steps that is trained.
    """

    within: float
    undefined: float
    unbounded: float
    slope: float
    width: float
    sizes: float
    smallest_kept: float
    steps: float


def outcome(table: tables.Table, runs: Sequence[Run], rule: Rule, n_replays: int, by_size: bool, rng: np.random.Generator) -> Outcome:
    """Replay a way of stopping in random orders and fit what is left each time."""
    trials = table.trials[table.trials["trial_id"].astype(str).isin([run.trial_id for run in runs])]
    whole, place = answer(trials, None)
    competing = runs if by_size else [Run(r.trial_id, 0, r.steps, r.losses, r.step_time) for r in runs]
    full = {run.trial_id: int(run.steps[-1]) for run in runs}
    smallest = float(trials[SIZE].min()) * (1 + SAME_SIZE)
    answers, kept_smallest, steps = [], [], []
    for _ in range(n_replays):
        ended = replay([competing[i] for i in rng.permutation(len(runs))], rule)
        finished = at_chosen_rates(trials, np.array([ended[str(name)] == full[str(name)] for name in trials["trial_id"]]))
        ended |= {str(name): full[str(name)] for name in finished["trial_id"]}
        answers.append(answer(finished, place)[0])
        kept_smallest.append(bool((finished[SIZE] <= smallest).any()))
        steps.append(sum(ended.values()) / sum(full.values()))
    defined = [a for a in answers if math.isfinite(a.slope)]
    return Outcome(
        within=sum(a.inside(whole) for a in defined) / n_replays,
        undefined=1 - len(defined) / n_replays,
        unbounded=1 - sum(math.isfinite(a.high - a.low) for a in defined) / n_replays,
        slope=float(np.median([a.slope for a in defined])) if defined else math.nan,
        width=float(np.median([a.high - a.low for a in defined])) if defined else math.nan,
        sizes=float(np.mean([a.n_sizes for a in answers])),
        smallest_kept=float(np.mean(kept_smallest)),
        steps=float(np.mean(steps)),
    )


def compare(results: Path, rule: Rule, n_replays: int, seed: int = 0) -> list[dict[str, Any]]:
    """The whole study, stopping within a size, and stopping across sizes, as rows of a table."""
    table = tables.load(results)
    runs = read_runs(table)
    whole, _ = answer(table.trials, None)
    if not math.isfinite(whole.slope):
        raise ValueError(f"{results}: {whole.reason}, so there is no slope that stopping could bend")
    facts = {"study": table.name, "runs": len(runs), "grace": rule.grace, "eta": rule.eta, "slots": rule.slots, "replays": n_replays}
    rows = [{"stopping": "none", "slope": whole.slope, "low": whole.low, "high": whole.high, "width": whole.high - whole.low}]
    rows[0] |= {"sizes": whole.n_sizes, "steps": 1.0, "within": 1.0, "undefined": 0.0, "unbounded": 0.0, "smallest_kept": 1.0}
    for name, by_size in (("within a size", True), ("across sizes", False)):
        found = outcome(table, runs, rule, n_replays, by_size, np.random.default_rng(seed))
        rows.append({"stopping": name, "low": math.nan, "high": math.nan, **found.__dict__})
    return [{**facts, **row} for row in rows]


def verdict(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the table says, in words."""
    whole, within, across = rows
    ends = f"[{whole['low']:.3f}, {whole['high']:.3f}]"
    first = f"slope of the whole study {whole['slope']:.3f} {ends} over {whole['sizes']} sizes, {whole['runs']} runs"
    second = (
        f"stopping within a size: slope {within['slope']:.3f}, inside that interval in {within['within']:.0%} of {within['replays']} "
        f"replays "
        f"and bounded in {1 - within['unbounded']:.0%}, with {within['steps']:.0%} of the steps; {within['sizes']:.1f} sizes remain"
    )
    third = (
        f"ranking sizes together: the smallest size is left in {across['smallest_kept']:.0%} of replays, {across['sizes']:.1f} of "
        f"{whole['sizes']} sizes remain, no slope at all in {across['undefined']:.0%}, inside the interval in {across['within']:.0%}"
    )
    ratio = across["width"] / whole["width"]
    wide = f"{ratio:.3g} times as wide" if math.isfinite(ratio) else "unbounded"
    return [first, second, third + f"; the interval is typically {wide}"]


def main() -> int:
    """Replay, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.early_stopping", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, nargs="?", default=Path("results/quick"))
    parser.add_argument("--grace", type=float, default=Rule.grace)
    parser.add_argument("--eta", type=float, default=Rule.eta)
    parser.add_argument("--slots", type=int, default=Rule.slots)
    parser.add_argument("--replays", type=int, default=50)
    parser.add_argument("--keep", type=Path, default=Path(__file__).parent / "results" / "early_stopping.csv", help="file of the table")
    given = parser.parse_args()
    try:
        rows = compare(given.results, Rule(given.grace, given.eta, given.slots), given.replays)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(verdict(rows)))
    from benchmarks.machine import write_csv

    write_csv(given.keep, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
