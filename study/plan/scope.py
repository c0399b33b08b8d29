"""Which trials a run is about: the study's own, those accepted from suggestions, and of the missing ones what was asked for.

With `--timing exclusive` one trial of each kind of step trains with the device to itself, so that speeds can be compared. These run first,
one at a time and on a whole GPU; the others then share the machine as ever. A kind whose trials are all done already is trained once more:
training is deterministic, so its row changes in nothing but its times.

    command = adopt(parse(argv)); scope = find(command, trials, data_key); found, quote, lines = within_budget(command, scope, found, quote)
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.home import expanded
from study.command import DEFAULT_STUDY, Command, parse
from study.files import read_json
from study.plan import suggestion
from study.plan.budget import choose
from study.plan.packing import speed_key
from study.plan.quote import Quote, duration, requote
from study.results.folder import Survey
from study.spec import Trial


def adopt(command: Command) -> Command:
    """With --from-suggestion, the command for the study and the results folder that the suggestion was made for.

    Raises:
        ValueError: no such suggestion, or it was made for another study than the one given.
    """
    if not command.options.from_suggestion:
        return command
    path = expanded(command.options.from_suggestion, "from-suggestion")
    given = suggestion.read(path)
    nothing_given = command.name == DEFAULT_STUDY and command.study == parse([]).study
    if command.study != given.study and not nothing_given:
        raise ValueError(
            f"the suggestion at {path} was made for the study {given.name}, not for what the command line says; "
            "leave out STUDY and its flags, or suggest from that study's own results"
        )
    out = command.options.out or (str(given.results) if given.results else "")
    if not out:
        raise ValueError(f"{path} lies outside of its results folder; say with --out where the results of the study {given.name} are")
    return dataclasses.replace(command, name=given.name, study=given.study, options=dataclasses.replace(command.options, out=out))


@dataclass(frozen=True)
class Scope:
    """The trials of a results folder's study and which of them this run is about."""

    trials: list[Trial]
    """the study's, then the suggested ones"""
    suggested: list[dict[str, Any]]
    """accepted suggestions, as study.json keeps them"""
    wanted: frozenset[str] | None
    """trial_ids to which --from-suggestion limits this run; None is all"""


def find(command: Command, trials: Sequence[Trial], data_key: str) -> Scope:
    """The scope of a run: reads the accepted suggestions of the results folder and the one that is given.

    Raises:
        ValueError: a suggestion that cannot be used.
    """
    facts, path = command.out / "study.json", command.options.from_suggestion
    held = read_json(facts).get("suggested")
    given = suggestion.read(expanded(path, "from-suggestion")).trials if path else ()
    wanted = frozenset(t.trial_id for t in suggestion.accepted(command.study, given, data_key)) if path else None
    own = {trial.trial_id for trial in trials}
    kept, more = [], []
    for entry in [*suggestion.checked(facts, held if isinstance(held, list) else []), *given]:
        try:
            (trial,) = suggestion.accepted(command.study, [entry], data_key)
        except ValueError:  # accepted once, impossible since the study's centre changed: kept, for it may change back
            kept.append(entry)
            continue
        if trial.trial_id not in own:
            own.add(trial.trial_id)
            kept.append(entry)
            more.append(trial)
    return Scope([*trials, *more], kept, wanted)


def within_budget(command: Command, scope: Scope, found: Survey, quoted: Quote | None) -> tuple[Survey, Quote | None, list[str]]:
    """The survey and the quote of what fits the budget, and what a person is told of it.

    Raises:
        ValueError: the budget is too small for one trial, or needs a quote and there is none.
    """
    budget = command.options.budget
    if budget is None or not found.missing:
        return found, quoted, []
    if quoted is None:
        if not budget.wall_s:
            raise ValueError(f"budget={budget} needs a quote, and there is none on a cluster; give a wall time such as 2h")
        return found, None, [f"budget {budget}: there is no quote, so trials run in the usual order until that time is over"]

    chosen = choose(found.missing, scope.trials, found.done, quoted.plan, budget, lambda part: requote(quoted, part).plan, quoted.stretch)
    lines = chosen.lines(command.options.dry_run)
    return dataclasses.replace(found, missing=chosen.trials), requote(quoted, chosen.trials), lines


# ---- speeds that can be compared ----


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
