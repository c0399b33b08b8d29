"""What training itself shows: the gap between training and validation loss, and what a step costs.

Timings of trials that shared a device measure their neighbors; they are listed, marked and never compared or fitted.

    overfit = training.overfitting(cells); block = training.timing(trials, cells, sweeps)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.estimate import Code, Refusal
from analysis.findings.sweeps import SHAPE, SIZE, Sweep, thinned
from analysis.fits import fit as fits
from analysis.fits.laws import TIMING
from analysis.table.configurations import Configurations, t_quantile, whole

SHARED = "these trials shared their device or do not say that they had it alone; run them with exclusive timing to compare speeds"


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
