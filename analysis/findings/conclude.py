"""Everything that the analysis concludes about a study, as one JSON-ready tree: the contents of fits.json.

    conclusions = conclude(table.load(results)); write(results / "report" / "fits.json", conclusions)

A number that the data do not determine is a typed refusal in its place. No sentence stands here: `analysis.report` words it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.estimate import Code, Refusal, collect
from analysis.findings import forecasts, searches, training, verdict
from analysis.findings.fit_summary import Options, build, compute_optimal, residual_sd
from analysis.findings.levers import Study, levers
from analysis.findings.lines import at_length, training_lengths, without_head_sweep
from analysis.findings.size_law import Fitted, all_fits, leave_largest_out
from analysis.findings.sweeps import describe, find_sweeps
from analysis.findings.training_length import longer, over_length
from analysis.fits.forecast_law import fit_forecast_law
from analysis.fits.shape_law import fit_shape_law
from analysis.table import evidence
from analysis.table import load as tables
from analysis.table.configurations import Configurations, average, measure_noise
from analysis.table.load import Table
from analysis.table.recipe import one_recipe
from analysis.text import findings as texts
from study.files import replaced

SCHEMA_VERSION = "1.0"
QUESTION = "What do depth, width, heads, or simply more parameters buy?"
FINDINGS = (
    "over_length", "length_law", "shape", "best", "trust", "next", "forecast_law", "noise", "compute_optimal", "diagnostics", "overfitting",
    "learning_rates",
)  # fmt: skip
"""Keys that a study without a usable trial refuses."""


def conclude(table: Table, options: Options | None = None) -> dict[str, Any]:
    """Analyze a loaded table; every key of fits.json, whatever the study lacks being a refusal in its place."""
    options, trials = options or Options(), table.trials[one_recipe(table.trials)]
    joint = average(trials) if len(trials) else None
    tried = all_fits(joint, options.delta) if joint else []
    tree: dict[str, Any] = clean(_facts(table) | (_findings(table, joint, tried, options) if joint else _nothing()))
    tree |= clean({"stories": texts.conclude(evidence.load(table.path, tree)), "forecasts": _forecasts(table, joint)})
    unfit = {f.reason: f.code for f in tried if isinstance(f, Refusal)}
    listed = [{"subject": "fits", "code": str(code), "reason": reason} for reason, code in unfit.items()]
    return tree | {"refusals": [*collect(tree), *listed]}


def _facts(table: Table) -> dict[str, Any]:
    """What was read, before anything is concluded."""
    return {
        "schema_version": SCHEMA_VERSION,
        "study": table.name,
        "question": str(table.study.get("question") or QUESTION),
        "results": table.path.resolve().name,
        "data": training.data_facts(table),
        "counts": tables.counts(table),
        "exclusions": table.excluded,
        "problems": table.problems,
        "card": training.CARD,
        "provenance": training.provenance(table),
    }


# ---- findings ----


def _findings(table: Table, joint: Configurations, tried: Sequence[Fitted | Refusal], options: Options) -> dict[str, Any]:
    """Every block that needs at least one usable trial.

    Args:
        joint: configurations of one recipe, which a joint fit may compare.
        tried: fits of them.
    """
    cells = average(table.trials)
    noise, found = measure_noise(cells), find_sweeps(cells, set(joint.config_id))
    fits = [f for f in tried if isinstance(f, Fitted)]
    primary = next((f for f in fits if f.fit_id == "joint"), None)
    unfit = next((f for f in tried if isinstance(f, Refusal)), Refusal(Code.MISSING, "no fit of all configurations"))
    laws = {n: fit_shape_law(joint.take(without_head_sweep(joint, at_length(joint, n)))) for n in training_lengths(joint)}
    return _answer(table, Study(joint, noise, laws), primary) | {
        "noise": noise,
        "fits": {f.fit_id: build(f, noise, options) for f in fits},
        "primary_fit": primary and primary.fit_id,
        "sweeps": [describe(cells, sweep, noise) for sweep in found],
        "compute_optimal": compute_optimal(joint, primary, noise),
        "diagnostics": {"leave_largest_out": leave_largest_out(primary)} if primary else unfit,
        "timing": training.timing(table.trials, cells, found),
        "overfitting": training.overfitting(cells),
        "learning_rates": searches.learning_rates(table, noise),
        "fronts": searches.fronts(table),
    }


def _answer(table: Table, study: Study, primary: Fitted | None) -> dict[str, Any]:
    """Levers, shape, best model, trust and next step: what the answer is made from."""
    cells, found, longest = study.cells, levers(study), study.lengths()[-1]
    shape = verdict.shape(study, found)
    trust = verdict.trust(table, table.trials[one_recipe(table.trials)], study, found, residual_sd(primary) if primary else None)
    return {
        "levers": found,
        "over_length": over_length(cells, study.noise),
        "length_law": longer(cells),
        "shape": shape,
        "best": verdict.best_model(study),
        "forecast_law": {"n_tokens": longest} | fit_forecast_law(cells.take(at_length(cells, longest))).to_dict(),
        "trust": trust,
        "next": verdict.next_step(table, study, shape, trust),
    }


def _nothing() -> dict[str, Any]:
    """The tree of a study without a usable trial."""
    refusal = Refusal(Code.NO_TRIALS, "no trial completed with a usable loss")
    empty: dict[str, Any] = {"fits": {}, "primary_fit": None, "sweeps": [], "levers": [], "fronts": []}
    return empty | dict.fromkeys(FINDINGS, refusal) | {"timing": {"rows": [], "fit": refusal, "heads_slowdown": refusal}}


def _forecasts(table: Table, joint: Configurations | None) -> list[dict[str, Any]]:
    """Forecasts on record, scored where their configuration has run."""
    rows = forecasts.read(table.path / "forecasts.json")
    return forecasts.scored(rows, joint, table.trials) if joint else rows


# ---- the file ----


def clean(value: Any) -> Any:
    """JSON-ready: dataclasses as mappings, plain Python numbers and lists, None in the place of NaN and infinities."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    elif is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
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
    """Write fits.json whole or not at all."""
    text = json.dumps(tree, indent=1, allow_nan=False, default=str) + "\n"
    with replaced(path) as file:
        file.write(text.encode())
