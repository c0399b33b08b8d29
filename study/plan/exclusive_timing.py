"""`--timing exclusive`: one trial of each kind of step trains with the device to itself, so that speeds can be compared.

These trials run first, one at a time and on a whole GPU; the others then share the machine as ever. A kind whose trials are all done
already is trained once more: training is deterministic, so its row changes in nothing but its times.

    found = with_timing(found, trials)
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from study.plan.packing import speed_key
from study.plan.quote import Quote, duration
from study.results.folder import Survey
from study.spec import Trial


def to_time(trials: Iterable[Trial], done: Mapping[str, Mapping[str, Any]]) -> list[Trial]:
    """One trial of each kind of step of which no completed one had its device alone; one that is missing anyway where there is one."""
    kinds: dict[str, list[Trial]] = {}
    for trial in trials:
        kinds.setdefault(speed_key(trial), []).append(trial)
    return [
        next((trial for trial in kind if trial.trial_id not in done), kind[0])
        for kind in kinds.values()
        if not any(done.get(trial.trial_id, {}).get("exclusive_timing") for trial in kind)
    ]


def with_timing(found: Survey, trials: Sequence[Trial]) -> Survey:
    """The survey with trials to be timed among the missing ones; rows of those that were completed stay until the new ones are written."""
    again = frozenset(trial.trial_id for trial in to_time(trials, found.done)) & set(found.done)
    missing = {trial.trial_id for trial in found.missing} | again
    return dataclasses.replace(
        found,
        done={trial_id: row for trial_id, row in found.done.items() if trial_id not in again},
        missing=tuple(trial for trial in trials if trial.trial_id in missing),
        again=again,
    )


def quote_timing(quoted: Quote, found: Survey, trials: Sequence[Trial]) -> tuple[Quote, str]:
    """The quote with the time that running alone adds, and a sentence that says so."""
    alone = {trial.trial_id for trial in to_time(trials, found.done)}
    each = {trial_id: s for bundle in quoted.plan.bundles for trial_id, s in bundle.seconds_each.items()}
    adds = sum(each.get(trial_id, 0.0) for trial_id in alone) * (1 - 1 / max(1, quoted.plan.slots))
    plan = dataclasses.replace(quoted.plan, seconds=quoted.plan.seconds + adds)
    said = f"speed comparison: {len(alone)} kinds of trials run first, each with the device to itself; that adds about {duration(adds)}"
    return dataclasses.replace(quoted, plan=plan), said
