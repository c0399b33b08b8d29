"""What training itself shows: the gap between training and validation loss.

overfit = training.overfitting(cells)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.estimate import Code, Refusal
from analysis.table.configurations import Configurations, t_quantile
from analysis.wording import reach_text

SIZE = "params_non_embedding"


# ---- overfitting ----


def overfitting(cells: Configurations) -> dict[str, Any]:
    """Validation less training loss at the last step: mean over configurations, its t interval, and how it moves with size."""
    gap = cells.loss - cells.columns["train_loss"]
    known = np.isfinite(gap)
    if not known.any():
        return Refusal(Code.MISSING, "no trial recorded train_loss, so the gap to validation loss is not known").to_dict()
    gap, size = gap[known], cells.columns[SIZE][known]
    epochs = cells.columns["epochs"][known]
    block: dict[str, Any] = {"gap": float(gap.mean()), "low": None, "high": None, "largest_model_gap": float(gap[np.argmax(size)])}
    block["epochs"] = float(np.nanmax(epochs)) if np.isfinite(epochs).any() else None
    if len(gap) > 1:
        half = t_quantile(len(gap) - 1) * float(gap.std(ddof=1)) / np.sqrt(len(gap))
        block |= {"low": block["gap"] - half, "high": block["gap"] + half}
    error = cells.columns["val_loss_se"][known]
    noise = float(np.nanmedian(error)) if np.isfinite(error).any() else None
    return block | _gap_verdict(block, noise)


def _gap_verdict(block: dict[str, Any], evaluation_se: float | None) -> dict[str, Any]:
    """A gap counts as overfitting where it exceeds what two evaluations of finite windows differ by."""
    side, sign = ("above", 1.0) if block["gap"] >= 0 else ("below", -1.0)
    interval = "" if block["low"] is None else reach_text(*sorted((sign * block["low"], sign * block["high"])))
    epochs = "" if block["epochs"] is None else f" after {block['epochs']:.2g} epochs at most"
    text = f"Validation loss lies {abs(block['gap']):.3f} nats{interval} {side} training loss on average{epochs}"
    if evaluation_se is None:
        return {"verdict": "undecided: the error of an evaluation is not recorded", "sentence": text + "."}
    floor = 1.96 * np.sqrt(2) * evaluation_se
    small = abs(block["gap"]) <= floor
    verdict = (
        "within evaluation noise" if small else ("larger than evaluation noise" if block["gap"] > 0 else "training windows are harder")
    )
    return {
        "verdict": verdict,
        "evaluation_noise": floor,
        "sentence": f"{text}: {verdict} (two evaluations differ by up to {floor:.3f} nats).",
    }
