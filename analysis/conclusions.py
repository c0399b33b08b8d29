"""Everything that the analysis concludes about a study, as one JSON-ready tree: the contents of fits.json.

    conclusions = conclude(table.load(results)); write(results / "report" / "fits.json", conclusions)

Top-level keys beyond the contract of the report: `schema_version`, `problems` (what was wrong with the files), `selection` (laws ranked by
AICc), `claims` (comparisons such as "width matters more than depth", answered or refused).
"""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import fit_blocks, replicates, selection, sweeps
from analysis import table as tables
from analysis.fit_blocks import CONVENTIONS, SIZE, Fitted, Options
from analysis.refusals import Code, Refusal, collect
from analysis.replicates import Configurations, Noise
from analysis.table import Table

SCHEMA_VERSION = "1.0"
QUESTION = "What do depth, width, heads, or simply more parameters buy?"


def conclude(table: Table, options: Options | None = None) -> dict[str, Any]:
    """Analyze a loaded table; every key of fits.json, whatever the study lacks being a refusal in its place."""
    options = options or Options()
    cells = replicates.average(table.trials)
    noise = replicates.measure_noise(cells)
    described = sweeps.describe_all(cells, noise)
    found = all_fits(table.trials, options)
    tree: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "study": table.name,
        "question": str(table.study.get("question") or QUESTION),
        "results": table.path.name,
        "answer": [],
        "data": data_facts(table, cells),
        "counts": tables.counts(table),
        "exclusions": [e.__dict__ for e in table.excluded],
        "problems": list(table.problems),
        "noise": noise.to_dict(),
        "fits": {f.fit_id: fit_blocks.build(f, noise, options) for f in found if isinstance(f, Fitted)},
        "primary_fit": next((f.fit_id for f in found if isinstance(f, Fitted)), None),
        "sweeps": described,
    }
    tree["refusals"] = list(collect(tree))
    return clean(tree)


def all_fits(trials: pd.DataFrame, options: Options) -> list[Fitted | Refusal]:
    """The joint fit first, then the same under the other ways to count N, then one for each sweep."""
    if trials.empty:
        return []
    cells = replicates.average(trials[selection.one_recipe(trials)])
    return [
        fit_blocks.fit_size_law("joint" if column == SIZE else f"joint@{column}", "All configurations", cells, column)
        for column in CONVENTIONS
        if np.isfinite(cells.columns[column]).all()
    ]


def data_facts(table: Table, cells: Configurations) -> dict[str, Any]:
    """What the models were trained on."""

    def first(column: str) -> Any:
        values = table.rows[column].dropna()
        return None if values.empty else values.iloc[0]

    return {
        "name": first("data_name"),
        "sha256": first("data_sha256"),
        "floor": first("loss_floor"),
        "vocab_size": first("vocab_size"),
        "unique_tokens": first("unique_tokens"),
        "n_tokens": sorted({int(v) for v in cells.columns["n_tokens"]}) if len(cells) else [],
    }


def clean(value: Any) -> Any:
    """JSON-ready: plain Python numbers and lists, None in the place of NaN and infinities."""
    if isinstance(value, Mapping):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | np.ndarray):
        return [clean(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def write(path: Path, tree: Mapping[str, Any]) -> None:
    """Write fits.json atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_text(json.dumps(tree, indent=1, allow_nan=False, default=str) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
