"""The search for one size's learning rate: a chain of decisions, each a pure function of the runs made so far.

First an open side is closed: a run at a third (or three times) the rate, until a lower and a higher rate are both worse than the best by
more than the noise; the range grows where the best lies at its end. Then the bracket is refined until a parabola promises no gain beyond
the noise. Nothing depends on when or where runs were made, so that a search continues from its records alone.

    decision = decide(settings, start, probes, noise)   # Try(lr) or Found(status, lr)
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from study.search.settings import SearchSettings
from study.spec import TrainConfig, Trial

STEP = 3.0
"""Factor between neighboring rates while a side is open, and by which the range grows."""
SAME = 0.05
"""Rates within so many percent (as a share) are one rate."""
NARROW = 1.3
"""A bracket whose ends are within this factor of the best needs no refinement."""
NOISE_OF_NOTHING = 0.01
"""Nats that two losses are taken to differ by, where neither replicates nor an evaluation's error are recorded."""
ENDED = ("COMPLETED", "STOPPED", "DIVERGED")
Rows = Mapping[str, Mapping[str, Any]]
Curves = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Probe:
    """One run of a size at a peak learning rate."""

    lr: float
    status: str
    """COMPLETED, STOPPED (its curve ends early) or DIVERGED"""
    curve: tuple[tuple[int, float], ...]
    """(step, val_loss), ascending; the last one of a COMPLETED probe is its result"""
    error: float | None = None
    """standard error of its last evaluation, nats"""

    @property
    def loss(self) -> float:
        """Loss at the last step; infinite unless COMPLETED."""
        return self.curve[-1][1] if self.status == "COMPLETED" and self.curve else math.inf


@dataclass(frozen=True)
class Try:
    """Run this learning rate."""

    lr: float


@dataclass(frozen=True)
class Found:
    """The search of a size is over: `tuned` where the optimum is bracketed, else `at_edge`; None where no run completed."""

    status: str
    lr: float | None


def decide(settings: SearchSettings, start: float, probes: Sequence[Probe], noise: float) -> Try | Found:
    """What to do next for a size after some runs, in any order, of which `start` is the first; by chance losses differ by `noise` nats."""
    done = [p for p in probes if p.status == "COMPLETED"]
    enough = len(probes) >= settings.max_trials
    if not done:
        return Found("at_edge", None) if enough else Try(rounded(min(p.lr for p in probes) / STEP) if probes else start)
    best = min(done, key=lambda p: p.loss)
    below, above = bracket(best, probes, noise)
    if enough:
        return Found("tuned" if below and above else "at_edge", best.lr)
    rates = [p.lr for p in probes]
    if not below:
        return Try(_beyond(min(rates), settings.low, 1 / STEP))
    if not above:
        return Try(_beyond(max(rates), settings.high, STEP))
    fitted = parabola(best, probes)
    narrow = above.lr / best.lr < NARROW and best.lr / below.lr < NARROW
    if narrow or (fitted and fitted[1] <= noise):  # nothing beyond the noise is left to gain inside the bracket
        return Found("tuned", best.lr)
    return Try(_between(best, below, above, probes, fitted[0] if fitted else best.lr))


def _beyond(outermost: float, end: float, factor: float) -> float:
    """The next rate outwards: a step, but the range's end where that step would pass it by less than half of one."""
    further = outermost * factor
    return rounded(end if 0 <= math.log(further / end, factor) < 0.5 else further)


def bracket(best: Probe, probes: Sequence[Probe], noise: float) -> tuple[Probe | None, Probe | None]:
    """The nearest lower and the nearest higher rate that are worse than the best by more than the noise; None for an open side."""
    return _beside(best, [p for p in probes if is_worse(p, best, noise)])


def _beside(best: Probe, probes: Sequence[Probe]) -> tuple[Probe | None, Probe | None]:
    """The nearest of some runs below and above the best."""
    below = max((p for p in probes if p.lr < best.lr), key=lambda p: p.lr, default=None)
    return below, min((p for p in probes if p.lr > best.lr), key=lambda p: p.lr, default=None)


def is_worse(probe: Probe, best: Probe, noise: float) -> bool:
    """Whether a run lies above the best one by more than the noise: at the end, or, where it was stopped, as it would have ended."""
    if probe.status == "DIVERGED":
        return True
    above = excess(dict(probe.curve), dict(best.curve), best.curve[-1][0])
    return above is not None and above > noise


def excess(curve: Mapping[int, float], other: Mapping[int, float], end: int) -> float | None:
    """How far a loss curve lies above another at their last common step, nats; None without one.

    Before the decay of the schedule a higher rate looks worse than it will end (LOG 2026-11-22): an excess that shrinks between the last
    two common steps is carried on to the end in a straight line, one that grows counts as it is.
    """
    common = sorted(set(curve) & set(other))
    if not common:
        return None
    step = common[-1]
    now = curve[step] - other[step]
    if step >= end or len(common) < 2 or common[-2] == 0:
        return now
    before = curve[common[-2]] - other[common[-2]]
    return min(now, now + (now - before) * (end - step) / (step - common[-2]))


def parabola(best: Probe, probes: Sequence[Probe]) -> tuple[float, float] | None:
    """Learning rate at the vertex of the parabola in ln lr through the best run and its two neighbors, and the loss below the best there.

    Returns:
        (lr, gain in nats); the vertex is kept between the neighbors. None where a neighbor is lacking or did not run to its end (halfway,
        lower rates look better than they are), or nothing curves up.
    """
    lower, upper = _neighbors(best, probes)
    if lower is None or upper is None or {lower.status, upper.status} != {"COMPLETED"}:
        return None
    x0, x2 = math.log(lower.lr / best.lr), math.log(upper.lr / best.lr)
    y0, y2 = lower.loss - best.loss, upper.loss - best.loss
    # y = a x^2 + b x through (x0, y0), (0, 0), (x2, y2)
    a = (y2 / x2 - y0 / x0) / (x2 - x0)
    b = y0 / x0 - a * x0
    if a <= 0:
        return None
    vertex = min(max(-b / (2 * a), x0), x2)
    return best.lr * math.exp(vertex), -(a * vertex**2 + b * vertex)


def _neighbors(best: Probe, probes: Sequence[Probe]) -> tuple[Probe | None, Probe | None]:
    return _beside(best, [p for p in probes if not _same(p.lr, best.lr)])


def _same(a: float, b: float) -> bool:
    return abs(math.log(a / b)) < SAME


def _between(best: Probe, below: Probe, above: Probe, probes: Sequence[Probe], vertex: float) -> float:
    """Halfway to a neighbor that did not run to its end; else the parabola's vertex; else the middle of the wider gap beside the best."""
    for near in _neighbors(best, probes):
        if near and near.status != "COMPLETED" and abs(math.log(near.lr / best.lr)) > 2 * math.log(NARROW):
            return rounded(math.sqrt(near.lr * best.lr))
    lr = rounded(vertex)
    if below.lr < lr < above.lr and not any(_same(lr, p.lr) for p in probes):
        return lr
    rates = sorted({p.lr for p in probes if below.lr <= p.lr <= above.lr})
    at = rates.index(best.lr)
    low, high = max(((rates[at - 1], best.lr), (best.lr, rates[at + 1])), key=lambda gap: gap[1] / gap[0])
    return rounded(math.sqrt(low * high))


def optimum(probes: Sequence[Probe]) -> float | None:
    """The best learning rate of a size: the parabola's vertex, else the best tried; None where no run ended."""
    done = [p for p in probes if p.status == "COMPLETED"]
    if not done:
        return None
    best = min(done, key=lambda p: p.loss)
    fitted = parabola(best, probes)
    return fitted[0] if fitted else best.lr


def noise_of(probes: Sequence[Probe]) -> float:
    """What two runs are taken to differ by where no replicates tell: the standard error of an evaluation, nats.

    Runs read the same windows, so that this is more than their evaluations really differ by.
    """
    errors = [p.error for p in probes if p.error]
    return statistics.median(errors) if errors else NOISE_OF_NOTHING


def stops_at(settings: SearchSettings, train: TrainConfig, curve: Mapping[int, float], others: Sequence[Probe], noise: float) -> int | None:
    """The step at which a run is given up: asynchronous successive halving (Li et al. 2020) among runs of one size only; None to go on.

    At each rung (grace, then `reduction` times as many steps) a run goes on while it is among the best 1/reduction of the runs that have
    been there, or within the noise of the best, or is catching up with it (see `excess`). Runs of other sizes are never compared.

    Args:
        curve: step -> val_loss of the run so far.
        others: the size's earlier runs.
    """
    for step in rungs(settings, train):
        seen = sorted(((losses[step], p) for p in others if step in (losses := dict(p.curve))), key=lambda pair: pair[0])
        if step in curve and seen:
            keep = seen[max(0, math.ceil(len(seen) / settings.reduction) - 1)][0]
            so_far = {at: loss for at, loss in curve.items() if at <= step}
            above = excess(so_far, dict(seen[0][1].curve), train.n_steps)
            if curve[step] > keep and above is not None and above > noise:
                return step
    return None


def rungs(settings: SearchSettings, train: TrainConfig) -> list[int]:
    """Steps at which runs are compared: the first evaluation at or after each rung."""
    steps, mark = [], settings.grace * train.n_steps
    while mark < train.n_steps:
        step = math.ceil(mark / train.eval_interval) * train.eval_interval
        steps += [step] if step < train.n_steps else []
        mark *= settings.reduction
    return steps


def rounded(value: float, whole: bool = False) -> float:
    """Three significant digits: a rate that can be typed, and a trial_id that does not hang on the last bit."""
    return float(round(value)) if whole else float(f"{value:.3g}")


# ---- the search of one size ----


@dataclass
class SizeSearch:
    """The search of one size: the trial that everything starts from, and the runs made so far."""

    name: str
    settings: SearchSettings
    base: Trial
    """the size at the study's own learning rate and the search's own seed; `sweeps` are those of `over` that hold it"""
    seeds: tuple[int, ...]
    """the study's: they run at what was found, and none of them has chosen it"""
    probes: dict[str, Probe] = field(default_factory=dict)
    """runs by trial_id"""
    replicate_noise: float | None = None
    """difference of two losses that chance makes, nats, where the study's other sweeps have replicates"""

    @property
    def noise(self) -> float:
        """Difference of two losses of this size that chance makes, nats."""
        return noise_of(list(self.probes.values())) if self.replicate_noise is None else self.replicate_noise

    def decide(self) -> Try | Found:
        """What to do next: from the study's own rate on, or the middle of the range where that lies outside."""
        low, own, high = self.settings.low, self.base.train.lr, self.settings.high
        start = own if low <= own <= high else rounded(math.sqrt(low * high))
        return decide(self.settings, start, list(self.probes.values()), self.noise)

    def pending(self) -> list[Trial]:
        """The run that comes next, alone: a size has one run under way; none where its search is over."""
        decision = self.decide()
        return [self.probe(decision.lr)] if isinstance(decision, Try) else []

    def runs(self) -> list[Trial]:
        """The runs made so far."""
        return [self.probe(probe.lr) for probe in self.probes.values()]

    def chosen(self) -> list[Trial]:
        """All seeds of the study at the rate that was found; empty while the search goes on."""
        end = self.decide()
        if isinstance(end, Try) or not end.lr:
            return []
        sweeps = (*self.base.sweeps, self.name)
        return [self.trial(end.lr, seed=seed, sweeps=sweeps, lr_status=end.status) for seed in self.seeds]

    def to_come(self) -> list[Trial]:
        """Runs that may still come, at made-up learning rates: for a quote, which does not depend on them."""
        if not self.pending():
            return []
        low, high = self.settings.low, self.settings.high
        count = self.settings.max_trials - len(self.probes)
        rates = [low * (high / low) ** ((i + 0.5) / count) for i in range(count)]
        return [self.trial(lr) for lr in rates] + [self.trial(high * 1.01, seed=seed) for seed in self.seeds]

    def trial(self, lr: float, **facts: Any) -> Trial:
        """This size at another learning rate."""
        return dataclasses.replace(self.base, train=dataclasses.replace(self.base.train, lr=lr), **facts)

    def probe(self, lr: float) -> Trial:
        """The trial that runs a rate."""
        return self.trial(lr, sweeps=(self.name,), may_stop=True, lr_status="searched")

    def see(self, rows: Rows, curves: Curves) -> None:
        """Read the records anew: which of these rows are runs of this size."""
        self.probes = {}
        for trial_id, row in rows.items():
            own = row["status"] in ENDED and row["seed"] == self.base.seed and row["lr"]
            if own and self.trial(float(row["lr"])).trial_id == trial_id:
                ends = {int(row["n_steps"] or 0): float(row["val_loss"])} if row["val_loss"] is not None else {}
                curve = tuple(sorted({**curves.get(trial_id, {}), **ends}.items()))
                self.probes[trial_id] = Probe(float(row["lr"]), row["status"], curve, row.get("val_loss_se"))

    def stops_at(self, curve: Mapping[int, float]) -> int | None:
        """The step at which a run under way is given up; None to go on."""
        return stops_at(self.settings, self.base.train, curve, list(self.probes.values()), self.noise)
