"""Everything that the analysis concludes about a study, as one JSON-ready tree: the contents of fits.json.

    conclusions = conclude(table.load(results)); write(results / "report" / "fits.json", conclusions)

A number that the data do not determine is a typed refusal in its place. No sentence stands here: `analysis.report` words it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
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
from analysis.findings.training_length import Longer, longer, over_length
from analysis.fits.forecast_law import fit_forecast_law
from analysis.fits.shape_law import fit_shape_law
from analysis.table import evidence
from analysis.table import load as tables
from analysis.table.configurations import Configurations, Noise, average, measure_noise
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
    study = _Evidence.of(table, options or Options()) if len(table.trials) else None
    tree = _facts(table) | (_findings(study, options or Options()) if study else _nothing())
    tree["stories"] = texts.conclude(evidence.load(table.path, tree))
    tree["forecasts"] = _forecasts(table, study)
    tree["refusals"] = [*collect(tree), *(study.refused if study else [])]
    cleaned: dict[str, Any] = clean(tree)
    return cleaned


def _facts(table: Table) -> dict[str, Any]:
    """What was read, before anything is concluded."""
    return {
        "schema_version": SCHEMA_VERSION,
        "study": table.name,
        "question": str(table.study.get("question") or QUESTION),
        "results": table.path.resolve().name,
        "data": training.data_facts(table),
        "counts": tables.counts(table),
        "exclusions": [e.__dict__ for e in table.excluded],
        "problems": list(table.problems),
        "card": training.CARD,
        "provenance": training.provenance(table),
    }


@dataclass(frozen=True)
class _Evidence:
    """Configuration means, noise and fits: what all findings start from.

    `cells` holds every usable configuration, `joint` those of one recipe that a joint fit may compare; `unfit` says why there is no joint
    fit, where there is none.
    """

    table: Table
    cells: Configurations
    joint: Configurations
    noise: Noise | Refusal
    fits: list[Fitted]
    refused: list[dict[str, str]]
    unfit: dict[str, Any]

    @staticmethod
    def of(table: Table, options: Options) -> _Evidence:
        cells = average(table.trials)
        mask = one_recipe(table.trials)
        joint = cells if mask.all() else average(table.trials[mask])
        tried = all_fits(joint, options.delta)
        reasons = {f.reason: f.code for f in tried if isinstance(f, Refusal)}
        refused = [{"subject": "fits", "code": str(code), "reason": reason} for reason, code in reasons.items()]
        fitted = [f for f in tried if isinstance(f, Fitted)]
        unfit = next((f for f in tried if isinstance(f, Refusal)), Refusal(Code.MISSING, "no fit of all configurations")).to_dict()
        return _Evidence(table, cells, joint, measure_noise(cells), fitted, refused, unfit)

    @property
    def primary(self) -> Fitted | None:
        """The joint fit under the first convention."""
        return next((f for f in self.fits if f.fit_id == "joint"), None)


# ---- findings ----


def _findings(study: _Evidence, options: Options) -> dict[str, Any]:
    """Every block that needs at least one usable trial."""
    primary, noise, cells = study.primary, study.noise, study.cells
    found = find_sweeps(cells, set(study.joint.config_id))
    return _answer(study) | {
        "noise": noise.to_dict(),
        "fits": {f.fit_id: build(f, noise, options) for f in study.fits},
        "primary_fit": primary.fit_id if primary else None,
        "sweeps": [describe(cells, sweep, noise) for sweep in found],
        "compute_optimal": compute_optimal(study.joint, primary, noise),
        "diagnostics": {"leave_largest_out": leave_largest_out(primary)} if primary else study.unfit,
        "timing": training.timing(study.table.trials, cells, found),
        "overfitting": training.overfitting(cells),
        "learning_rates": searches.learning_rates(study.table, noise),
        "fronts": searches.fronts(study.table),
    }


def _answer(study: _Evidence) -> dict[str, Any]:
    """Levers, shape, best model, trust and next step: what the answer is made from."""
    cells, table = study.joint, study.table
    laws = {n: fit_shape_law(cells.take(without_head_sweep(cells, at_length(cells, n)))) for n in training_lengths(cells)}
    asked = Study(cells, study.noise, laws)
    found = levers(asked)
    shape = verdict.shape(asked, found)
    misfit = residual_sd(study.primary) if study.primary else None
    trust = verdict.trust(table, table.trials[one_recipe(table.trials)], asked, found, misfit)
    longest, law = training_lengths(cells)[-1], longer(cells)
    return {
        "levers": [lever.to_dict() for lever in found],
        "over_length": over_length(cells, study.noise),
        "length_law": law.to_dict(cells) if isinstance(law, Longer) else law.to_dict(),
        "shape": shape,
        "best": verdict.best_model(asked),
        "forecast_law": {"n_tokens": longest} | fit_forecast_law(cells.take(at_length(cells, longest))).to_dict(),
        "trust": trust,
        "next": verdict.next_step(table, asked, shape, trust),
    }


def _nothing() -> dict[str, Any]:
    """The tree of a study without a usable trial."""
    refusal = Refusal(Code.NO_TRIALS, "no trial completed with a usable loss").to_dict()
    empty: dict[str, Any] = {"fits": {}, "primary_fit": None, "sweeps": [], "levers": [], "fronts": []}
    return empty | dict.fromkeys(FINDINGS, refusal) | {"timing": {"rows": [], "fit": refusal, "heads_slowdown": refusal}}


def _forecasts(table: Table, study: _Evidence | None) -> list[dict[str, Any]]:
    """Forecasts on record, scored where their configuration has run."""
    path = table.path / "forecasts.json"
    if not table.path.is_dir() or not path.exists():
        return []
    rows = forecasts.read(path)
    return forecasts.scored(rows, study.joint, table.trials) if study else rows


# ---- the file ----


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
    """Write fits.json whole or not at all."""
    text = json.dumps(tree, indent=1, allow_nan=False, default=str) + "\n"
    with replaced(path) as file:
        file.write(text.encode())
