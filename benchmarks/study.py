"""`make bench-study`: a whole study through Ray Tune against the same trials run one after another by the peer loop.

    python -m benchmarks.study [--study quick] [--part 0.05] [--set --seeds 1 --train.n-steps 300]

Ours is the command that a person types, from its start to the report. The peer has its evaluation habit and, by default,
all of the machine's threads.
A `--part` of its steps and evaluations is timed for each configuration, half before and half after our run, and scaled up; 1 runs all of
them. Peer ratios need an otherwise idle machine: the load is in the table. Figures go to results/study.csv.

Our share of the wall is what training and evaluating, spread evenly over the workers, does not explain: start, scheduling, setting up,
final texts, waiting for the last worker, records, report.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe, write_csv
from benchmarks.peer import EVAL_BATCHES, EVAL_EVERY, PeerLoop
from study import command, records
from study.data import corpus as data
from study.spec import Trial, expand

RESULTS = Path(__file__).parent / "results"
BARS = {"ratio_to_peer": ">= 2", "our_share": "<= 0.12", "first_step_s": "<= 12"}


@dataclass(frozen=True)
class Wall:
    """Where the seconds of one run went."""

    trials: int
    wall_s: float
    first_step_s: float
    """from the command to the first training step of the first trial, to within the time of its final texts"""
    training_s: float
    """training and evaluating, over the workers"""
    before_s: float
    between_s: float
    after_s: float

    @property
    def our_share(self) -> float:
        """Share of the wall that is neither training nor evaluating."""
        return 1 - self.training_s / self.wall_s


def run_ours(argv: Sequence[str], workers: int) -> Wall:
    """Run a study into a temporary folder by its command.

    Args:
        argv: what follows `python -m study.run`.
        workers: trials that train side by side.

    Raises:
        RuntimeError: the command failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        line = [sys.executable, "-m", "study.run", *argv, "--out", str(out)]
        environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        began, clock = time.time(), time.monotonic()
        done = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
        wall_s = time.monotonic() - clock
        if done.returncode:
            raise RuntimeError(f"{' '.join(line[1:])} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        rows = records.read(out, "trials").to_pylist()
        if "--no-report" not in argv:
            json.loads((out / "report" / "fits.json").read_text(encoding="utf-8"))  # the run includes its report
    return account(rows, began, wall_s, min(workers, len(rows)))


def account(rows: Sequence[dict[str, Any]], began: float, wall_s: float, workers: int) -> Wall:
    """Divide the wall of a run that began at this time (seconds since 1970) by its `trials` rows."""
    starts, ends = ([row[name].timestamp() - began for row in rows] for name in ("started_at", "finished_at"))
    busy = [row["train_s"] + row["eval_s"] for row in rows]
    first_step = min(end - seconds for end, seconds in zip(ends, busy, strict=True))
    training, first, last = sum(busy) / workers, max(0.0, min(starts)), max(ends)
    return Wall(len(rows), wall_s, max(0.0, first_step), training, first, last - first - training, wall_s - last)


def peer_seconds(trials: Sequence[Trial], corpus: data.Corpus, part: float, fused: bool) -> float:
    """Seconds of all trials by the peer loop, one after another, scaled up from a part of each configuration."""
    by_config: dict[str, list[Trial]] = {}
    for trial in trials:
        by_config.setdefault(trial.config_id, []).append(trial)
    total = 0.0
    for replicates in by_config.values():
        timed = replicates if part >= 1 else replicates[:1]
        total += sum(_one_by_peer(trial, corpus, part, fused) for trial in timed) * len(replicates) / len(timed)
    return total


def _one_by_peer(trial: Trial, corpus: data.Corpus, part: float, fused: bool) -> float:
    recipe = trial.train
    loop = PeerLoop(trial.model(corpus.vocab_size), corpus.train, recipe.batch_size, recipe.lr, recipe.n_steps, fused)
    steps, batches = max(5, round(part * recipe.n_steps)), max(2, round(part * EVAL_BATCHES))
    if part < 1:
        loop.step()
    began = time.perf_counter()
    for _ in range(steps):
        loop.step()
    stepped = time.perf_counter()
    loop.evaluate(batches)
    evaluated = time.perf_counter()
    evaluations = 1 + recipe.n_steps // EVAL_EVERY
    if part >= 1:
        for _ in range(evaluations - 1):
            loop.evaluate(batches)
        return time.perf_counter() - began
    return (stepped - began) * recipe.n_steps / steps + (evaluated - stepped) * EVAL_BATCHES / batches * evaluations


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="quick")
    parser.add_argument("--part", type=float, default=0.05, help="of the peer's work that is timed; 1 runs all of it")
    parser.add_argument("--peer-threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--set", nargs=argparse.REMAINDER, default=[], help="flags of study.run, last")
    args = parser.parse_args()
    argv = [args.study, *args.set]
    study = command.parse(argv).study
    corpus = data.prepare(study.data)
    trials = expand(study, data.data_key(study.data))
    workers = os.cpu_count() or 1
    torch.set_num_threads(args.peer_threads)
    kinds = {"peer": True, "peer_written_out": False}
    before = {name: peer_seconds(trials, corpus, args.part, fused) for name, fused in kinds.items()}
    load = os.getloadavg()[0]
    ours = run_ours(argv, workers)
    after = {name: peer_seconds(trials, corpus, args.part, fused) for name, fused in kinds.items()}
    peer = {name: (before[name] + after[name]) / 2 for name in kinds}
    row: dict[str, Any] = {"study": " ".join(argv), **vars(ours), "our_share": ours.our_share}
    row |= {f"{name}_s": seconds for name, seconds in peer.items()}
    row |= {"ratio_to_peer": peer["peer"] / ours.wall_s, "ratio_to_written_out": peer["peer_written_out"] / ours.wall_s}
    row |= {"peer_before_over_after": before["peer"] / after["peer"], "part_of_peer": args.part}
    row |= {"peer_threads": args.peer_threads, "load_before": load}
    print(describe())
    for name, value in row.items():
        bar = f"  (bar {BARS[name]})" if name in BARS else ""
        print(f"  {name:<24} {value:.3g}{bar}" if isinstance(value, float) else f"  {name:<24} {value}")
    write_csv(RESULTS / "study.csv", [row])


if __name__ == "__main__":
    main()
