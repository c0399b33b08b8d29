"""The fit card and the provenance of a study: what was fitted, how things are counted, what was left out, on what and at what cost.

tree["card"] = card.fit_card(table, fitted, counts); tree["provenance"] = card.provenance(table)
"""

from __future__ import annotations

import platform
import re
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import scipy

from analysis.findings.fit_summary import Options
from analysis.findings.size_law import Fitted
from analysis.table.load import Table

CONVENTION_TEXT = {
    "params_non_embedding": "all parameters less token and position embeddings (Kaplan et al. 2020)",
    "params_total": "all parameters, tied head counted once, position embeddings included",
    "params_blocks": "parameters of the transformer blocks, without the final norm",
}


def fit_card(table: Table, fitted: Fitted | None, options: Options) -> dict[str, Any]:
    """Machine-readable description of the primary fit and of the rows behind it."""
    kinds = Counter(re.split(r"[:,]", e.reason)[0] for e in table.excluded)
    card: dict[str, Any] = {
        "counted": {
            "N": CONVENTION_TEXT,
            "D": "training tokens seen, with repetition",
            "C": "FLOP of forward and backward matrix products per token, times D",
        },
        "unit_of_analysis": "configuration (mean over its seeds); never checkpoints, never seeds as independent points",
        "rows": {"read": len(table.rows), "used": len(table.trials), "excluded": dict(kinds)},
        "intervals": {
            "level": options.level,
            "primary": "profile likelihood, F calibration on configuration means",
            "bands": "delta method",
            "cross_check": f"bootstrap of configurations, then seeds ({options.n_bootstrap} resamples, seed {options.seed})",
        },
    }
    if fitted is None:
        return card | {"fitted": None}
    result = fitted.result
    rows = {
        "fit": fitted.fit_id,
        "equation": result.law.equation,
        "source": result.law.source,
        "convention": fitted.column,
        "reference": result.reference,
        "residual": "log loss",
        "objective": result.objective,
        "delta": result.delta,
        "optimizer": "variable projection over the exponents, then damped Newton with the exact Hessian",
        "starts": result.n_starts,
        "starts_agreeing": result.starts_agreeing,
        "gradient_norm": result.gradient_norm,
        "status": result.status.name,
        "configurations": [str(c) for c in fitted.cells.config_id],
    }
    return card | {"fitted": rows}


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
