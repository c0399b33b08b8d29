"""Writes a trial's row, curve and samples when it ends; the only writer of results tables during a run.

Runs on the driver. Every file is written whole or not at all, the trial's row last: where the row is, the rest is too.

    Recorder(out, "quick", code_version, columns, trials, vocab_size).ended(outcome, where)
"""

import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from study import records
from study.files import retried
from study.spec import RECIPE_VERSION, Trial

PATIENCE_S = (0.2, 1.0, 4.0)
"""Pauses before a failed write is tried again: a network folder may be away for a moment."""

PROBE_BYTES = 1 << 16
"""A trial's row, curve and some texts."""
CHECKPOINT_BYTES = 2 * 12
"""Per parameter: weights and AdamW's two moments in float32; twice, for what a checkpoint that almost fitted gave back is no room."""

PEAKS = {
    "cuda (NVIDIA A100-SXM4-40GB)": 312e12, "cuda (NVIDIA A100-SXM4-80GB)": 312e12, "cuda (NVIDIA A100-PCIE-40GB)": 312e12,
    "cuda (NVIDIA A100 80GB PCIe)": 312e12, "cuda (NVIDIA H100 80GB HBM3)": 989e12, "cuda (NVIDIA H100 PCIe)": 756e12,
    "cuda (NVIDIA H200)": 989e12, "cuda (NVIDIA L4)": 121e12, "cuda (NVIDIA L40S)": 362e12,
}  # fmt: skip
"""Dense bf16 FLOP/s of a device, from NVIDIA's data sheets (which print twice as much, for sparse matrices)."""

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Where:
    """How and when a trial ran: columns that training itself does not know."""

    started_at: float
    """POSIX seconds of the first start in this run"""
    gpu_fraction: float = 0.0
    mps: bool = False
    bundle_size: int = 1
    exclusive: bool = False
    """it had its device to itself all the time"""
    host: str = ""
    remark: str = ""
    """what a person should know of a trial that completed all the same"""
    wall_s: float | None = None
    """seconds since its first start by a clock that never jumps; None takes the time of day"""

    def columns(self) -> dict[str, Any]:
        """As columns of the table `trials`."""
        wall_s = time.time() - self.started_at if self.wall_s is None else self.wall_s
        own = {name: getattr(self, name) for name in ("gpu_fraction", "mps", "bundle_size", "host")} | {"exclusive_timing": self.exclusive}
        return own | {"started_at": records.utc(self.started_at), "finished_at": records.utc(self.started_at + wall_s), "wall_s": wall_s}


@dataclass
class Recorder:
    """Writer of one study's tables."""

    out: Path
    study: str
    code_version: str
    columns: dict[str, Any]
    """columns with one value for the whole run: data, versions, git state"""
    trials: dict[str, Trial]
    vocab_size: int
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    """rows written in this run, by trial_id"""
    again: frozenset[str] = frozenset()
    """trials with a completed row, which only another completed one replaces"""

    def ended(self, outcome: Mapping[str, Any], where: Where) -> dict[str, Any]:
        """Write what a trial handed back: its `row` of train-side columns, its `curve` and its `samples`.

        Returns:
            The whole row as written.
        """
        row = {**self._facts(outcome["row"]["trial_id"]), **where.columns(), **outcome["row"]}
        row["reason"] = row.get("reason") or where.remark or None
        self._write(row, outcome["curve"], outcome["samples"])
        return row

    def cut_off(self, trial_id: str, status: str, reason: str, curve: Rows, where: Where) -> dict[str, Any]:
        """Write a trial that did not come to its end: FAILED, STOPPED by a search, or INTERRUPTED and to be continued."""
        last = curve[-1] if curve else {}
        losses = {name: last.get(name) for name in ("val_loss", "val_bpb", "train_loss")}
        steps = {"n_steps": last.get("step", 0), "n_tokens": last.get("tokens", 0)}
        row = {**self._facts(trial_id), **where.columns(), **losses, **steps, "status": status, "reason": reason}
        if trial_id not in self.again:
            self._write(row, curve, [])
        return row

    def sweep(self) -> None:
        """Drop checkpoints of trials that nothing continues: a worker may have been writing one when its trial ended."""
        for row in self.rows.values():
            self._drop_checkpoints(row)

    def _drop_checkpoints(self, row: Mapping[str, Any]) -> None:
        if row["status"] in ("COMPLETED", "DIVERGED", "STOPPED"):
            shutil.rmtree(self.out / "checkpoints" / row["trial_id"], ignore_errors=True)

    def probe(self, trials: Iterable[Trial]) -> None:
        """Write as much as the rows and two checkpoints of these trials into the results folder, and take it back.

        Raises:
            OSError: there is no room for it: trying them again would be in vain.
        """
        path = self.out / f".probe-{os.getpid()}"
        try:
            with path.open("wb") as file:
                for trial in trials:
                    checkpoint = CHECKPOINT_BYTES * trial.model(self.vocab_size).params_total
                    for _ in range(1 + checkpoint // PROBE_BYTES):
                        file.write(bytes(PROBE_BYTES))
        finally:
            path.unlink(missing_ok=True)

    def _facts(self, trial_id: str) -> dict[str, Any]:
        """Columns that follow from the trial itself."""
        trial = self.trials[trial_id]
        recipe = ("batch_size", "lr", "weight_decay", "warmup_steps", "dropout", "schedule")
        unique = trial.train.unique_tokens or self.columns["unique_tokens"]
        return {
            **self.columns,
            **trial.model(self.vocab_size).columns(),
            **{name: getattr(trial.train, name) for name in recipe},
            "trial_id": trial_id,
            "config_id": trial.config_id,
            "seed": trial.seed,
            "study": self.study,
            "sweeps": list(trial.sweeps),
            "lr_status": trial.lr_status,
            "recipe_version": RECIPE_VERSION,
            "unique_tokens": unique,
            "restarts": 0,
        }

    def _write(self, row: dict[str, Any], curve: Rows, samples: Rows) -> None:
        trial_id = row["trial_id"]
        row["flops"] = float(row["flops_per_token"]) * row["n_tokens"]
        row["epochs"] = row["n_tokens"] / row["unique_tokens"]
        if row.get("tokens_per_s") and row["precision"] == "bf16" and row["device"] in PEAKS:
            row["mfu"] = row["flops_per_token"] * row["tokens_per_s"] / PEAKS[row["device"]]
        for table, rows in (("curves", curve), ("samples", samples), ("trials", [row])):
            tagged = [{"trial_id": trial_id, **line} for line in rows]
            path = self.out / table / f"{trial_id}.parquet"
            retried(partial(records.write, path, table, tagged, self.study, self.code_version), PATIENCE_S)
        self.rows[trial_id] = row
        self._drop_checkpoints(row)
