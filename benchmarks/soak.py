"""A soak: many small trials on three local nodes while something fails every few seconds; none lost, none doubled, memory flat.

The faults, drawn at random: kill -9 of a trial's worker, kill -9 of a whole node (raylet and workers; another one comes up), kill -9 of the
driver and a stopped worker. After the driver's death the same command continues. At the end each trial has exactly one COMPLETED row, no
two rows of one (trial, step), and the first trials have the curves that they have in a run without faults.

    make soak ARGS="--trials 40 --every 6"
"""

import argparse
import collections
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from benchmarks.machine import below, write_csv
from benchmarks.scale import resident_mib
from study import records
from study.tune import environment

STORE = 100 * 2**20
FAULTS = {"worker killed": 5, "worker stopped": 1, "node lost": 2, "driver killed": 1}
"""What may happen, with its weight."""
MOST_S = 3600.0
CALM = 6
"""Trials that are trained once more without faults."""


def main() -> None:
    """Run the soak and write its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--every", type=float, default=5.0, help="mean seconds between two faults")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of each trial")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = soak(Path(folder), options.trials, options.every, options.steps, options.seed)
    write_csv(Path(__file__).parent / "results" / "soak.csv", [row])


def soak(folder: Path, n_trials: int, every_s: float, n_steps: int, seed: int) -> dict[str, Any]:
    """Run a study under faults; returns the figures.

    Raises:
        AssertionError: a trial was lost or doubled, or differs from the same trial without faults.
    """
    environment.set_ray_environment(on_cluster=True)
    rng, began = random.Random(seed), time.monotonic()
    nodes = Nodes()
    study = Study(folder, n_trials, n_steps, nodes.cluster.address)
    happened: collections.Counter[str] = collections.Counter()
    try:
        next_at = began + 3 * every_s
        while (code := study.ended()) is None:
            time.sleep(0.2)
            assert time.monotonic() - began < MOST_S, study.log.read_text()[-2000:]
            study.look()
            if time.monotonic() > next_at:
                happened[strike(rng, study, nodes)] += 1
                next_at = time.monotonic() + rng.expovariate(1 / every_s)
        assert code == 0, study.log.read_text()[-3000:]
        wall_s = time.monotonic() - began
        calm = Study(folder / "calm", min(n_trials, CALM), n_steps, nodes.cluster.address)
        assert calm.process.wait(MOST_S) == 0, calm.log.read_text()[-3000:]
    finally:
        study.kill()
        nodes.cluster.shutdown()
    figures = check(study, n_trials)
    compare(study, calm)
    return figures | {"wall_s": wall_s, **{name.replace(" ", "_"): happened[name] for name in FAULTS}}


def strike(rng: random.Random, study: "Study", nodes: "Nodes") -> str:
    """Let something fail; returns what, or "" where nothing of the drawn kind was there."""
    what = rng.choices(list(FAULTS), list(FAULTS.values()))[0]
    if what == "node lost":
        nodes.lose_one(rng)
    elif what == "driver killed":
        study.restart()
    elif pids := trial_workers():
        os.kill(rng.choice(pids), signal.SIGKILL if what == "worker killed" else signal.SIGSTOP)
    else:
        return ""
    return what


class Nodes:
    """A head without trials and two nodes, as processes of this machine."""

    def __init__(self) -> None:
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
        )
        self.nodes = [self.cluster.add_node(num_cpus=1, object_store_memory=STORE) for _ in range(2)]

    def lose_one(self, rng: random.Random) -> None:
        """A node goes without a word, as spot machines do, and another one comes; on a machine too busy for it, at the next loss."""
        if self.nodes:
            self.cluster.remove_node(self.nodes.pop(rng.randrange(len(self.nodes))), allow_graceful=False)
        with suppress(Exception):  # Ray raises nothing narrower when a node's processes take too long to start
            while len(self.nodes) < 2:
                self.nodes.append(self.cluster.add_node(num_cpus=1, object_store_memory=STORE))


class Study:
    """The study's driver, as a process of its own that may be killed and started again."""

    def __init__(self, folder: Path, n_trials: int, n_steps: int, address: str) -> None:
        folder.mkdir(exist_ok=True)
        self.out, self.log = folder / "out", folder / "log"
        widths, seeds = "width:n_embd=16,24", [str(seed) for seed in range(1, (n_trials + 1) // 2 + 1)]
        recipe = ["--train.n_steps", str(n_steps), "--train.eval_interval", "20", "--train.eval_windows", "8", "--precision", "float32"]
        where = ["--out", str(self.out), "--address", address, "--checkpoint-s", "0", "--stall-minutes", "0.5", "--no-report"]
        self.command = [sys.executable, "-m", "study.run", "smoke", "--seeds", *seeds, "--sweeps", widths, *recipe, *where]
        self.memory: list[float] = []
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as file:
            return subprocess.Popen(self.command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})

    def restart(self) -> None:
        """kill -9, then the same command."""
        self.kill()
        self.process = self._start()

    def kill(self) -> None:
        """End the driver if it lives."""
        self.process.kill()
        self.process.wait()

    def ended(self) -> int | None:
        """Exit code; a run in which trials failed for good is given again, as a person would."""
        code = self.process.poll()
        if code == 1 and "trials are completed" in self.log.read_text()[-4000:]:
            self.process = self._start()
            return None
        return code

    def look(self) -> None:
        """Note the driver's memory."""
        with suppress(OSError):
            self.memory.append(resident_mib(self.process.pid))


def trial_workers() -> list[int]:
    """Workers below this process that hold a trial."""
    named = []
    for pid in below(os.getpid()):
        try:
            if (Path("/proc") / str(pid) / "cmdline").read_bytes().startswith((b"ray::BundleTrainable", b"ray::ResourceTrainable")):
                named.append(pid)
        except OSError:
            continue
    return named


def check(study: Study, n_trials: int) -> dict[str, Any]:
    """Nothing lost, nothing doubled: one row for each trial, each step once, curves whole."""
    rows, curves = records.read(study.out, "trials").to_pylist(), records.read(study.out, "curves").to_pylist()
    ids = [row["trial_id"] for row in rows]
    assert len(ids) == len(set(ids)) >= n_trials
    assert {row["status"] for row in rows} == {"COMPLETED"}
    keys = [(row["trial_id"], row["step"]) for row in curves]
    assert len(keys) == len(set(keys))
    steps = collections.defaultdict(set)
    for trial_id, step in keys:
        steps[trial_id].add(step)
    assert len({frozenset(found) for found in steps.values()}) == 1
    quarter = max(1, len(study.memory) // 4)
    second, last = (sorted(part)[len(part) // 2] for part in (study.memory[quarter : 2 * quarter], study.memory[-quarter:]))
    print(f"{len(ids)} trials, each once; {sum(row['restarts'] for row in rows)} resumptions; driver {second:.0f} then {last:.0f} MiB")
    return {"n_trials": len(ids), "resumptions": sum(row["restarts"] for row in rows), "driver_mib_early": second, "driver_mib_late": last}


def compare(study: Study, calm: Study) -> None:
    """The calm run's curves, bit for bit."""

    def losses(of: Study) -> dict[tuple[str, int], tuple[float, float]]:
        return {(row["trial_id"], row["step"]): (row["val_loss"], row["train_loss"]) for row in records.read(of.out, "curves").to_pylist()}

    disturbed, undisturbed = losses(study), losses(calm)
    assert undisturbed
    assert {key: disturbed[key] for key in undisturbed} == undisturbed


if __name__ == "__main__":
    main()
