"""What searches found: the best learning rate of each size and what tuning changes, and which shapes buy a lower loss for what they cost.

Everything comes from the tables: runs that a search gave up (STOPPED) bracket an optimum, but no loss of theirs is ever fitted.

    found = learning_rates(table, noise); blocks = fronts(table)   # [] where the study has no search over shapes
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.estimate import SIZE, Code, Refusal
from analysis.table.configurations import SHAPE, Noise, t_quantile
from analysis.table.load import STALE_PREFIXES, Table
from analysis.table.recipe import TUNED
from models.config import Shape
from study.search.learning_rate import Probe, bracket, noise_of, optimum
from study.search.settings import ShapeSettings
from study.sweeps import parse_sweep

KEY = [*SHAPE, "n_tokens", SIZE]
"""What the runs of one shape have in common."""

COSTS = {"params": "parameters", "flops": "training FLOPs", "memory": "bytes of memory", "ms_per_token": "milliseconds per token"}
"""What shapes are searched against, in words."""


def learning_rates(table: Table, noise: Noise | Refusal) -> dict[str, Any] | Refusal:
    """The best learning rate found per shape with its bracket, and slopes with and without tuning."""
    known = table.completed[table.completed["lr"].notna() & (table.completed["lr"] > 0)]
    if known.empty:
        return Refusal(Code.MISSING, "no trial recorded its learning rate")
    # runs that were stopped or diverged bracket, though they are never fitted
    ended = table.rows["status"].isin(["STOPPED", "DIVERGED"]) & ~table.rows["exclusion"].str.startswith(STALE_PREFIXES)
    given_up = table.rows[ended & table.rows["lr"].notna()]
    tried = []
    for _, own in known.groupby(KEY):
        beside = given_up[(given_up[list(SHAPE)] == own[list(SHAPE)].iloc[0]).all(axis=1)]
        runs = pd.concat([own, beside]) if len(beside) else own
        if runs["lr"].nunique() > 2:  # a bracket needs three
            tried.append((own, runs))
    chance = _chance(known, table.study, noise) if tried else None
    rows = [row for own, runs in tried if (row := _of_shape(own, runs, table.curves, chance))]
    if not rows:
        return _untuned(known)
    return {"rows": rows, "slopes": tuning_effect(known[known["lr_status"] != "searched"], table.study)}


def _chance(known: pd.DataFrame, study: Mapping[str, Any], noise: Noise | Refusal) -> float | None:
    """Difference of two losses that chance makes: as the search measured it, between replicates at the study's own rate, else overall."""
    own = pd.concat([_at_own_rate(part, study) for _, part in known.groupby(KEY)])
    groups = own.groupby("config_id")["val_loss"].agg(["var", "size"])
    many = groups[groups["size"] > 1]
    if len(many):
        return float(math.sqrt(2 * (many["var"] * (many["size"] - 1)).sum() / (many["size"] - 1).sum()))
    return math.sqrt(2) * noise.seed_sd if isinstance(noise, Noise) else None


def _untuned(known: pd.DataFrame) -> Refusal:
    distinct = sorted(known["lr"].unique())
    one = len(distinct) == 1
    how = f"every size ran at one learning rate ({distinct[0]:.3g})" if one else "each size ran at a learning rate set by rule"
    bases = sorted({int(base) for base in known["base_width"].dropna().unique()} - {0}) if "base_width" in known else []
    if bases:  # Yang et al. 2022, Dey et al. 2025: what muP and CompleteP promise, and what they do not
        name, over = ("CompleteP", "widths and depths") if (known["base_depth"] > 0).any() else ("muP", "widths, not over depths")
        how = f"{how} under {name} (base width {', '.join(map(str, bases))}), which carries it over {over}"
    advice = "let each size find its own, for example --sweeps rates:kind=search:n_embd=32,64:lr=1e-3,3e-2"
    return Refusal(Code.UNMATCHED, f"{how}, so shape and tuning {'may still be' if bases else 'are'} confounded; {advice}")


# ---- one shape ----


def _of_shape(own: pd.DataFrame, runs: pd.DataFrame, curves: pd.DataFrame, chance: float | None) -> dict[str, Any] | None:
    """What was found for a shape from its completed runs, `own`, and those given up beside them; None where none of these ended.

    Rates are compared on the seeds that ran at most of them: losses of other seeds differ by luck.
    """
    count = runs.groupby("seed")["lr"].nunique()
    paired = runs[runs["seed"].isin(count.index[count == count.max()])]
    probes = [_probe(lr, part, curves) for lr, part in paired.groupby("lr")]
    done = [p for p in probes if p.status == "COMPLETED"]
    if not done:
        return None
    best = min(done, key=lambda p: p.loss)
    below, above = bracket(best, probes, noise_of(probes) if chance is None else chance)
    chosen = own[own["lr_status"].isin(TUNED)]
    at_best = own[own["lr"] == best.lr]
    claimed = at_best[at_best["lr_status"] != "searched"]
    return {
        **{name: int(own[name].iloc[0]) for name in KEY},
        "lr": best.lr,
        "low": below and below.lr,
        "high": above and above.lr,
        "optimum": optimum(probes),
        "status": str(chosen["lr_status"].iloc[0]) if len(chosen) else "tried",
        "loss": float((claimed if len(claimed) else at_best)["val_loss"].mean()),
        "chosen_by_own_seeds": bool(set(paired["seed"]) & set(chosen["seed"])),
        "n_runs": len(paired),
        "n_stopped": int((paired["status"] == "STOPPED").sum()),
    }


def _probe(lr: Any, part: pd.DataFrame, curves: pd.DataFrame) -> Probe:
    """The runs of one learning rate as one: means over seeds, with the curve where there is a single run."""
    status = next((s for s in ("DIVERGED", "STOPPED") if (part["status"] == s).any()), "COMPLETED")
    errors = part["val_loss_se"].dropna()
    ends = [] if status == "DIVERGED" else [(int(part["n_steps"].fillna(0).iloc[0]), float(part["val_loss"].mean()))]
    own = curves[curves["trial_id"] == part["trial_id"].iloc[0]] if len(part) == 1 else curves.iloc[:0]
    points = {int(s): float(v) for s, v in zip(own["step"], own["val_loss"], strict=True) if np.isfinite(v)} | dict(ends)
    return Probe(float(lr), status, tuple(sorted(points.items())), float(errors.median()) if len(errors) else None)


# ---- what tuning changes ----


def tuning_effect(trials: pd.DataFrame, study: Mapping[str, Any]) -> dict[str, Any] | Refusal:
    """Slopes of ln L in depth, width and size over shapes that ran both tuned and at the study's own rate, and how they change."""
    pairs = [
        (key, float(tuned["val_loss"].mean()), float(own["val_loss"].mean()))
        for key, part in trials.groupby(KEY)
        if len(tuned := part[part["lr_status"].isin(TUNED)]) and len(own := _at_own_rate(part, study))
    ]
    if len(pairs) < 3:
        return Refusal(Code.TOO_FEW_SIZES, f"slopes with and without tuning need three shapes that ran both ways, there are {len(pairs)}")
    shapes = np.array([key for key, *_ in pairs], dtype=float)
    log_tuned, log_own = np.log([pair[1] for pair in pairs]), np.log([pair[2] for pair in pairs])
    effect: dict[str, Any] = {}
    for names, columns in ((("depth", "width"), (0, 1)), (("size",), (4,))):
        logs = np.log(shapes[:, columns])
        varying = [i for i in range(len(columns)) if np.ptp(logs[:, i]) > 0]
        design = np.column_stack([np.ones(len(pairs)), logs[:, varying]])
        if np.linalg.matrix_rank(design) < design.shape[1] or len(pairs) <= design.shape[1]:
            continue
        fitted = [_regression(design, y)[1:] for y in (log_tuned, log_own, log_tuned - log_own)]
        for position, i in enumerate(varying):
            effect[names[i]] = dict(zip(("tuned", "untuned", "change"), (cells[position] for cells in fitted), strict=True))
    return effect


def _regression(design: NDArray[np.float64], y: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Least-squares coefficients, each with its 95 % t interval; the design has full rank and more rows than columns."""
    found = np.linalg.lstsq(design, y, rcond=None)[0]
    df = len(y) - design.shape[1]
    variance = float(np.sum((y - design @ found) ** 2)) / df
    half = t_quantile(df) * np.sqrt(variance * np.diag(np.linalg.inv(design.T @ design)))
    method = f"least squares, t interval, {df} degrees of freedom"
    return [{"value": float(v), "low": float(v - h), "high": float(v + h), "method": method} for v, h in zip(found, half, strict=True)]


def _at_own_rate(part: pd.DataFrame, study: Mapping[str, Any]) -> pd.DataFrame:
    """A shape's rows at the rate that the study gives it without tuning; where no study.json tells, the untuned rate with most rows."""
    rate = own_rate(study, float(part[SIZE].iloc[0]))
    if rate is not None:
        return part[np.isclose(part["lr"].astype(float), rate, rtol=6e-3)]
    fixed = part[~part["lr_status"].isin(TUNED)]
    return fixed[fixed["lr"] == fixed["lr"].value_counts().idxmax()] if len(fixed) else fixed


def own_rate(study: Mapping[str, Any], size: float) -> float | None:
    """lr = train.lr (N / N_ref)^lr_exponent, as study.json states them; None where it does not."""
    stated: Any = study.get("study")
    try:
        model = stated["model"]
        if model.get("module"):  # whose sizes only its own code can count
            return None
        center = Shape(model["n_layer"], model["n_embd"], model["n_head"]).params_non_embedding
        reference = float(stated.get("lr_reference") or center)
        return float(stated["train"]["lr"]) * (size / reference) ** float(stated.get("lr_exponent") or 0.0)
    except (TypeError, KeyError, AttributeError, ValueError):
        return None


# ---- shapes against a cost ----


def fronts(table: Table) -> list[dict[str, Any]]:
    """The Pareto front of each search over shapes of the study."""
    stated = table.study.get("study")
    found = []
    for line in stated.get("sweeps") or [] if isinstance(stated, Mapping) else []:
        with suppress(ValueError):  # a line of another version
            sweep = parse_sweep(str(line))
            own = table.trials[[sweep.name in (names if names is not None else ()) for names in table.trials["sweeps"]]]
            if isinstance(sweep.search, ShapeSettings) and len(own):
                found.append({"name": sweep.name, "against": sweep.search.against, "rows": _front(sweep.search, own)})
    return found


def _front(asked: ShapeSettings, trials: pd.DataFrame) -> list[dict[str, Any]]:
    """Trials by cost, each on the front, dominated, or beyond a limit; a cost that was not measured is missing."""
    tokens = trials["batch_size"].astype(float) * trials["block_size"].astype(float)
    columns = {"params": trials[SIZE], "flops": trials["flops"], "memory": trials["peak_memory_bytes"]}
    columns["ms_per_token"] = trials["ms_per_step"].astype(float) / tokens
    costs = {name: values.astype(float).to_numpy() for name, values in columns.items()}
    cost, loss = costs[asked.against], trials["val_loss"].to_numpy(dtype=float)
    beyond = np.any([costs[name] > limit for name, limit in asked.limits.items()], axis=0) | np.zeros(len(trials), dtype=bool)
    told = np.where(beyond, np.inf, loss)
    no_worse = (cost[:, None] <= cost) & (told[:, None] <= told)
    better = (cost[:, None] < cost) | (told[:, None] < told)
    on_front = np.isfinite(cost) & np.isfinite(told) & ~(no_worse & better).any(axis=0)  # undominated
    return [
        {
            **{key: int(trials[key].iloc[i]) for key in (*SHAPE, SIZE)},
            "lr": float(trials["lr"].iloc[i]),
            "cost": float(cost[i]),
            "loss": float(loss[i]),
            "verdict": "beyond a limit" if beyond[i] else "on the front" if on_front[i] else "dominated",
        }
        for i in np.lexsort((loss, cost))
    ]
