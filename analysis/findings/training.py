"""Facts of the runs: what they were trained on, by what and at what cost; the gap to training loss, and what a step costs.

Timings of trials that shared a device measure their neighbors; they are listed, marked and never compared or fitted.

    overfit = training.overfitting(cells); block = training.timing(trials, cells, sweeps)
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy

from analysis.estimate import LEVEL, SIZE, Code, Refusal
from analysis.findings.sweeps import Sweep, thinned
from analysis.fits import fit as fits
from analysis.fits.laws import TIMING
from analysis.table.configurations import SHAPE, Configurations, t_quantile, whole
from analysis.table.load import Table

SHARED = "these trials shared their device or do not say that they had it alone; run them with exclusive timing to compare speeds"


CARD: Mapping[str, Any] = {
    "counted": {
        "N": {
            "params_non_embedding": "all parameters less token and position embeddings (Kaplan et al. 2020)",
            "params_total": "all parameters, tied head counted once, position embeddings included",
            "params_blocks": "parameters of the transformer blocks, without the final norm",
        },
        "D": "training tokens seen, with repetition",
        "C": "FLOP of forward and backward matrix products per token, times D",
    },
    "unit_of_analysis": "configuration (mean over its seeds); never checkpoints, never seeds as independent points",
    "intervals": {"level": LEVEL, "primary": "profile likelihood, F calibration on configuration means"},
}
"""How things are counted and fitted, whatever the study."""


def data_facts(table: Table) -> dict[str, Any]:
    """What the models were trained on."""
    held = table.study.get("data")
    stated: Mapping[str, Any] = held if isinstance(held, Mapping) else {}

    def first(column: str) -> Any:
        values = table.rows[column].dropna()
        return None if values.empty else values.iloc[0]

    return {
        "name": first("data_name") or stated.get("name"),
        "sha256": first("data_sha256"),
        "floor": first("loss_floor") if first("loss_floor") is not None else stated.get("floor"),
        "vocab_size": first("vocab_size"),
        "unique_tokens": first("unique_tokens"),
        "n_tokens": sorted({int(v) for v in table.trials["n_tokens"]}),
    }


def provenance(table: Table) -> dict[str, Any]:
    """Versions, commits, machines and cost, from the rows and study.json."""
    rows = table.rows
    versions = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__, "pandas": pd.__version__}
    versions |= {name: _values(rows, f"{name}_version") for name in ("torch", "ray")}
    started, finished = rows["started_at"].dropna(), rows["finished_at"].dropna()
    return {
        "versions": versions,
        "git_commit": _values(rows, "git_commit"),
        "git_dirty": bool(rows["git_dirty"].fillna(False).astype(bool).any()),
        "machine": table.study.get("machine") or {"host": _values(rows, "host"), "device": _values(rows, "device")},
        "started_at": started.min().isoformat() if len(started) else None,
        "finished_at": finished.max().isoformat() if len(finished) else None,
        "recipe_version": _values(rows, "recipe_version"),
        "cost": cost(rows),
        "quote": table.study.get("quote"),
    }


def cost(rows: pd.DataFrame) -> dict[str, float | None]:
    """What all trials used, the failed ones included: trial hours, device-hours (a GPU counts by the fraction held), FLOP."""
    wall = rows["wall_s"].astype(float)
    if not wall.notna().any():
        return {"wall_s": None, "device_hours": None, "flops": _total(rows["flops"])}
    fraction = rows["gpu_fraction"].astype(float)
    shared = fraction.where(fraction > 0, 1.0).fillna(1.0) / rows["bundle_size"].astype(float).where(rows["bundle_size"] > 0).fillna(1.0)
    return {"wall_s": _total(wall), "device_hours": _total(wall * shared / 3600), "flops": _total(rows["flops"])}


def _total(values: pd.Series) -> float | None:
    numbers = values.astype(float).dropna()
    return float(numbers.sum()) if len(numbers) else None


def _values(rows: pd.DataFrame, column: str) -> Any:
    """The distinct values of a column: one as it is, several as a list."""
    found = sorted(rows[column].dropna().unique().tolist())
    return found[0] if len(found) == 1 else (found or None)


# ---- overfitting ----


def overfitting(cells: Configurations) -> dict[str, Any]:
    """Validation less training loss at the last step: mean over configurations with its t interval, and the most epochs of any."""
    gap = cells.loss - cells.columns["train_loss"]
    known = np.isfinite(gap)
    if not known.any():
        return Refusal(Code.MISSING, "no trial recorded train_loss, so the gap to validation loss is not known").to_dict()
    gap, epochs = gap[known], cells.columns["epochs"][known]
    block: dict[str, Any] = {"gap": float(gap.mean()), "low": None, "high": None}
    block["epochs"] = float(np.nanmax(epochs)) if np.isfinite(epochs).any() else None
    if len(gap) > 1:
        half = t_quantile(len(gap) - 1) * float(gap.std(ddof=1)) / np.sqrt(len(gap))
        block |= {"low": block["gap"] - half, "high": block["gap"] + half}
    return block


# ---- time per step ----


def timing(trials: pd.DataFrame, cells: Configurations, sweeps: Sequence[Sweep]) -> dict[str, Any]:
    """Rows of measured times, the timing law's fit, and what heads cost."""
    alone = np.isfinite(cells.columns["ms_exclusive"])
    rows = [
        {
            **{c: whole(cells.columns[c][i]) for c in (*SHAPE, SIZE)},
            "ms_per_step": cells.columns["ms_exclusive"][i] if alone[i] else cells.columns["ms_per_step"][i],
            "tokens_per_s": cells.columns["tokens_per_s"][i],
            "peak_memory_bytes": cells.columns["peak_memory_bytes"][i],
            "exclusive": bool(alone[i]),
        }
        for i in thinned(len(cells))
        if np.isfinite(cells.columns["ms_per_step"][i])
    ]
    if not rows:
        refusal = Refusal(Code.MISSING, "no trial recorded ms_per_step").to_dict()
        return {"rows": [], "fit": refusal, "heads_slowdown": refusal}
    heads = next((s for s in sweeps if s.factor == "n_head"), None)
    slowdown = heads_slowdown(trials, cells, heads) if heads else Refusal(Code.NO_VARIATION, "no sweep varies the number of heads")
    return {"rows": rows, "fit": _fit(cells, alone), "heads_slowdown": slowdown.to_dict() if isinstance(slowdown, Refusal) else slowdown}


def _fit(cells: Configurations, alone: Any) -> dict[str, Any]:
    """The timing law on configurations timed alone, with its median relative error."""
    if not alone.any():
        return Refusal(Code.SHARED_DEVICE, f"no law of time per step: {SHARED}").to_dict()
    timed = cells.take(alone)
    if any(len(np.unique(timed.columns[c])) < 3 for c in SHAPE) or len(timed) < len(TIMING.parameters) + 2:
        reason = f"the timing law needs {len(TIMING.parameters) + 2} exclusive configurations with three depths, widths and head counts"
        return Refusal(Code.TOO_FEW_DF, reason).to_dict()
    try:
        result = fits.fit(TIMING, timed.columns, timed.columns["ms_exclusive"])
    except fits.FitError as error:
        return Refusal(Code.TOO_FEW_DF, str(error)).to_dict()
    return {
        "equation": TIMING.equation,
        "source": TIMING.source,
        "reference": dict(result.reference),
        "status": result.status.name,
        "parameters": dict(result.params),
        "median_relative_error": float(np.median(np.abs(np.expm1(result.residuals)))),
        "n_configurations": len(timed),
    }


def heads_slowdown(trials: pd.DataFrame, cells: Configurations, sweep: Sweep) -> dict[str, Any] | Refusal:
    """Time per step with the most heads over that with the fewest, all else equal, with a t interval of its log where trials repeat."""
    ends = [sweep.members[0], sweep.members[-1]]
    if not np.isfinite(cells.columns["ms_exclusive"][ends]).all():
        return Refusal(Code.SHARED_DEVICE, f"no slow-down of heads: {SHARED}")
    ratio = float(cells.columns["ms_exclusive"][ends[1]] / cells.columns["ms_exclusive"][ends[0]])
    alone = trials[trials["exclusive_timing"].fillna(False).astype(bool)]
    logs = [np.log(alone.loc[alone["config_id"].astype(str) == str(cells.config_id[i]), "ms_per_step"].to_numpy(float)) for i in ends]
    block: dict[str, Any] = {"ratio": ratio, "low": None, "high": None}
    if all(len(x) > 1 for x in logs):
        df = sum(len(x) - 1 for x in logs)
        pooled = sum(float(np.sum((x - x.mean()) ** 2)) for x in logs) / df
        half = t_quantile(df) * float(np.sqrt(pooled * sum(1 / len(x) for x in logs)))
        block |= {"low": ratio * np.exp(-half), "high": ratio * np.exp(half)}
    return block
