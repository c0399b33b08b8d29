"""What could be trained next: trials of the study that have not run, further seeds, and new sizes of the study's own sweeps.

    study = study_of(table.study["study"], path); found = find(study, table, cells)

Uses `study.spec` for what a trial is (pure values; no torch, no ray). Reads no file.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.table.configurations import Configurations
from analysis.table.load import STALE_PREFIXES, Table
from models.config import ModelConfig, Shape
from study.spec import Study, TrainConfig, changed
from study.sweeps import Sweep

MOST = 2.0
"""Factor by which a suggestion goes beyond the depths and widths of a sweep, at most: a longer step says more and holds less."""
GROWN = ("n_layer", "n_embd", "n_tokens")
"""Factors whose levels are interpolated and extrapolated: what size and training length are made of."""
UNRUN, SEED, NEW = "not run yet", "another seed", "new size"


@dataclass(frozen=True)
class Candidate:
    """A configuration of which one more trial could be trained.

    Args:
        change: fields of the study's centre that differ.
        shape, train: the configuration itself.
        sweeps: sweeps that hold it, or that it would join.
        kind: UNRUN, SEED or NEW.
        cell: its index among the configurations that have run, or None.
        used_seeds: seeds that have run.
        planned_seeds: the study's own, which are trained first.
        hours: device-hours of one trial.
    """

    change: Mapping[str, Any]
    shape: Shape
    train: TrainConfig
    sweeps: tuple[str, ...]
    kind: str
    cell: int | None
    used_seeds: frozenset[int]
    planned_seeds: tuple[int, ...]
    hours: float

    @property
    def n_tokens(self) -> int:
        """Training tokens of one trial."""
        return self.train.n_steps * self.train.batch_size * self.shape.block_size

    @property
    def label(self) -> str:
        """2x64h4, with its training tokens where those are a factor."""
        text = f"{self.shape.n_layer}x{self.shape.n_embd}h{self.shape.n_head}"
        rest = {name: value for name, value in self.change.items() if not hasattr(self.shape, name)}
        return text + "".join(f" {name}={value:g}" if isinstance(value, float) else f" {name}={value}" for name, value in rest.items())

    def seed(self, number: int) -> int:
        """The seed of the `number`-th further trial: the study's own first, for they are paired, then the numbers after them."""
        planned = (seed for seed in self.planned_seeds if seed not in self.used_seeds)
        beyond = (seed for seed in itertools.count(max(self.planned_seeds) + 1) if seed not in self.used_seeds)
        return next(itertools.islice(itertools.chain(planned, beyond), number, None))


def find(study: Study, table: Table, cells: Configurations) -> list[Candidate]:
    """All candidates: the study's configurations and those of grown sweeps, each once; levels that no shape has are left out.

    Args:
        table: its rows say which seeds have run and what steps took.
        cells: configurations that have run; `Candidate.cell` points into them.

    Raises:
        ValueError: no row says how long a step takes.
    """
    sweeps = [sweep for sweep in study.parsed_sweeps if sweep.kind in ("one_factor", "grid", "matched")]
    listed = [(change, sweep, True) for sweep in sweeps or [Sweep(name="single")] for change in sweep.changes()]
    grown = [(change, sweep, False) for sweep in sweeps for change in _grown(sweep, study)]
    made: dict[tuple[Shape, TrainConfig], tuple[dict[str, Any], list[str], bool]] = {}
    for change, sweep, planned in listed + grown:
        with suppress(ValueError):
            _, names, first = made.setdefault(changed(study, change, sweep.name), (change, [], planned))
            if sweep.name not in names and first == planned:
                names.append(sweep.name)
    ran, place, clock = _seeds_run(table.rows), {str(config): i for i, config in enumerate(cells.config_id)}, Clock.of(table)
    found = []
    for (shape, train), (change, names, planned) in made.items():
        facts = {**vars(shape), **vars(train), "n_tokens": train.n_steps * train.batch_size * shape.block_size}
        config, used = ran.get(_key(facts), ("", set()))
        kind = NEW if not planned else SEED if used else UNRUN
        hours = clock.hours(shape, train)
        found.append(Candidate(change, shape, train, tuple(names), kind, place.get(config), frozenset(used), study.seeds, hours))
    return found


# ---- configurations ----


def _grown(sweep: Sweep, study: Study) -> list[dict[str, Any]]:
    """Changes of a sweep at levels that it does not have: half the way (in logarithm) between levels and a step beyond its ends."""
    changes: list[dict[str, Any]] = []
    for target in new_levels(sweep.params):
        with suppress(ValueError):  # no integer shape is near this target
            changes += replace(sweep, params=(target,)).changes()
    for name in GROWN if sweep.kind != "matched" else ():
        levels = [v for v in sweep.factors.get(name, ()) if isinstance(v, (int, float))]
        heads = [int(v) for v in sweep.factors.get("n_head", (study.model.n_head,)) if isinstance(v, (int, float))]
        unit = math.lcm(*heads) if name == "n_embd" else 1
        fresh = {round(v / unit) * unit for v in new_levels(levels, MOST)} - {round(v) for v in levels} - {0}
        others = {key: values for key, values in sweep.factors.items() if key != name} if sweep.kind == "grid" else {}
        for level in sorted(fresh):
            changes += [{name: level, **dict(zip(others, values, strict=True))} for values in itertools.product(*others.values())]
    return changes


def new_levels(levels: Sequence[float], most: float = math.inf) -> list[float]:
    """Geometric means of neighbours, and one step beyond either end, by the factor `most` at most; nothing for fewer than two levels."""
    known = sorted({float(v) for v in levels if v > 0})
    if len(known) < 2:
        return []
    between = [math.sqrt(a * b) for a, b in itertools.pairwise(known)]
    return [max(known[0] ** 2 / known[1], known[0] / most), *between, min(known[-1] ** 2 / known[-2], most * known[-1])]


# ---- rows ----

COUNTS = ("n_layer", "n_embd", "n_head", "block_size", "batch_size", "n_tokens")
RATES = ("lr", "weight_decay", "dropout")


def _key(facts: Mapping[Any, Any]) -> tuple[Any, ...]:
    """What a row of `trials` tells of a configuration; 0 unique tokens are all there are."""
    return *(int(facts[c]) for c in (*COUNTS, "unique_tokens")), str(facts["schedule"]), *(f"{float(facts[c]):.6g}" for c in RATES)


def _seeds_run(rows: pd.DataFrame) -> dict[tuple[Any, ...], tuple[str, set[int]]]:
    """Of each configuration the id and the seeds that need not run again."""
    final = rows[rows["status"].isin(["COMPLETED", "DIVERGED"]) & ~rows["exclusion"].str.startswith(STALE_PREFIXES)]
    final = final.dropna(subset=[*COUNTS, *RATES, "schedule", "seed", "config_id"])
    unique = final["unique_tokens"]
    final = final.assign(unique_tokens=unique.where(unique != unique.max()).fillna(0))
    found: dict[tuple[Any, ...], tuple[str, set[int]]] = {}
    for row in final[[*COUNTS, *RATES, "unique_tokens", "schedule", "seed", "config_id"]].to_dict("records"):
        found.setdefault(_key(row), (str(row["config_id"]), set()))[1].add(int(row["seed"]))
    return found


# ---- cost ----


@dataclass(frozen=True)
class Clock:
    """What steps took: FLOPs of a step and milliseconds by configuration, and the share of a device that a trial reserved."""

    flops: np.ndarray
    ms: np.ndarray
    share: float
    vocab_size: int

    @staticmethod
    def of(table: Table) -> Clock:
        """Of the trials of a study, which say what they reserved on a GPU; study.json says it of processors."""
        rows, options = table.rows, table.study.get("options")
        cpus = float(options.get("cpus_per_trial") or 1.0) if isinstance(options, Mapping) else 1.0
        if "module" in rows and rows["module"].notna().any():
            raise ValueError("what is suggested has sizes of the built-in model; with a model of your own list more shapes in its sweeps")
        timed = rows.dropna(subset=["ms_per_step", "n_tokens", "n_steps", "flops_per_token", "vocab_size"])
        timed = timed[(timed["ms_per_step"] > 0) & (timed["n_steps"] > 0)]
        if timed.empty:
            raise ValueError("no trial says how long its steps took (ms_per_step), so a suggestion per device-hour is not possible")
        step = (timed["flops_per_token"] * timed["n_tokens"] / timed["n_steps"]).astype(float)
        means = timed.assign(step=step, ms_per_step=timed["ms_per_step"].astype(float)).groupby("step")["ms_per_step"].mean()
        gpu = float(timed["gpu_fraction"].fillna(0.0).astype(float).mean())
        bundle = float(timed["bundle_size"].fillna(1).astype(float).clip(lower=1).mean())
        share = (gpu if gpu > 0 else cpus) / bundle
        return Clock(means.index.to_numpy(dtype=float), means.to_numpy(dtype=float), share, int(timed["vocab_size"].iloc[0]))

    def hours(self, shape: Shape, train: TrainConfig) -> float:
        """Device-hours of one trial: the time of the step nearest in FLOPs, scaled by FLOPs."""
        model = ModelConfig(shape.n_layer, shape.n_embd, shape.n_head, shape.block_size, self.vocab_size)
        flops = float(model.flops_per_token) * train.batch_size * shape.block_size
        near = int(np.argmin(np.abs(np.log(self.flops / flops))))
        return float(self.ms[near] * flops / self.flops[near]) * train.n_steps / 3.6e6 * self.share
