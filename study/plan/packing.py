"""What a trial will cost and how trials are packed: time model, bundles, GPU fractions, the quote (memory: `study.plan.memory`).

Reads and writes `<cache>/speed.json`, the step times and memory seen on each device: times measured by a probe of a few steps, replaced by
what real trials took (`study.plan.probe`). Imports neither torch nor ray.

    plan = make_plan(trials, vocab_size, machine, Speeds.load(cache), Options())
"""

import heapq
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.module_file import identity
from study.files import cache_folder, write_json
from study.options import Options
from study.plan.memory import HEADROOM, PROCESS_BYTES, STATE_BYTES, gpu_fraction, memory_bytes
from study.spec import Trial
from study.train.branches import Family, bundle_key, families, own_costs

START_S, WORKER_START_S, TRIAL_S, END_S = 4.0, 4.0, 0.4, 10.0
"""Seconds of Ray's start; of a worker's first import of torch; of setting up one trial and writing its texts; of tables and report
(from runs of `smoke` and `quick`)."""
LARGEST_BUNDLE = 16


@dataclass(frozen=True)
class Machine:
    """The devices there are, and the arithmetic that models which are wide enough to gain from it will use."""

    kind: str = "cpu"
    name: str = "cpu"
    cpus: float = 2
    gpus: float = 0
    gpu_memory_bytes: int = 0
    precision: str = "float32"


@dataclass(frozen=True)
class PlannedBundle:
    """Trials to be trained together in one process, with what they reserve and are expected to take."""

    trials: tuple[Trial, ...]
    cpus: float
    gpus: float
    seconds: float
    memory_bytes: int
    seconds_each: Mapping[str, float]
    """each trial's part of `seconds`, by trial_id: its own steps and its share of a trunk that it has in common with others"""


@dataclass(frozen=True)
class Plan:
    """All bundles, longest first, and what they come to."""

    bundles: tuple[PlannedBundle, ...]
    slots: int
    seconds: float
    """expected wall time, Ray's start and the report included"""
    device_hours: float
    """device time reserved by the bundles (GPU-hours on GPUs, core-hours on CPUs)"""
    utilisation: float
    """share of the reserved slots' time in which a bundle runs"""


# ---- time ----


SPEEDS_VERSION = 2
"""Of the cache file: since 2 the times of one thread are processor times. An older file is not read."""


def speed_key(trial: Trial, bundle: int = 1) -> str:
    """What a step's time depends on, apart from the device."""
    shape = trial.shape
    own = f" {identity(shape.module)} {dict(shape.extra)}" if shape.module else ""
    return f"{shape.n_layer}x{shape.n_embd}h{shape.n_head}t{shape.block_size}b{trial.train.batch_size}k{bundle}{own}"


@dataclass
class Speeds:
    """Milliseconds per step by device and key, with the features that a prediction for other shapes needs."""

    path: Path | None = None
    seen: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """device -> key -> {ms, flops, layers, real}; real is 1 where a whole trial was timed, 0 for a probe"""
    places: dict[str, dict[str, Any]] = field(default_factory=dict)
    """what a wanted device turned out to be: device/precision/threads -> name, kind, precision, gpus, gpu_memory_bytes"""
    factors: dict[str, dict[str, float]] = field(default_factory=dict)
    """device -> key -> memory that a model was seen to need over what `study.plan.memory` expects; never below 1"""

    @classmethod
    def load(cls, folder: Path | None = None) -> "Speeds":
        """What the cache, or another folder, remembers; an unreadable file counts as none."""
        path = (folder or cache_folder()) / "speed.json"
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            if body.get("version") != SPEEDS_VERSION:
                return cls(path)
            return cls(path, body["seen"], body["places"], body.get("factors", {}))
        except (OSError, ValueError, KeyError, TypeError):
            return cls(path)

    def save(self) -> None:
        """A cache that cannot be written costs a probe next time, nothing else."""
        if self.path is not None:
            with suppress(OSError):
                write_json(self.path, {"version": SPEEDS_VERSION, "seen": self.seen, "places": self.places, "factors": self.factors})

    def note(self, device: str, trial: Trial, vocab_size: int, ms: float, real: bool, bundle: int = 1) -> None:
        """Remember a step's time; what a real trial took replaces a probe, and the mean of two real ones follows a changing machine."""
        known = self.seen.setdefault(device, {})
        key = speed_key(trial, bundle)
        if (old := known.get(key)) and old["real"]:
            if not real:
                return
            ms = 0.5 * (ms + old["ms"])
        known[key] = {"ms": ms, "flops": step_flops(trial, vocab_size, bundle), "layers": float(trial.shape.n_layer), "real": float(real)}

    def note_memory(self, machine: Machine, trial: Trial, vocab_size: int, seen_bytes: int, bundle: int = 1) -> None:
        """Remember that a process of this machine's GPUs needed so much memory, its context included; only more than expected counts."""
        base = PROCESS_BYTES["cuda"]
        expected = memory_bytes(trial, vocab_size, "cuda", machine.precision, bundle) - base
        known = self.factors.setdefault(machine.name, {})
        known[speed_key(trial)] = max(1.0, known.get(speed_key(trial), 1.0), (seen_bytes - base) / expected)

    def memory_factor(self, device: str, trial: Trial) -> float:
        """Seen over expected memory: this very kind of trial's, else the largest on this device, else 1."""
        known = self.factors.get(device, {})
        return known.get(speed_key(trial), max(known.values(), default=1.0))

    def ms_per_step(self, device: str, trial: Trial, vocab_size: int, bundle: int = 1) -> float:
        """The time seen, or a prediction: fixed cost per layer, FLOPs at the nearest shape's rate; ValueError where nothing was timed."""
        seen = self.seen.get(device, {})
        if not seen:
            raise ValueError(f"no step has been timed on {device} yet; a probe comes first")
        flops = step_flops(trial, vocab_size, bundle)
        if (found := seen.get(speed_key(trial, bundle))) is not None:
            return found["ms"] * flops / found["flops"]  # another vocabulary, perhaps
        near = min(seen.values(), key=lambda entry: abs(math.log(entry["flops"] / flops)))
        # A step is never cheaper than its launches: the cheapest time per layer that was seen.
        per_layer = min(entry["ms"] / entry["layers"] for entry in seen.values())
        return max(near["ms"] * flops / near["flops"], 0.5 * per_layer * trial.shape.n_layer)


def step_flops(trial: Trial, vocab_size: int, bundle: int = 1) -> float:
    """FLOPs of one optimizer step of a bundle."""
    return float(trial.model(vocab_size).flops_per_token) * trial.train.batch_size * trial.shape.block_size * bundle


def family_seconds(family: Family, ms_per_step: float, bundle: int = 1) -> dict[str, float]:
    """Seconds of each trial of a family, by trial_id, where `bundle` such families train side by side; they add up to the family's part.

    Steps, evaluations (a forward pass costs a third of a step per token) and a trial's fixed cost.

    Args:
        ms_per_step: of the whole bundle.
    """
    windows = family[-1].train.eval_windows / family[-1].train.batch_size / 3
    return {
        trial_id: ms_per_step / 1e3 * (own.steps + own.evaluations * windows) / bundle + TRIAL_S
        for trial_id, own in own_costs(family).items()
    }


def to_probe(trials: Iterable[Trial], device: str, speeds: Speeds, vocab_size: int, most: int = 12) -> list[Trial]:
    """One trial of each kind of step never timed on this device, spread over the sizes where there are many."""
    kinds = {key: trial for trial in trials if (key := speed_key(trial)) not in speeds.seen.get(device, {})}
    ordered = sorted(kinds.values(), key=lambda trial: step_flops(trial, vocab_size))
    if len(ordered) <= most:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (most - 1))] for i in range(most)]


# ---- the plan ----


def make_plan(trials: Sequence[Trial], vocab_size: int, machine: Machine, speeds: Speeds, options: Options) -> Plan:
    """Bundles of trials, longest first, such that the study ends soon on the devices there are.

    Trials that share a trunk stay together. On a CPU every trial or family runs alone: batched products gain only at the tiniest shapes
    (LOG 2026-11-22). On GPUs, those of one `bundle_key` are bundled as far as memory allows while every GPU still has
    work; bundles that stay small share a GPU.
    """
    units = families(trials)
    groups: dict[tuple[Any, ...], list[Family]] = {}
    for family in units:
        groups.setdefault(bundle_key(family), []).append(family)
    bundles = []
    for group in groups.values():
        size = options.bundle or _bundle_size(group, len(units), vocab_size, machine, speeds)
        for start in range(0, len(group), size):
            bundles.append(_planned(group[start : start + size], vocab_size, machine, speeds, options))
    bundles.sort(key=lambda bundle: -bundle.seconds)
    return _schedule(tuple(bundles), machine, options)


def _bundle_size(group: Sequence[Family], n_families: int, vocab_size: int, machine: Machine, speeds: Speeds) -> int:
    if machine.kind != "cuda" or not machine.gpu_memory_bytes:
        return 1
    base = PROCESS_BYTES["cuda"]
    replica = _memory_bytes(group[0], vocab_size, machine, speeds) - base
    fits = max(1, int((0.9 * machine.gpu_memory_bytes - base) // replica))
    share = math.ceil(n_families / max(1.0, machine.gpus))  # a bundle larger than a GPU's share of the study would leave another idle
    return max(1, min(fits, share, LARGEST_BUNDLE, len(group)))


def _memory_bytes(family: Family, vocab_size: int, machine: Machine, speeds: Speeds, bundle: int = 1) -> int:
    """Peak memory of a process training `bundle` families like this one: a branch keeps the trunk's state beside its own."""
    longest, base = family[-1], PROCESS_BYTES[machine.kind]
    trunk = STATE_BYTES * longest.model(vocab_size).params_total * bundle if len(family) > 1 else 0
    expected = memory_bytes(longest, vocab_size, machine.kind, machine.precision, bundle) - base + int(HEADROOM * trunk)
    return base + int(speeds.memory_factor(machine.name, longest) * expected)


def _planned(group: Sequence[Family], vocab_size: int, machine: Machine, speeds: Speeds, options: Options) -> PlannedBundle:
    size, memory = len(group), _memory_bytes(group[0], vocab_size, machine, speeds, len(group))
    gpus = options.gpus_per_trial
    if gpus is None:
        gpus = gpu_fraction(memory, machine.gpu_memory_bytes) if machine.kind == "cuda" and machine.gpu_memory_bytes else 0.0
    ms = speeds.ms_per_step(machine.name, group[0][-1], vocab_size, size)
    each = {trial_id: s for family in group for trial_id, s in family_seconds(family, ms, size).items()}
    trials = tuple(trial for family in group for trial in family)
    return PlannedBundle(trials, options.cpus_per_trial, gpus, sum(each.values()), memory, each)


def _schedule(bundles: tuple[PlannedBundle, ...], machine: Machine, options: Options) -> Plan:
    """Longest-processing-time-first on equal slots (Graham 1969): within 4/3 of the best possible end."""
    if not bundles:
        return Plan((), 0, 0.0, 0.0, 0.0)
    by_cpu = int(machine.cpus // options.cpus_per_trial) if options.cpus_per_trial else len(bundles)
    by_gpu = int(machine.gpus / max(bundle.gpus for bundle in bundles) + 1e-6) if any(b.gpus for b in bundles) else by_cpu
    slots = max(1, min(by_cpu, by_gpu, len(bundles), options.max_concurrent or len(bundles)))
    ends = [0.0] * slots
    for bundle in bundles:
        heapq.heapreplace(ends, ends[0] + bundle.seconds)
    busy, makespan = sum(bundle.seconds for bundle in bundles), max(ends)
    device = sum(bundle.seconds * (bundle.gpus or bundle.cpus) for bundle in bundles)
    return Plan(bundles, slots, START_S + WORKER_START_S + makespan + END_S, device / 3600, busy / (slots * makespan))
