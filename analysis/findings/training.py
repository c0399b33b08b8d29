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

from analysis.estimate import LEVEL, Code, Refusal
from analysis.findings.sweeps import Sweep, ends, shape_of, thinned
from analysis.fits import fit as fits
from analysis.fits.laws import TIMING
from analysis.table.configurations import SHAPE, Configurations, t_quantile
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

    def first(column: str, otherwise: Any = None) -> Any:
        values = table.rows[column].dropna()
        return otherwise if values.empty else values.iloc[0]

    return {
        "name": first("data_name") or stated.get("name"),
        "sha256": first("data_sha256"),
        "floor": first("loss_floor", stated.get("floor")),
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
    wall, fraction, bundle = (rows[name].astype(float) for name in ("wall_s", "gpu_fraction", "bundle_size"))
    shared = fraction.where(fraction > 0, 1.0) / bundle.where(bundle > 0, 1.0)
    used = {"wall_s": wall, "device_hours": wall * shared / 3600, "flops": rows["flops"].astype(float)}
    return {name: float(values.dropna().sum()) if values.notna().any() else None for name, values in used.items()}


def _values(rows: pd.DataFrame, column: str) -> Any:
    """The distinct values of a column: one as it is, several as a list."""
    found = sorted(rows[column].dropna().unique().tolist())
    return found[0] if len(found) == 1 else (found or None)


# ---- overfitting ----


def overfitting(cells: Configurations) -> dict[str, Any] | Refusal:
    """Validation less training loss at the last step: mean over configurations with its t interval, and the most epochs of any."""
    gap = cells.loss - cells.columns["train_loss"]
    known = np.isfinite(gap)
    if not known.any():
        return Refusal(Code.MISSING, "no trial recorded train_loss, so the gap to validation loss is not known")
    gap, epochs = gap[known], cells.columns["epochs"][known]
    mean, n = float(gap.mean()), len(gap)
    half = t_quantile(n - 1) * float(gap.std(ddof=1)) / np.sqrt(n) if n > 1 else None
    return {"gap": mean, **ends(mean, half), "epochs": float(np.nanmax(epochs)) if np.isfinite(epochs).any() else None}


# ---- time per step ----


def timing(trials: pd.DataFrame, cells: Configurations, sweeps: Sequence[Sweep]) -> dict[str, Any]:
    """Rows of measured times, the timing law's fit, and what heads cost."""
    alone = np.isfinite(cells.columns["ms_exclusive"])
    rows = [
        {
            **shape_of(cells, i),
            "ms_per_step": cells.columns["ms_exclusive"][i] if alone[i] else cells.columns["ms_per_step"][i],
            "tokens_per_s": cells.columns["tokens_per_s"][i],
            "peak_memory_bytes": cells.columns["peak_memory_bytes"][i],
            "exclusive": alone[i],
        }
        for i in thinned(len(cells))
        if np.isfinite(cells.columns["ms_per_step"][i])
    ]
    if not rows:
        refusal = Refusal(Code.MISSING, "no trial recorded ms_per_step")
        return {"rows": [], "fit": refusal, "heads_slowdown": refusal}
    heads = next((s for s in sweeps if s.factor == "n_head"), None)
    slowdown = heads_slowdown(trials, cells, heads) if heads else Refusal(Code.NO_VARIATION, "no sweep varies the number of heads")
    return {"rows": rows, "fit": _fit(cells, alone), "heads_slowdown": slowdown}


def _fit(cells: Configurations, alone: Any) -> dict[str, Any] | Refusal:
    """The timing law on configurations timed alone, with its median relative error."""
    if not alone.any():
        return Refusal(Code.SHARED_DEVICE, f"no law of time per step: {SHARED}")
    timed, needed = cells.take(alone), len(TIMING.parameters) + 2
    if any(len(np.unique(timed.columns[c])) < 3 for c in SHAPE) or len(timed) < needed:
        reason = f"the timing law needs {needed} exclusive configurations with three depths, widths and head counts"
        return Refusal(Code.TOO_FEW_DF, reason)
    try:
        result = fits.fit(TIMING, timed.columns, timed.columns["ms_exclusive"])
    except fits.FitError as error:
        return Refusal(Code.TOO_FEW_DF, str(error))
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
    outer = [sweep.members[0], sweep.members[-1]]
    few, many = cells.columns["ms_exclusive"][outer]
    if not np.isfinite([few, many]).all():
        return Refusal(Code.SHARED_DEVICE, f"no slow-down of heads: {SHARED}")
    ratio = float(many / few)
    alone = trials[trials["exclusive_timing"].fillna(False).astype(bool)]
    logs = [np.log(alone.loc[alone["config_id"].astype(str) == str(cells.config_id[i]), "ms_per_step"].to_numpy(float)) for i in outer]
    if any(len(x) < 2 for x in logs):
        return {"ratio": ratio, **ends(ratio, None)}
    df = sum(len(x) - 1 for x in logs)
    pooled = sum(float(np.sum((x - x.mean()) ** 2)) for x in logs) / df
    half = t_quantile(df) * float(np.sqrt(pooled * sum(1 / len(x) for x in logs)))
    return {"ratio": ratio, "low": ratio * np.exp(-half), "high": ratio * np.exp(half)}
