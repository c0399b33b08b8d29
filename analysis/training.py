"""What training itself shows: the gap between training and validation loss, and whether learning rates were tuned per size.

overfit = training.overfitting(cells); rates = training.learning_rates(trials)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis import fits, selection
from analysis.laws import POWER
from analysis.refusals import Code, Refusal
from analysis.replicates import Configurations, average, t_quantile
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


# ---- learning rates ----


def learning_rates(trials: pd.DataFrame) -> dict[str, Any] | Refusal:
    """The best learning rate found per shape, whether it is bracketed, lr(N), and how the local slope changes without tuning."""
    known = trials[trials["lr"].notna() & (trials["lr"] > 0)]
    if known.empty:
        return Refusal(Code.MISSING, "no trial recorded its learning rate")
    model = ["n_layer", "n_embd", "n_head", "n_tokens", SIZE]
    grouped = known.groupby([*model, "lr"])["val_loss"].agg(["mean", "size"]).reset_index()
    searched = grouped.groupby(model)["lr"].transform("nunique") >= 3
    if not searched.any():
        distinct = sorted(known["lr"].unique())
        how = (
            f"every size ran at one learning rate ({distinct[0]:.3g})"
            if len(distinct) == 1
            else "each size ran at a learning rate set by rule"
        )
        advice = "train each size at several, for example --sweeps lr:kind=grid:n_embd=32,64:lr=2e-3,4e-3,8e-3"
        return Refusal(Code.UNMATCHED, f"{how}, so shape and tuning are confounded; {advice}")
    rows = [_best_rate(shape, group, model) for shape, group in grouped[searched].groupby(model)]
    return {"rows": rows, "bracketed": all(r["bracketed"] for r in rows), "law": _rate_law(rows), "slopes": _slopes(trials)}


def _best_rate(shape: Any, group: pd.DataFrame, model: list[str]) -> dict[str, Any]:
    ordered = group.sort_values("lr").reset_index(drop=True)
    best = int(ordered["mean"].to_numpy().argmin())
    return {
        **{name: int(value) for name, value in zip(model, shape, strict=True)},
        "lr": float(ordered["lr"][best]),
        "loss": float(ordered["mean"][best]),
        "bracketed": 0 < best < len(ordered) - 1,
        "tried": [{"lr": float(lr), "loss": float(loss), "n": int(n)} for lr, loss, n in ordered[["lr", "mean", "size"]].to_numpy()],
    }


def _rate_law(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """lr = c (N / N_ref)^-alpha through the bracketed optima, for transfer to larger sizes."""
    inner = [r for r in rows if r["bracketed"]]
    if len({r[SIZE] for r in inner}) < 3:
        return Refusal(Code.TOO_FEW_SIZES, f"lr(N) needs bracketed optima at three sizes, there are {len(inner)}").to_dict()
    sizes = np.array([r[SIZE] for r in inner], dtype=float)
    # POWER's exponent is at least 0: a rate that rises with size is fitted through 1/lr.
    rates = np.array([r["lr"] for r in inner])
    falls = np.polyfit(np.log(sizes), np.log(rates), 1)[0] <= 0
    result = fits.fit(POWER, {SIZE: sizes}, rates if falls else 1 / rates, objective="lad")
    exponent = -result.params["alpha"] if falls else result.params["alpha"]
    scale = result.params["c"] if falls else 1 / result.params["c"]
    return {"exponent": exponent, "lr_at_reference": scale, "reference": result.reference, "n_sizes": len(inner)}


def _slopes(trials: pd.DataFrame) -> dict[str, Any]:
    """dlnL/dlnN (a straight line through configuration means) with tuned rows and with fixed rows only."""
    found: dict[str, Any] = {}
    tuned = trials["lr_status"].isin(selection.TUNED)
    for name, rows in (("tuned", trials[tuned]), ("fixed", trials[~tuned])):
        cells = average(rows[selection.one_recipe(rows)]) if len(rows) else None
        if cells is not None and len(np.unique(cells.columns[SIZE])) > 2:
            slope = np.polyfit(np.log(cells.columns[SIZE]), np.log(cells.loss), 1)[0]
            found[name] = {"slope": float(slope), "n_configurations": len(cells)}
    return found
