"""Which trials a run is about: the study's own, those accepted from suggestions, and of the missing ones what was asked for.

command = adopt(parse(argv)); scope = find(command, trials, out, data_key); found, quoted, lines = scope.narrow(...)
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.home import expanded
from study.command import DEFAULT_STUDY, Command, parse
from study.files import read_json
from study.plan import suggestion
from study.plan.budget import choose
from study.plan.packing import Plan
from study.plan.quote import Quote, requote
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
    """The trials of a results folder's study and which of them this run is about.

    Args:
        trials: the study's, then the suggested ones.
        suggested: accepted suggestions, as study.json keeps them.
        wanted: trial_ids to which --from-suggestion limits this run; None is all.
    """

    trials: list[Trial]
    suggested: list[dict[str, Any]]
    wanted: frozenset[str] | None

    def asked_for(self, found: Survey) -> Survey:
        """The survey with those missing trials only that this run is about."""
        if self.wanted is None:
            return found
        return dataclasses.replace(found, missing=tuple(t for t in found.missing if t.trial_id in self.wanted))


def find(command: Command, trials: Sequence[Trial], out: Path, data_key: str) -> Scope:
    """The scope of a run: reads the accepted suggestions of the results folder and the one that is given.

    Raises:
        ValueError: a suggestion that cannot be used.
    """
    held = read_json(out / "study.json").get("suggested")
    path = command.options.from_suggestion
    given = suggestion.read(expanded(path, "from-suggestion")).trials if path else ()
    wanted = frozenset(t.trial_id for t in suggestion.accepted(command.study, given, data_key)) if path else None
    entries = suggestion.joined(suggestion.checked(out / "study.json", held if isinstance(held, list) else []), given)
    own = {trial.trial_id for trial in trials}
    kept, more = [], []
    for entry in entries:
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

    def replan(part: Sequence[Trial]) -> Plan:
        return requote(quoted, part, command.options).plan

    chosen = choose(found.missing, scope.trials, found.done, quoted.plan, budget, replan, quoted.stretch)
    smaller = dataclasses.replace(found, missing=chosen.trials)
    return smaller, requote(quoted, chosen.trials, command.options), chosen.lines(command.options.dry_run)
