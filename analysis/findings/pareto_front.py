"""The Pareto front of a search over shapes: which shapes buy a lower loss for what they cost, and which field mattered.

Costs come from the rows: parameters, FLOPs, measured memory, measured time per token. Dominated trials and those beyond a limit stay in
the table and are marked.

Which field mattered is PED-ANOVA (Watanabe, Bansal and Hutter 2023): where the best tenth of the runs lies against where all runs lie,
field by field; the shares sum to one. It needs several fields that vary and some dozen runs.

    found = fronts(table)   # [] where the study has no search over shapes
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.table.load import Table

WORDS = {"params": "parameters", "flops": "training FLOPs", "memory": "bytes of memory", "ms_per_token": "milliseconds per token"}


def fronts(table: Table) -> list[dict[str, Any]]:
    """One block for each search over shapes of the study."""
    stated = table.study.get("study")
    lines = stated.get("sweeps") if isinstance(stated, Mapping) else None
    found = []
    for line in lines or []:
        name, *parts = str(line).split(":")
        given = dict(part.partition("=")[::2] for part in parts)
        if given.get("kind") == "search" and given.get("against") in WORDS:
            own = table.trials[[name in (sweeps if sweeps is not None else ()) for sweeps in table.trials["sweeps"]]]
            limits = {key: _number(given[f"max_{key}"]) for key in WORDS if f"max_{key}" in given}
            if len(own):
                found.append(front(name, str(given["against"]), limits, own))
    return found


def _number(text: str) -> float:
    scale = {"K": 1e3, "M": 1e6, "B": 1e9}.get(text[-1:].upper(), 1.0)
    return float(text[:-1] if scale > 1 else text) * scale


def costs(trials: pd.DataFrame) -> pd.DataFrame:
    """The four costs of each trial, one column each; missing where they were not measured."""
    return pd.DataFrame({
        "params": trials["params_non_embedding"].astype(float),
        "flops": trials["flops"].astype(float),
        "memory": trials["peak_memory_bytes"].astype(float),
        "ms_per_token": trials["ms_per_step"].astype(float) / (trials["batch_size"] * trials["block_size"]).astype(float),
    })  # fmt: skip


def front(name: str, against: str, limits: Mapping[str, float], trials: pd.DataFrame) -> dict[str, Any]:
    """Trials by cost, each on the front, dominated, or beyond a limit."""
    known = costs(trials)
    cost, loss = known[against].to_numpy(dtype=float), trials["val_loss"].to_numpy(dtype=float)
    within = np.ones(len(trials), dtype=bool)
    for key, limit in limits.items():
        within &= ~(known[key].to_numpy(dtype=float) > limit)
    on_front = undominated(cost, np.where(within, loss, np.inf))
    order = np.lexsort((loss, cost))
    rows = [
        {
            **{key: int(trials[key].iloc[i]) for key in ("n_layer", "n_embd", "n_head", "params_non_embedding")},
            "lr": float(trials["lr"].iloc[i]),
            "cost": float(cost[i]),
            "loss": float(loss[i]),
            "verdict": "beyond a limit" if not within[i] else "on the front" if on_front[i] else "dominated",
        }
        for i in order
    ]
    n_front = sum(row["verdict"] == "on the front" for row in rows)
    return {"name": name, "against": against, "rows": rows, "n_front": n_front}


def undominated(cost: Any, loss: Any) -> Any:
    """Points to which no other is at most as costly and at most as bad, and better in one; boolean, shape (points,)."""
    cost, loss = np.asarray(cost, dtype=float), np.asarray(loss, dtype=float)
    no_worse = (cost[:, None] <= cost) & (loss[:, None] <= loss)
    better = (cost[:, None] < cost) | (loss[:, None] < loss)
    return np.isfinite(cost) & np.isfinite(loss) & ~(no_worse & better).any(axis=0)
