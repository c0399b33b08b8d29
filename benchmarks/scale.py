"""What the driver costs per trial: thousands of trials of an instant trainer through the real command, Ray Tune, monitor and tables.

Only the training is left out: survey, quote, scheduling, worker processes, reports, rows, board and compaction are the real ones. Times say
processor seconds of the driver and of Ray's own processes (gcs_server, raylet) per trial; memory is the driver's, as the trials go by.

    make bench-scale-tune ARGS="--trials 1000"
"""

import argparse
import os
import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune

from benchmarks.machine import below, write_csv
from study import records, run
from study.train.outcome import Replica
from study.tune import environment, session, worker_input

EVALUATIONS = 3
TICKS = os.sysconf("SC_CLK_TCK")


class Instant(tune.Trainable):
    """Reports evaluations and an outcome of the right form, and trains nothing."""

    def setup(self, config: dict[str, Any], work: worker_input.Work) -> None:  # type: ignore[override]  # Ray Tune passes `with_parameters`
        """Begin the bundle that `config` names."""
        self.work = work
        self.reset_config(config)

    def reset_config(self, config: dict[str, Any]) -> bool:
        """Begin another bundle."""
        self.bundled, self.n_reports = self.work.bundles[config["bundle"]], 0
        return True

    def step(self) -> dict[str, Any]:
        """One evaluation; the last one hands over the outcome."""
        self.n_reports += 1
        one = self.bundled.trials[0]
        n_steps = one.train.n_steps * self.n_reports // EVALUATIONS
        tokens = n_steps * one.train.batch_size * one.shape.block_size
        row = {
            "trial_id": one.trial_id,
            "step": n_steps,
            "tokens": tokens,
            "val_loss": 3.0 + one.seed * 1e-6,
            "train_loss": 3.0,
            "lr": 1e-3,
        }
        done = self.n_reports == EVALUATIONS
        outcomes = [self._outcome(row)] if done else []
        return {"rows": [row], "notes": [], "restarts": 0, "done": done, "outcomes": outcomes}

    def _outcome(self, row: dict[str, Any]) -> dict[str, Any]:
        one = self.bundled.trials[0]
        times = {"ms_per_step": 1.0, "cpu_ms_per_step": 1.0, "train_s": 0.1, "eval_s": 0.1, "wall_s": 0.2}
        machine = {"device": "cpu (none)", "precision": "float32", "peak_memory_bytes": 1 << 20, "restarts": 0, "bundle_size": 1}
        replica = Replica(one, [row])
        replica.end(one.train.n_steps, times | machine)
        return replica.left()


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2, help="fake CPUs, and so worker processes")
    options = parser.parse_args()
    environment.set_ray_environment()
    ray.init(address="local", num_cpus=options.workers, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    session.BundleTrainable = Instant  # type: ignore[misc,assignment]
    with tempfile.TemporaryDirectory() as folder:
        row = measure(Path(folder) / "scale", options.trials)
    ray.shutdown()
    write_csv(Path(__file__).parent / "results" / "scale.csv", [row | {"workers": options.workers}])


def measure(out: Path, n_trials: int) -> dict[str, Any]:
    """Run a study of so many seeds; returns its figures."""
    seeds = [str(seed) for seed in range(1, n_trials + 1)]
    watch = Watch(out, n_trials)
    before, ray_before, began = _driver_seconds(), ray_seconds(), time.monotonic()
    watch.start()
    code = run.main(["smoke", "--out", str(out), "--sweeps", "width:n_embd=16", "--device", "cpu", "--no-report", "--seeds", *seeds])
    wall, driver, of_ray = time.monotonic() - began, _driver_seconds() - before, ray_seconds() - ray_before
    watch.stop()
    table = records.read(out, "trials")
    assert code == 0
    assert table.num_rows == n_trials
    memory = {f"driver_mib_at_{share}": watch.seen.get(share, 0.0) for share in Watch.SHARES}
    per_trial = {"wall_ms": wall, "driver_ms": driver, "ray_ms": of_ray}
    row = {"n_trials": n_trials, **{name: 1e3 * s / n_trials for name, s in per_trial.items()}, **memory}
    print(
        f"{n_trials} trials in {wall:.0f} s: per trial {row['wall_ms']:.1f} ms wall, {row['driver_ms']:.1f} ms of the driver's processor, "
        f"{row['ray_ms']:.1f} ms of Ray's own; driver's memory "
        + ", ".join(f"{mib:.0f} MiB at {share} %" for share, mib in watch.seen.items())
    )
    return row


class Watch:
    """The driver's resident memory when a tenth, a quarter, ... of the trials have their row."""

    SHARES = (10, 25, 50, 75, 100)

    def __init__(self, out: Path, n_trials: int) -> None:
        self.out, self.n_trials, self.seen = out, n_trials, dict[int, float]()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def start(self) -> None:
        """Begin to look once a second."""
        self._thread.start()

    def stop(self) -> None:
        """Look a last time."""
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(1.0):
            n_rows = len(os.listdir(self.out / "trials")) if (self.out / "trials").exists() else 0
            for share in self.SHARES:
                if n_rows >= self.n_trials * share / 100:
                    self.seen.setdefault(share, resident_mib(os.getpid()))


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def ray_seconds() -> float:
    """Processor seconds so far of the gcs_server and the raylets below this process."""
    total = 0.0
    for pid in below(os.getpid()):
        try:
            name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition(" (")[2].rpartition(") ")
        except OSError:
            continue
        if name.startswith(("gcs_server", "raylet")):
            total += sum(map(int, rest.split()[11:13])) / TICKS
    return total


def _driver_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    from benchmarks import scale  # workers find the trainer by its module's name, which here is __main__

    scale.main()
