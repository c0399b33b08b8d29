"""Searches of a study: their sizes, what the records say about each, and the trials that follow.

A search keeps nothing of its own. The tables hold every run; sizes, brackets, tuned and transferred learning rates are worked out from them
again and again, so that a search goes on after any interruption, and on another machine. Imports neither torch nor ray.

    searches = read(study, data_key, out, corpus.sha256, plain); trials = searches.trials()
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.config import Shape
from study.data.corpus import expected_vocab_size
from study.search.architecture import CHARACTERS, ShapeSearch, most_expensive, suggest, unfold
from study.search.learning_rate import Decision, Found, Point, Probe, decide, noise_of, optimum, predict_rate, rate_law, rounded
from study.search_settings import WHOLE, SearchSettings, ShapeSettings
from study.spec import RECIPE_VERSION, Study, TrainConfig, Trial, changed, expand
from study.sweeps import Sweep, parse_sweep

ENDED = ("COMPLETED", "STOPPED", "DIVERGED")


@dataclass
class SizeSearch:
    """The search of one size: the trial that everything starts from, and the runs made so far."""

    name: str
    settings: SearchSettings
    base: Trial
    """the size at the study's own learning rate, first seed; `sweeps` are those of `over` that hold it"""
    probes: dict[str, Probe] = field(default_factory=dict)
    """runs by trial_id"""
    failed: str = ""
    """why the search of this size waits for another run of the study"""

    @property
    def start(self) -> Point:
        """The first point: the study's own recipe, brought into the ranges."""
        return {name: self._within(name) for name in self.settings.fields}

    def _within(self, name: str) -> float:
        low, high = self.settings.ranges[name]
        own = float(getattr(self.base.train, name))
        return own if low <= own <= high else rounded(math.sqrt(low * high), name in WHOLE)

    def noise(self, replicate_noise: float | None) -> float:
        """Difference of two losses of this size that chance makes, nats."""
        return noise_of(list(self.probes.values())) if replicate_noise is None else replicate_noise

    def decide(self, replicate_noise: float | None) -> Decision:
        """What to do next."""
        return decide(self.settings, self.start, list(self.probes.values()), self.noise(replicate_noise))

    def trial(self, point: Point, seed: int | None = None, **facts: Any) -> Trial:
        """This size at another point. A larger batch takes fewer steps: equal tokens are what runs of a size have in common."""
        base = self.base.train
        values = {name: int(value) if name in WHOLE else float(value) for name, value in point.items()}
        if "batch_size" in values:
            values["n_steps"] = max(1, round(base.n_steps * base.batch_size / values["batch_size"]))
        train = dataclasses.replace(base, **values)  # type: ignore[arg-type]
        seed = self.base.seed if seed is None else seed
        return dataclasses.replace(self.base, train=train, seed=seed, **facts)

    def probe(self, point: Point) -> Trial:
        """The trial that runs a point."""
        return self.trial(point, sweeps=(self.name,), may_stop=True)

    def see(self, row: Mapping[str, Any], curve: Sequence[tuple[int, float]]) -> bool:
        """Take a row into account where it is a run of this size; returns whether it is."""
        if row["seed"] != self.base.seed or row["trial_id"] in self.probes or row["status"] not in ENDED:
            return False
        point = {name: row.get(name) for name in self.settings.fields}
        if "warmup_steps" in point and point["warmup_steps"] is None:
            point["warmup_steps"] = self.base.train.warmup_steps
        known = {name: float(value) for name, value in point.items() if value is not None}
        if len(known) < len(point) or self.trial(known).trial_id != row["trial_id"]:
            return False
        ends = [(int(row["n_steps"] or 0), float(row["val_loss"]))] if row["val_loss"] is not None else []
        self.probes[row["trial_id"]] = Probe(known, row["status"], tuple(sorted({*curve, *ends})), row["val_loss_se"])
        return True


@dataclass
class Searches:
    """All searches of a study."""

    study: Study
    plain: list[Trial]
    """the study's other trials, known beforehand; their replicates measure the noise"""
    sizes: list[SizeSearch]
    transfers: dict[str, list[Trial]]
    """by sweep: trials (first seed) of the sizes that take their learning rate from the law"""
    shapes: list[ShapeSearch] = field(default_factory=list)
    """searches over shapes"""
    rows: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """what the records say of all trials, by trial_id"""
    replicate_noise: float | None = None
    """difference of two losses that chance makes, nats, where the study's other sweeps have replicates"""

    def __bool__(self) -> bool:
        return bool(self.sizes or self.shapes)

    def see(self, rows: Iterable[Mapping[str, Any]], curves: Mapping[str, Sequence[tuple[int, float]]]) -> None:
        """Read the records anew.

        Args:
            rows: of `trials`, of the present recipe and data.
            curves: (step, val_loss) of each trial.
        """
        rows = list(rows)
        self.rows = {row["trial_id"]: row for row in rows}
        for size in self.sizes:
            size.probes.clear()
            own = [row for row in rows if (row["n_layer"], row["n_embd"], row["n_head"]) == _shape(size.base)]
            for row in own:
                size.see(row, curves.get(row["trial_id"], ()))
        ids = {trial.trial_id for trial in self.plain}
        self.replicate_noise = noise_between_runs([row for row in rows if row["trial_id"] in ids and row["status"] == "COMPLETED"])

    def found(self, size: SizeSearch) -> Found | None:
        """How the search of a size ended; None while it goes on."""
        decision = size.decide(self.replicate_noise)
        return decision if isinstance(decision, Found) else None

    def tuned(self) -> list[Trial]:
        """All seeds of every size whose search is over, at its learning rate."""
        ends = [(size, end) for size in self.sizes if (end := self.found(size)) and end.point]
        return [
            size.trial(end.point or {}, seed, sweeps=(*size.base.sweeps, size.name), lr_status=end.status)
            for size, end in ends
            for seed in self.study.seeds
        ]

    def transferred(self) -> list[Trial]:
        """All seeds of the sizes to which the law lr(N) is carried, once every search is over and three sizes are bracketed."""
        trials = []
        for name, targets in self.transfers.items():
            own = [size for size in self.sizes if size.name == name]
            ends = [self.found(size) for size in own]
            law = None if None in ends else rate_law(self.optima(own))
            for base in targets if law else []:
                lr = rounded(predict_rate(law, base.shape.params_non_embedding)) if law else 0.0
                train = dataclasses.replace(base.train, lr=lr)
                trials += [
                    dataclasses.replace(base, train=train, seed=seed, sweeps=(name,), lr_status="transferred") for seed in self.study.seeds
                ]
        return trials

    def optima(self, sizes: Iterable[SizeSearch]) -> list[tuple[float, float]]:
        """(params_non_embedding, best learning rate) of the sizes whose optimum is bracketed."""
        tuned = [size for size in sizes if (end := self.found(size)) and end.status == "tuned"]
        return [(float(size.base.shape.params_non_embedding), optimum(list(size.probes.values())) or 0.0) for size in tuned]

    def trials(self) -> list[Trial]:
        """The study's trials as far as they are known: other sweeps', the searches' runs so far, tuned and transferred ones; each once."""
        probes = [size.probe(probe.point) for size in self.sizes for probe in size.probes.values()]
        order = {parse_sweep(text).name: i for i, text in enumerate(self.study.sweeps)}
        chains = [trial for shapes in self.shapes for trial in unfold(shapes, self.rows)[0] if trial.trial_id in self.rows]
        known = merged([*self.plain, *probes, *chains, *self.tuned(), *self.transferred()])
        return [dataclasses.replace(t, sweeps=tuple(sorted(t.sweeps, key=lambda name: order.get(name, -1)))) for t in known]

    def expected(self) -> list[Trial]:
        """One trial of each size of the searches and of the law's transfer, at the study's own learning rate; the center of shapes."""
        carried = [base for targets in self.transfers.values() for base in targets]
        return [*(size.base for size in self.sizes), *carried, *(shapes.base for shapes in self.shapes)]

    def upper_bound(self) -> list[Trial]:
        """Runs that may still come, at made-up learning rates: for a quote, which does not depend on them."""
        trials = []
        for size in self.sizes:
            if self.found(size) is None:
                low, high = size.settings.ranges["lr"]
                count = size.settings.max_trials - len(size.probes)
                rates = [low * (high / low) ** ((i + 0.5) / count) for i in range(count)]
                trials += [size.trial({**size.start, "lr": lr}) for lr in rates]
                trials += [size.trial({**size.start, "lr": high * 1.01}, seed) for seed in self.study.seeds[1:]]
        waiting = [base for targets in self.transfers.values() for base in targets] if not self.transferred() else []
        trials += [dataclasses.replace(base, seed=seed) for base in waiting for seed in self.study.seeds]
        return trials + [trial for shapes in self.shapes for trial in most_expensive(shapes, self.rows)]

    def lines(self) -> list[str]:
        """What a person is told before the run."""
        told = []
        for name in dict.fromkeys(size.name for size in self.sizes):
            own = [size for size in self.sizes if size.name == name]
            settings, done = own[0].settings, [size for size in own if self.found(size)]
            ranges = ", ".join(f"{key} {low:g} to {high:g}" for key, (low, high) in settings.ranges.items())
            text = (
                f"search {name}: {ranges} at {len(own)} sizes, at most {settings.max_trials} runs each, then {len(self.study.seeds)} seeds"
            )
            early = f"; a run may be stopped from {settings.grace:.0%} of its steps on" if settings.early_stopping else ""
            status = f"; {len(done)} sizes are searched" if done else ""
            more = f"; the law lr(N) sets {len(self.transfers[name])} sizes more" if self.transfers.get(name) else ""
            told.append(text + early + more + status)
        for shapes in self.shapes:
            ranges = ", ".join(f"{key} {low:g} to {high:g}" for key, (low, high) in shapes.settings.ranges.items())
            limits = "".join(f", {name} at most {limit:g}" for name, limit in shapes.settings.limits.items())
            told.append(
                f"search {shapes.name}: {ranges}: loss against {shapes.settings.against}{limits}, {shapes.settings.max_trials} runs"
            )
        many = len(self.upper_bound())
        return [*told, *([f"the quote holds {many} runs that searches may make, and is an upper bound"] if many else [])]


def plan(study: Study, data_key: str = "") -> Searches:
    """The searches of a study before anything was recorded.

    Raises:
        ValueError: a search has no sizes, names a sweep that is not there, or asks for an impossible shape.
    """
    sweeps = {sweep.name: sweep for sweep in map(parse_sweep, study.sweeps)}
    sizes, transfers, shapes = [], {}, []
    for sweep in sweeps.values():
        if isinstance(sweep.search, ShapeSettings):
            base = _trial(study, *changed(study, {}, sweep.name), data_key, (sweep.name,))
            of_characters = study.data.tokenizer == "char" and not study.data.vocab_size
            vocab_size = CHARACTERS if of_characters else expected_vocab_size(study.data)
            shapes.append(ShapeSearch(sweep.name, sweep.search, study, base, vocab_size))
        elif sweep.search is not None:
            own = [_trial(study, shape, train, data_key, names) for (shape, train), names in _sizes(study, sweep, sweeps).items()]
            sizes += [SizeSearch(sweep.name, sweep.search, base) for base in own]
            larger = [changed(study, change, sweep.name) for change in _transfers(sweep)]
            known = {base.shape for base in own}
            transfers[sweep.name] = [_trial(study, shape, train, data_key, ()) for shape, train in larger if shape not in known]
    for search in shapes:
        if not suggest(search, []):
            raise ValueError(f"sweep {search.name!r} has an empty search space: no shape in its ranges is within its limits; widen them")
    return Searches(study, expand(study, data_key), sizes, transfers, shapes)


def read(study: Study, data_key: str, out: Path, data_sha256: str, plain: Sequence[Trial]) -> Searches:
    """The searches of a study with what its results folder says about them; `plain` are the study's other trials."""
    searches = dataclasses.replace(plan(study, data_key), plain=list(plain))
    if searches:
        refresh(searches, out, data_sha256)
    return searches


def refresh(searches: Searches, out: Path, data_sha256: str) -> None:
    """Read the records anew; rows of an older recipe or of other data count for nothing, files that cannot be read neither."""
    from study import records

    rows = records.read(out, "trials", problems=[]).to_pylist()
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in records.read(out, "curves", problems=[]).select(["trial_id", "step", "val_loss"]).to_pylist():
        curves.setdefault(line["trial_id"], []).append((line["step"], line["val_loss"]))
    searches.see([row for row in rows if row["data_sha256"] == data_sha256 and row["recipe_version"] == RECIPE_VERSION], curves)


def _sizes(study: Study, sweep: Sweep, sweeps: Mapping[str, Sweep]) -> dict[tuple[Shape, TrainConfig], tuple[str, ...]]:
    """Shape and recipe (at the study's own learning rate) of each size, with the sweeps of `over` that hold it."""
    assert isinstance(sweep.search, SearchSettings)
    wrong = [name for name in sweep.search.over if name not in sweeps or sweeps[name].search]
    if wrong:
        others = [name for name, other in sweeps.items() if not other.search]
        raise ValueError(f"sweep {sweep.name!r}: over={wrong[0]} is no sweep to search over; the study has {', '.join(others) or 'none'}")
    found: dict[tuple[Shape, TrainConfig], list[str]] = {}
    for name in sweep.search.over:
        for change in sweeps[name].changes(study.model):
            own = {key: value for key, value in change.items() if key != "lr"}
            found.setdefault(changed(study, own, name), []).append(name)
    if sweep.factors or not sweep.search.over:
        for change in sweep.changes(study.model):
            found.setdefault(changed(study, change, sweep.name), [])
    return {key: tuple(dict.fromkeys(names)) for key, names in found.items()}


def _transfers(sweep: Sweep) -> list[dict[str, Any]]:
    assert isinstance(sweep.search, SearchSettings)
    given = dict(sweep.search.transfer)
    return dataclasses.replace(sweep, factors=given).changes(Shape()) if given else []


def _trial(study: Study, shape: Shape, train: TrainConfig, data_key: str, sweeps: tuple[str, ...]) -> Trial:
    return Trial(shape, train, study.data, study.seeds[0], data_key, sweeps)


def _shape(trial: Trial) -> tuple[int, int, int]:
    return trial.shape.n_layer, trial.shape.n_embd, trial.shape.n_head


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
    for row in replicates:
        groups.setdefault(row["config_id"], []).append(float(row["val_loss"]))
    many = [losses for losses in groups.values() if len(losses) > 1]
    if not many:
        return None
    squares = sum(statistics.variance(losses) * (len(losses) - 1) for losses in many)
    return math.sqrt(2 * squares / sum(len(losses) - 1 for losses in many))
