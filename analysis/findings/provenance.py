"""What a study was trained on, by what, where and at what cost; how things are counted: the facts beside the findings.

tree["provenance"] = provenance(table); tree["data"] = data_facts(table)
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy

from analysis.table.configurations import LEVEL
from analysis.table.load import Table

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
