"""Searches of a study: their sizes, what the records say about each, and the trials that follow.

A search keeps nothing of its own. The tables hold every run; sizes, brackets and tuned learning rates are worked out from them again and
again, so that a search goes on after any interruption, and on another machine. Imports neither torch nor ray.

    searches = read(study, data_key, out, corpus.sha256, plain); trials = searches.trials()
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.config import Shape
from study import records
from study.data.corpus import expected_vocab_size
from study.search.architecture import CHARACTERS, ShapeSearch
from study.search.learning_rate import SizeSearch
from study.search.settings import SearchSettings, ShapeSettings
from study.spec import RECIPE_VERSION, Study, TrainConfig, Trial, changed, expand
from study.sweeps import Sweep

SEED_OFFSET = 1000
"""A search runs at the study's first seed and so many, or the next that is none of its own: what it finds is not chosen by luck that the
study's seeds share."""


@dataclass
class Searches:
    """All searches of a study."""

    study: Study
    plain: list[Trial]
    """the study's other trials, known beforehand; their replicates measure the noise"""
    all: list[SizeSearch | ShapeSearch]
    rows: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """what the records say, by trial_id"""
    curves: dict[str, dict[int, float]] = field(default_factory=dict)
    """step -> val_loss of each recorded trial"""

    def __bool__(self) -> bool:
        return bool(self.all)

    def see(self, rows: dict[str, Mapping[str, Any]], curves: dict[str, dict[int, float]]) -> None:
        """Read the records anew: rows of the present recipe and data, and all curves."""
        self.rows, self.curves = rows, curves
        noise = noise_between_runs([rows[t.trial_id] for t in self.plain if t.trial_id in rows])
        for search in self.all:
            if isinstance(search, SizeSearch):
                search.replicate_noise = noise
            search.see(rows, curves)

    def trials(self) -> list[Trial]:
        """The study's trials as far as they are known: other sweeps', the searches' runs so far and those at tuned rates; each once."""
        order = {sweep.name: i for i, sweep in enumerate(self.study.parsed_sweeps)}
        known = merged([*self.plain, *(t for s in self.all for t in s.runs()), *(t for s in self.all for t in s.chosen())])
        return [dataclasses.replace(t, sweeps=tuple(sorted(t.sweeps, key=lambda name: order.get(name, -1)))) for t in known]

    def expected(self) -> list[Trial]:
        """One trial of each size of the searches, at the study's own learning rate; the center of shapes."""
        return [search.base for search in self.all]

    def to_come(self) -> list[Trial]:
        """Runs that may still come: for a quote, which is then an upper bound."""
        return [trial for search in self.all for trial in search.to_come()]

    def lines(self) -> list[str]:
        """What a person is told before the run."""
        told = [_told(name, list(own)) for name, own in itertools.groupby(self.all, key=lambda search: search.name)]
        many = len(self.to_come())
        return [*told, *([f"the quote holds {many} runs that searches may make, and is an upper bound"] if many else [])]


def _told(name: str, own: Sequence[SizeSearch | ShapeSearch]) -> str:
    """A line about one sweep."""
    settings = own[0].settings
    if isinstance(settings, ShapeSettings):
        ranges = ", ".join(f"{key} {low:g} to {high:g}" for key, (low, high) in settings.ranges.items())
        limits = "".join(f", {cost} at most {limit:g}" for cost, limit in settings.limits.items())
        return f"search {name}: {ranges}: loss against {settings.against}{limits}, {settings.max_trials} runs"
    sizes = [search for search in own if isinstance(search, SizeSearch)]
    done, seeds = sum(not size.pending() for size in sizes), len(sizes[0].seeds)
    early = f"; a run may be stopped from {settings.grace:.0%} of its steps on" if settings.grace < 1 else ""
    rates = f"lr {settings.low:g} to {settings.high:g} at {len(sizes)} sizes"
    text = f"search {name}: {rates}, at most {settings.max_trials} runs each on a seed of their own, then {seeds} seeds"
    return text + early + (f"; {done} sizes are searched" if done else "")


def plan(study: Study, data_key: str = "") -> Searches:
    """The searches of a study before anything was recorded.

    Raises:
        ValueError: a search has no sizes, names a sweep that is not there, or asks for an impossible shape.
    """
    sweeps = {sweep.name: sweep for sweep in study.parsed_sweeps}
    found: list[SizeSearch | ShapeSearch] = []
    seed = next(seed for i in itertools.count(SEED_OFFSET) if (seed := (study.seeds[0] + i) % 2**31) not in study.seeds)
    for sweep in sweeps.values():
        if isinstance(sweep.search, ShapeSettings):
            base = Trial(*changed(study, {}, sweep.name), study.data, study.seeds[0], data_key, (sweep.name,))
            of_characters = study.data.tokenizer == "char" and not study.data.vocab_size
            vocab_size = CHARACTERS if of_characters else expected_vocab_size(study.data)
            found.append(ShapeSearch(sweep.name, sweep.search, study, base, vocab_size))
        elif sweep.search is not None:
            for (shape, train), names in _sizes(study, sweep, sweeps).items():
                base = Trial(shape, train, study.data, seed, data_key, names)
                found.append(SizeSearch(sweep.name, sweep.search, base, study.seeds))
    searches = Searches(study, expand(study, data_key), found)
    searches.see({}, {})
    for search in found:
        if isinstance(search, ShapeSearch) and not search.chain:
            raise ValueError(f"sweep {search.name!r} has an empty search space: no shape in its ranges is within its limits; widen them")
    return searches


def read(study: Study, data_key: str, out: Path, data_sha256: str, plain: Sequence[Trial]) -> Searches:
    """The searches of a study with what its results folder says about them; `plain` are the study's other trials."""
    searches = dataclasses.replace(plan(study, data_key), plain=list(plain))
    if searches:
        refresh(searches, out, data_sha256)
    return searches


def refresh(searches: Searches, out: Path, data_sha256: str) -> None:
    """Read the records anew; rows of an older recipe or of other data count for nothing, files that cannot be read neither."""
    rows = records.read(out, "trials", problems=[]).to_pylist()
    curves: dict[str, dict[int, float]] = {}
    for line in records.read(out, "curves", problems=[]).select(["trial_id", "step", "val_loss"]).to_pylist():
        curves.setdefault(line["trial_id"], {})[line["step"]] = line["val_loss"]
    present = [row for row in rows if row["data_sha256"] == data_sha256 and row["recipe_version"] == RECIPE_VERSION]
    searches.see({row["trial_id"]: row for row in present}, curves)


def _sizes(study: Study, sweep: Sweep, sweeps: Mapping[str, Sweep]) -> dict[tuple[Shape, TrainConfig], tuple[str, ...]]:
    """Shape and recipe (at the study's own learning rate) of each size, with the sweeps of `over` that hold it."""
    assert isinstance(sweep.search, SearchSettings)
    wrong = [name for name in sweep.search.over if name not in sweeps or sweeps[name].search]
    if wrong:
        others = [name for name, other in sweeps.items() if not other.search]
        raise ValueError(f"sweep {sweep.name!r}: over={wrong[0]} is no sweep to search over; the study has {', '.join(others) or 'none'}")
    found: dict[tuple[Shape, TrainConfig], list[str]] = {}
    for name in sweep.search.over:
        for change in sweeps[name].changes():
            own = {key: value for key, value in change.items() if key != "lr"}
            found.setdefault(changed(study, own, name), []).append(name)
    if sweep.factors or not sweep.search.over:
        for change in sweep.changes():
            found.setdefault(changed(study, change, sweep.name), [])
    return {key: tuple(dict.fromkeys(names)) for key, names in found.items()}


def merged(trials: Iterable[Trial]) -> list[Trial]:
    """Each trial once, in its first place, with all its sweeps; one that a sweep wants whole may not stop."""
    found: dict[str, Trial] = {}
    for trial in trials:
        old = found.get(trial.trial_id)
        if old is None:
            found[trial.trial_id] = trial
            continue
        status = old.lr_status if old.lr_status != "fixed" else trial.lr_status
        sweeps = tuple(dict.fromkeys((*old.sweeps, *trial.sweeps)))
        found[trial.trial_id] = dataclasses.replace(old, sweeps=sweeps, lr_status=status, may_stop=old.may_stop and trial.may_stop)
    return list(found.values())


def noise_between_runs(replicates: Sequence[Mapping[str, Any]]) -> float | None:
    """Difference of two losses that chance makes: sqrt(2) times the pooled standard deviation between seeds; None without replicates."""
    groups: dict[str, list[float]] = {}
    for row in (row for row in replicates if row["status"] == "COMPLETED"):
        groups.setdefault(row["config_id"], []).append(float(row["val_loss"]))
    many = [losses for losses in groups.values() if len(losses) > 1]
    if not many:
        return None
    squares = sum(statistics.variance(losses) * (len(losses) - 1) for losses in many)
    return math.sqrt(2 * squares / sum(len(losses) - 1 for losses in many))
