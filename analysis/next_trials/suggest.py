"""The next best trials: which of those not yet run would shrink the interval of a named quantity most, per device-hour.

    made = suggest(table.load(results), "alpha", 5); write(results, made); print(text(made))

How: `analysis.next_trials.optimal_design`. What could be trained: `analysis.next_trials.candidates`. Nothing here runs anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.estimate import Refusal
from analysis.findings import conclude as conclusions
from analysis.findings.size_law import AT_LENGTH, Fitted, all_fits, observations, runs_shared
from analysis.findings.sweeps import find_sweeps
from analysis.fits import intervals
from analysis.fits.quantities import Loss, Parameter, Quantity, Slope, read
from analysis.next_trials import candidates
from analysis.next_trials.candidates import Candidate
from analysis.next_trials.optimal_design import Aim, ContrastAim, Counts, CurveAim, Ranked, choose, scatter
from analysis.table import configurations as replicates
from analysis.table.configurations import Configurations
from analysis.table.load import Table
from analysis.table.recipe import one_recipe
from study.plan.suggestion import FILE, KIND, study_of
from study.spec import Study

SCHEMA_VERSION = "1.0"
FORMS = "slope, alpha, E, loss@2M (the loss at 2,000,000 parameters), each also of one sweep (slope:width), or contrast:depth"


# ---- what is asked ----


@dataclass(frozen=True)
class Asked:
    """A quantity by its parts: what it is, at which size, in which sweep ("" for the joint fit)."""

    text: str
    kind: str
    size: float
    sweep: str


def parse(text: str) -> Asked:
    """`alpha`, `slope:width`, `loss@2M`, `contrast:depth`.

    Raises:
        ValueError: another form.
    """
    head, _, sweep = text.strip().partition(":")
    kind, _, size = head.partition("@")
    if kind not in ("alpha", "E", "slope", "loss", "contrast") or bool(size) != (kind == "loss") or (kind == "contrast" and not sweep):
        raise ValueError(f"--for {text!r} is not a quantity; give {FORMS}")
    return Asked(text.strip(), kind, _parameters(size, text) if size else 0.0, sweep)


def _parameters(size: str, text: str) -> float:
    scale = {"K": 1e3, "M": 1e6, "B": 1e9}.get(size[-1:].upper(), 1.0)
    try:
        value = float(size[:-1] if scale > 1 else size) * scale
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"--for {text!r} names no number of parameters; write it as loss@2M or loss@350000")
    return value


# ---- points of a fit ----


def curve_aim(fitted: Fitted, asked: Asked, points: Sequence[Candidate], inside: Sequence[bool]) -> CurveAim:
    """The aim of a quantity of a fit over its own configurations, then the candidates (those not `inside` the fit carry no information).

    Raises:
        ValueError: the law has no such parameter.
    """
    columns, result = fitted.result.law.columns, fitted.result
    own = fitted.jacobian({name: fitted.cells.columns[name] for name in columns})
    facts = {name: np.array([float(getattr(c if name == "n_tokens" else c.shape, name)) for c in points]) for name in columns}
    new = fitted.jacobian(facts) if points else own[:0]
    new[~np.asarray(inside, dtype=bool)] = np.nan
    direction = read(quantity_of(fitted, asked), result.design).evaluate(result.theta[:, None])[1][:, 0]
    return CurveAim(np.concatenate([own, new]), direction, *scatter(fitted, own))


def quantity_of(fitted: Fitted, asked: Asked) -> Quantity:
    """What `analysis.fits.intervals` calls it; slopes at the fit's reference, as reports give them."""
    if asked.kind == "slope":
        return Slope(dict(fitted.result.reference), fitted.column)
    if asked.kind == "loss":
        return Loss({**fitted.result.reference, fitted.column: asked.size})
    if asked.kind not in fitted.result.params:
        raise ValueError(f"the law of {fitted.title} is {fitted.result.law.equation}: it has no {asked.kind}; ask for the slope")
    return Parameter(asked.kind)


# ---- a study ----


@dataclass(frozen=True)
class Setting:
    """A quantity and everything it could be helped by: an aim over points, the candidate (or None) of each, trials there are."""

    aim: Aim
    options: list[Candidate | None]
    seeds: Counts
    now: dict[str, Any]


def setting(asked: Asked, found: Sequence[Candidate], cells: Configurations) -> Setting:
    """The aim of a quantity for a study.

    Args:
        cells: configurations that may be compared in a joint fit; `Candidate.cell` points into them.

    Raises:
        ValueError: the study does not have what the quantity needs.
    """
    at = {str(cells.config_id[c.cell]): c for c in found if c.cell is not None}
    if asked.kind == "contrast":
        return _contrast_setting(asked, [at.get(str(config)) for config in cells.config_id], cells)
    wanted = f"sweep:{asked.sweep}" if asked.sweep else "joint"
    fits = {f.fit_id: f for f in all_fits(cells) if isinstance(f, Fitted)}
    if wanted not in fits:
        known = ", ".join(sorted(f.sweep for f in fits.values() if f.sweep)) or "none"
        raise ValueError(f"there is no fit to shrink {asked.text} of (sweeps with a fit: {known}); run sizes of the study first")
    fitted = fits[wanted]
    if runs_shared(fitted.cells):  # branches of one run scatter together: those of one length have runs of their own
        lengths = [f for f in fits.values() if f.fit_id.startswith(AT_LENGTH)]
        if asked.sweep or not lengths:
            raise ValueError(f"{asked.text}: its trials are branches of shared runs, which leave no interval that could shrink")
        fitted = max(lengths, key=lambda f: float(f.cells.columns["n_tokens"][0]))
    if fitted.df < 1:
        need = len(fitted.result.params) + 1
        reason = f"{len(fitted.cells)} configurations for {len(fitted.result.params)} parameters give no interval that could shrink"
        raise ValueError(f"{asked.text}: {reason}; run trials of the study until {need} configurations are there")
    fresh = [c for c in found if c.cell is None]
    aim = curve_aim(fitted, asked, fresh, [_joins(c, fitted, found) for c in fresh])
    seeds = np.concatenate([fitted.cells.n_seeds, np.zeros(len(fresh), dtype=np.int64)]).astype(np.int64)
    now = intervals.profile(observations(fitted), quantity_of(fitted, asked))
    facts = {"low": now.low, "high": now.high, "point": now.point, "status": now.status, "fit": fitted.title}
    return Setting(aim, [*(at.get(str(config)) for config in fitted.cells.config_id), *fresh], seeds, facts)


def _joins(candidate: Candidate, fitted: Fitted, found: Sequence[Candidate]) -> bool:
    """Whether a configuration that has not run would enter a fit: of its sweep, or of any sweep in which size varies; of its recipe."""
    if not set(candidate.change) <= {"n_layer", "n_embd", "n_head", "n_tokens", "n_steps"}:
        return False
    fixed = "n_tokens" not in fitted.result.law.columns
    if fixed and not np.isclose(fitted.cells.columns["n_tokens"], candidate.n_tokens).all():
        return False
    names = [fitted.sweep] if fitted.sweep else candidate.sweeps
    return any(
        name in candidate.sweeps and len({c.shape.params_non_embedding for c in found if name in c.sweeps}) > 1 for name in names if name
    )


def _contrast_setting(asked: Asked, options: list[Candidate | None], cells: Configurations) -> Setting:
    noise = replicates.measure_noise(cells)
    if isinstance(noise, Refusal):
        raise ValueError(f"{asked.text} has no interval that could shrink: {noise.reason}")
    named = {sweep.name: sweep.members for sweep in find_sweeps(cells)}
    members = named.get(asked.sweep, ())
    if len(members) < 2:
        raise ValueError(f"there is no sweep {asked.sweep!r} of two or more levels to contrast; there are {', '.join(named)}")
    first, last = members[0], members[-1]
    aim = ContrastAim((first, last), noise.difference_sd, noise.difference_df, cells.n_seeds)
    point, half = float(cells.loss[last] - cells.loss[first]), aim.half_width(cells.n_seeds)
    title = f"mean loss of {_label(cells, last)} less that of {_label(cells, first)}"
    now = {"low": point - half, "high": point + half, "point": point, "status": "closed", "fit": title}
    return Setting(aim, options, cells.n_seeds.astype(np.int64), now)


def _label(cells: Configurations, i: int) -> str:
    """Depth x width, with the heads where the study varies them at that depth and width: 12x256, 2x64h8."""
    depth, width, heads = (cells.columns[name] for name in ("n_layer", "n_embd", "n_head"))
    same = (depth == depth[i]) & (width == width[i])
    return f"{int(depth[i])}x{int(width[i])}" + (f"h{int(heads[i])}" if len(np.unique(heads[same])) > 1 else "")


def suggest(table: Table, wanted: str, n: int) -> dict[str, Any]:
    """The n best next trials for a quantity, as the contents of suggestion.json.

    Raises:
        ValueError: the results are not of a study that can be continued, or the quantity is not one of this study.
    """
    asked = parse(wanted)
    if n < 1:
        raise ValueError(f"--suggest {n} asks for no trial; give 1 or more")
    if not table.study.get("study"):
        raise ValueError(f"{table.path} has no study.json with a study in it, so nothing can be added to it; give the folder of a run")
    if table.trials.empty:
        raise ValueError(f"{table.path} holds no usable trial to suggest from; run some of the study first")
    study = study_of(table.study["study"], table.path / "study.json")
    cells = replicates.average(table.trials[one_recipe(table.trials)])
    place = setting(asked, candidates.find(study, table, cells), cells)
    seeds, trials = place.seeds.copy(), []
    hours = [c.hours if c else math.inf for c in place.options]
    for chosen in choose(place.aim, place.seeds, hours, n):
        candidate = place.options[chosen.point]
        assert candidate is not None
        trials.append(_entry(candidate, int(seeds[chosen.point] - place.seeds[chosen.point]), chosen))
        seeds[chosen.point] += 1
    if not trials:
        raise ValueError(f"no trial of this study would shrink the interval of {wanted}; add a sweep over sizes to the study")
    before, after = place.aim.half_width(place.seeds), place.aim.half_width(seeds)
    ratio = after / before if math.isfinite(before) else None
    return suggestion(table, study, trials, quantity=asked.text, interval=place.now, expected_width_ratio=ratio)


def suggestion(table: Table, study: Study, trials: Sequence[Mapping[str, Any]], **facts: Any) -> dict[str, Any]:
    """The contents of suggestion.json."""
    head = {"schema_version": SCHEMA_VERSION, "kind": KIND, "name": table.name, "question": study.question}
    made: dict[str, Any] = conclusions.clean({**head, **facts, "trials": trials, "study": asdict(study)})
    return made


def _entry(candidate: Candidate, number: int, chosen: Ranked) -> dict[str, Any]:
    return {
        "change": dict(candidate.change),
        "seed": candidate.seed(number),
        "sweeps": list(candidate.sweeps),
        "label": candidate.label,
        "params_non_embedding": candidate.shape.params_non_embedding,
        "why": candidate.kind if number == 0 or candidate.kind == candidates.SEED else f"{candidate.kind}, {candidates.SEED}",
        "gain": chosen.gain,
        "device_hours": chosen.hours,
        "gain_per_device_hour": chosen.rate,
    }


# ---- what a person sees ----


def write(folder: Path, made: Mapping[str, Any]) -> Path:
    """Write suggestion.json; returns its path."""
    conclusions.write(folder / FILE.name, made)
    return folder / FILE.name


def text(made: Mapping[str, Any]) -> str:
    """The suggestion as a table with a sentence above and below."""
    now, ratio = made["interval"], made["expected_width_ratio"]
    ends = " to ".join("unbounded" if now[end] is None else f"{now[end]:.4g}" for end in ("low", "high"))
    titles = ("trial", "seed", "params", "what it is", "interval", "core- or GPU-hours", "sweeps")
    rows = [
        (
            t["label"], str(t["seed"]), f"{t['params_non_embedding']:,}", t["why"], f"-{100 * t['gain']:.1f} %",
            f"{t['device_hours']:.2g}", ", ".join(t["sweeps"]),
        )
        for t in made["trials"]
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in [titles, *rows]) for i in range(len(titles))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [titles, *rows]]
    together = f"together they should bring its interval to {100 * ratio:.0f} % of its width" if ratio is not None else "they determine it"
    head = f"{made['quantity']} ({now['fit']}): now {ends}; next best trials, each given those above it:"
    return "\n".join([head, "", *(f"  {line}" for line in lines), "", together])
