"""Trials suggested by the analysis, on their way into a study: the file `report/suggestion.json` and what it means as trials.

A suggestion is plain JSON: the study it was made for (every default spelled out) and, for each trial, the changes to the study's centre and
a seed. Accepted suggestions are kept in the study.json of the results folder, so that every later run of the study holds them.
Imports neither torch nor ray.

    found = read(Path("results/quick")); trials = accepted(study, found.trials, data_key)
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from models.config import Shape
from study.spec import DataConfig, Study, TrainConfig, Trial, changed

KIND = "suggestion"
FILE = Path("report") / "suggestion.json"
SWEEP = "suggested"
"""Sweep of a suggested trial that belongs to none of the study's own."""


@dataclass(frozen=True)
class Suggestion:
    """What was suggested for which study, as it was then."""

    name: str
    study: Study
    trials: tuple[dict[str, Any], ...]
    """for each trial `change` (fields of the centre to values), `seed` and `sweeps`"""
    results: Path | None
    """the results folder that the file lies in, or None where it was moved away"""


def read(path: Path) -> Suggestion:
    """A suggestion from its file or from the results folder that holds it.

    Raises:
        ValueError: there is none, or the file is something else; the message says what to do.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"there is no suggestion at {file}; make one with: python -m analysis RESULTS --suggest 5")
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as a suggestion ({str(error).splitlines()[0][:80]}); make it anew") from None
    if not isinstance(body, dict) or body.get("kind") != KIND or not isinstance(body.get("trials"), list) or not body["trials"]:
        raise ValueError(f"{file} is no suggestion; give the file that python -m analysis RESULTS --suggest 5 wrote, or its results folder")
    trials = tuple(checked(file, body["trials"]))
    home = file.resolve().parent.parent
    there = file.parent.name == FILE.parent.name and (home / "study.json").is_file()
    return Suggestion(str(body.get("name") or "study"), study_of(body.get("study"), file), trials, home if there else None)


def checked(file: Path, entries: Sequence[Any]) -> list[dict[str, Any]]:
    """Suggested trials from JSON, with nothing in them but what makes a trial; ValueError where one is no such thing."""
    kept = []
    for entry in entries:
        sound = isinstance(entry, dict) and isinstance(entry.get("change"), dict) and isinstance(entry.get("seed"), int)
        if not sound or not isinstance(entry.get("sweeps", []), list):
            raise ValueError(f"{file} holds a trial without change and seed ({str(entry)[:60]}); make the suggestion anew")
        kept.append({"change": dict(entry["change"]), "seed": entry["seed"], "sweeps": [str(name) for name in entry.get("sweeps", [])]})
    return kept


def study_of(facts: Any, source: Path) -> Study:
    """A study from its JSON form (`dataclasses.asdict`), as study.json and suggestions hold it.

    Raises:
        ValueError: it is not one, or has values that a study refuses.
    """
    groups = {"model": Shape, "train": TrainConfig, "data": DataConfig}
    try:
        held = dict(facts)
        parts: dict[str, Any] = {name: kind(**held.pop(name)) for name, kind in groups.items()}
        known = {f.name for f in fields(Study)}
        parts |= {name: tuple(value) if isinstance(value, list) else value for name, value in held.items() if name in known}
        if missing := set(held) - known:
            raise TypeError(f"unknown fields {sorted(missing)}")
        return Study(**parts)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{source} does not hold a study of this version ({str(error)[:100]}); run the study again, then ask anew"
        ) from None


def accepted(study: Study, entries: Sequence[Mapping[str, Any]], data_key: str = "") -> list[Trial]:
    """The suggested trials of a study, each once, in order.

    Raises:
        ValueError: an entry asks for an impossible shape, an unknown field or an impossible seed.
    """
    found: dict[str, Trial] = {}
    for entry in entries:
        if not 0 <= entry["seed"] < 2**31:
            raise ValueError(f"suggested seed {entry['seed']} must lie between 0 and 2147483647; make the suggestion anew")
        shape, train = changed(study, entry["change"], SWEEP)
        trial = Trial(shape, train, study.data, entry["seed"], data_key, tuple(entry["sweeps"]) or (SWEEP,))
        found.setdefault(trial.trial_id, trial)
    return list(found.values())
