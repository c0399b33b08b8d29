"""Load and analyze 100,000 trials of 50 evaluations each: seconds and memory, against 60 s and 4 GiB on two cores.

    python -m benchmarks.analysis_scale [--trials 100000]

Writes a synthetic study (L = E + A N^-alpha + B D^-beta, five seeds per configuration) to a temporary folder, then, in a fresh process,
reads trials and curves and runs the whole analysis with 1,000 bootstraps. Figures go to results/analysis_scale.csv.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.machine import describe, write_csv
from study import records

SEEDS, EVALUATIONS = 5, 50
MEASURED = """
import json, os, resource, sys, time
from pathlib import Path
from analysis.findings import conclude as conclusions
from analysis.table import load as table
start = time.perf_counter()
loaded = table.load(Path(sys.argv[1]))
evaluations = len(loaded.curves)
read = time.perf_counter() - start
tree = conclusions.conclude(loaded)
total = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
fit = tree["fits"]["joint"]
alpha = fit["parameters"]["alpha"]
print(json.dumps({"trials": len(loaded.trials), "evaluations": evaluations, "read_s": read, "total_s": total,
    "cpu_s": time.process_time(), "load": os.getloadavg()[0], "peak_gib": peak,
    "law": fit["law"], "alpha": alpha["value"], "alpha_low": alpha["low"], "alpha_high": alpha["high"]}))
"""


def main() -> None:
    """Build the study, measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=100_000)
    n_trials = parser.parse_args().trials
    with tempfile.TemporaryDirectory() as folder:
        write_study(Path(folder), n_trials // SEEDS)
        printed = subprocess.run([sys.executable, "-c", MEASURED, folder], capture_output=True, text=True, check=True).stdout
    row = json.loads(printed)
    row |= {"bar_s": 60, "bar_gib": 4, "passed": row["total_s"] <= 60 and row["peak_gib"] <= 4}
    print(describe())
    print(
        f"{row['trials']:,} trials, {row['evaluations']:,} evaluations: read in {row['read_s']:.1f} s, all done in {row['total_s']:.1f} s"
    )
    print(f"  bar 60 s; {row['cpu_s']:.1f} s of processor time, the machine's load being {row['load']:.1f}")
    print(f"  {row['peak_gib']:.2f} GiB (bar 4)")
    print(f"  {row['law']}, alpha {row['alpha']:.4f} [{row['alpha_low']:.4f}, {row['alpha_high']:.4f}], true 0.3")
    write_csv(Path(__file__).parent / "results" / "analysis_scale.csv", [row])


def write_study(results: Path, n_configurations: int) -> None:
    """trials.parquet and curves.parquet of random shapes and budgets."""
    rng = np.random.default_rng(0)
    n_layer, n_head = rng.integers(1, 24, n_configurations), rng.integers(1, 16, n_configurations)
    n_embd = rng.choice([16, 32, 64], n_configurations) * n_head
    size = n_layer * (12 * n_embd**2 + 2 * n_embd) + n_embd
    tokens = rng.choice([1_000_000, 3_000_000, 10_000_000, 30_000_000], n_configurations)
    mean = 0.6 + 0.5 * (size / 1e6) ** -0.3 + 0.2 * (tokens / 3e6) ** -0.35
    loss = np.repeat(mean * np.exp(rng.normal(0, 0.01, n_configurations)), SEEDS) * np.exp(rng.normal(0, 0.005, n_configurations * SEEDS))
    ids = [f"{i:016x}" for i in range(n_configurations)]
    trial_id = np.array([f"{config}-s{seed}" for config in ids for seed in range(SEEDS)])
    shape = {"n_layer": n_layer, "n_embd": n_embd, "n_head": n_head, "params_non_embedding": size, "params_total": size + 64 * n_embd}
    columns = {name: np.repeat(values, SEEDS) for name, values in {**shape, "params_blocks": size - n_embd, "n_tokens": tokens}.items()}
    columns |= {"trial_id": trial_id, "config_id": np.repeat(ids, SEEDS), "seed": np.tile(np.arange(SEEDS), n_configurations)}
    columns |= {"status": np.repeat("COMPLETED", len(loss)), "val_loss": loss}
    _write(results, "trials", columns)
    steps = np.tile(np.arange(1, EVALUATIONS + 1) * 100, len(loss))
    curve = np.repeat(loss, EVALUATIONS) + 2 * (steps / 100.0) ** -0.9
    _write(results, "curves", {"trial_id": np.repeat(trial_id, EVALUATIONS), "step": steps, "tokens": steps * 512, "val_loss": curve})


def _write(results: Path, name: str, columns: dict[str, np.ndarray]) -> None:
    schema = records.SCHEMAS[name]
    n_rows = len(next(iter(columns.values())))
    arrays = [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(n_rows, f.type) for f in schema]
    records.write_table(results / f"{name}.parquet", pa.Table.from_arrays(arrays, schema=schema))


if __name__ == "__main__":
    main()
