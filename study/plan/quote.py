"""The quote: what a study will cost, said before it runs and scored after.

Times a few steps of shapes never seen on this device, plans bundles, and puts minutes and device-hours beside the trials.

    quoted = make_quote(missing, corpus.vocab_size, options); print("\n".join(quoted.lines())); quoted.score(seconds)
"""

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from study.options import Options
from study.plan.machine import busy_cores, processors
from study.plan.memory import GROWTH, PROCESS_BYTES, is_out_of_memory
from study.plan.packing import Machine, Plan, Speeds, make_plan, to_probe
from study.plan.probe import ask
from study.spec import Trial
from study.train.branches import saved_share

WORTH_SAYING = 0.3
"""Cores held by other work from which the quote says so."""


@dataclass(frozen=True)
class Quote:
    """A plan with what it is based on."""

    plan: Plan
    machine: Machine
    vocab_size: int
    options: Options
    busy_cores: float = 0.0
    """cores that other work held when the quote was made; the quote is for a machine without it"""

    @property
    def stretch(self) -> float:
        """How much longer everything takes while the other work stays: cores that are wanted over cores there are."""
        if self.machine.kind != "cpu" or self.busy_cores <= WORTH_SAYING:
            return 1.0
        return max(1.0, (self.plan.slots * self.options.threads + self.busy_cores) / self.machine.cpus)

    @property
    def seconds_by_configuration(self) -> dict[str, float]:
        """Expected seconds of one trial, by config_id."""
        return {trial.config_id: b.seconds_each[trial.trial_id] for b in self.plan.bundles for trial in b.trials}

    def lines(self) -> list[str]:
        """What a person is told before the run."""
        plan, what = self.plan, "GPU-hours" if self.machine.kind == "cuda" else "core-hours"
        if not plan.bundles:
            return []
        at_once = f"{plan.slots} at a time" if plan.slots > 1 else "one at a time"
        sizes = {len(bundle.trials) for bundle in plan.bundles}
        bundled = f" in {len(plan.bundles)} bundles" if sizes != {1} else ""
        lines = [
            f"quote: about {duration(plan.seconds)} on {self.machine.name}, {at_once}{bundled}; "
            f"{plan.device_hours:.2g} {what}; done about {moment(plan.seconds)}",
            f"memory: up to {max(b.memory_bytes for b in plan.bundles) / 2**30:.1f} GiB per process; "
            f"slots busy {plan.utilisation:.0%} of the time",
        ]
        seconds = plan.seconds * self.stretch
        if seconds > plan.seconds:
            lines.append(
                f"other work holds about {self.busy_cores:.1f} of {self.machine.cpus:g} cores now; the quote is for a machine without it, "
                f"beside it the study takes about {duration(seconds)} and is done about {moment(seconds)}"
            )
        if saved := saved_share([trial for bundle in plan.bundles for trial in bundle.trials]):
            lines.append(f"WSD branches share their trunks: {saved:.0%} of the steps are saved")
        if price := self.options.price:
            cost = price.per_hour * plan.seconds / 3600 * max(1.0, self.machine.gpus)
            lines.append(f"price: about {price.currency}{cost:.2f} at {price.currency}{price.per_hour:g} per hour")
        return lines

    def facts(self) -> dict[str, Any]:
        """What study.json keeps of the quote."""
        return {
            "seconds": self.plan.seconds,
            "device_hours": self.plan.device_hours,
            "slots": self.plan.slots,
            "utilisation": self.plan.utilisation,
            "device": self.machine.name,
            "precision": self.machine.precision,
            "n_trials": sum(len(bundle.trials) for bundle in self.plan.bundles),
        }

    def score(self, seconds: float) -> dict[str, Any]:
        """The quote against what the run took."""
        return {"quoted_seconds": self.plan.seconds, "took_seconds": seconds, "error": self.plan.seconds / seconds - 1}


def make_quote(trials: Sequence[Trial], vocab_size: int, options: Options, meanwhile: Callable[[], None] | None = None) -> Quote:
    """Plan the trials for this machine, timing first what was never timed here.

    Args:
        meanwhile: what this process does while steps are timed; not called where all are known.

    Raises:
        ValueError: the wanted device is not on this machine.
    """
    speeds = Speeds.load()
    machine = _measure(trials, vocab_size, options, speeds, meanwhile)
    return Quote(make_plan(trials, vocab_size, machine, speeds, options), machine, vocab_size, options, busy_cores())


def requote(quoted: Quote, trials: Sequence[Trial]) -> Quote:
    """The quote of some of its trials, on the same machine and without timing anything again."""
    return replace(quoted, plan=make_plan(trials, quoted.vocab_size, quoted.machine, Speeds.load(), quoted.options))


def _measure(trials: Sequence[Trial], vocab_size: int, options: Options, speeds: Speeds, meanwhile: Callable[[], None] | None) -> Machine:
    """This machine with the arithmetic it will use; probes what `speeds` lacks and remembers it."""
    threads = options.threads
    wanted = f"{options.device}/{options.precision}/{threads}"
    place = speeds.places.get(wanted, {"name": ""})
    if (lacking := to_probe(trials, place["name"], speeds, vocab_size)) or wanted not in speeds.places:
        print(f"timing a few steps of {len(lacking)} kinds of trials, once for this machine ...", file=sys.stderr, flush=True)
        beside = meanwhile if threads < processors() else None  # else it would take from what is timed
        found = ask(lacking, vocab_size, options.device, options.precision, threads, beside)
        speeds.places[wanted] = place = found.place
        for trial, ms in zip(lacking, found.ms_per_step, strict=True):
            speeds.note(place["name"], trial, vocab_size, ms, real=False)
        speeds.save()
    return Machine(cpus=float(processors()), **place)


def learn(quoted: Quote, trials: Mapping[str, Trial], rows: Iterable[Mapping[str, Any]]) -> None:
    """Remember what real trials took per step: the next quote starts from it.

    Processor time where it was taken: what else the machine did then is no property of the trial.
    """
    speeds = Speeds.load()
    for row in rows:
        if row["status"] == "COMPLETED" and row["ms_per_step"] and row["trial_id"] in trials:
            trial = trials[row["trial_id"]]
            ms = row["cpu_ms_per_step"] or row["ms_per_step"]
            speeds.note(quoted.machine.name, trial, quoted.vocab_size, ms, real=True, bundle=row["bundle_size"] or 1)
    speeds.save()


def learn_memory(quoted: Quote, trials: Mapping[str, Trial], rows: Iterable[Mapping[str, Any]]) -> None:
    """Remember what memory this run's trials needed on a GPU: what they took, or, where memory ran out for good, more than their share."""
    if quoted.machine.kind != "cuda":
        return
    speeds = Speeds.load()
    for row in rows:
        trial, size = trials.get(row["trial_id"]), row.get("bundle_size") or 1
        needed = (row.get("peak_memory_bytes") or 0) + PROCESS_BYTES["cuda"]
        if row["status"] == "FAILED" and is_out_of_memory(row["reason"] or ""):
            needed = int(GROWTH * min(1.0, row["gpu_fraction"]) * quoted.machine.gpu_memory_bytes)
        if trial and needed > PROCESS_BYTES["cuda"]:
            speeds.note_memory(quoted.machine, trial, quoted.vocab_size, needed, size)
    speeds.save()


def moment(seconds_from_now: float) -> str:
    """`18:05`, or with the day where that is not today."""
    then = time.localtime(time.time() + seconds_from_now)
    return time.strftime("%H:%M" if then.tm_yday == time.localtime().tm_yday and seconds_from_now < 86_400 else "%a %d %b %H:%M", then)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`, `2.1 days`."""
    for limit, unit, size in ((90, "s", 1), (5400, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86_400:.3g} days"
