"""Everything that the analysis concludes about a study, as one JSON-ready tree: the contents of fits.json.

    conclusions = conclude(table.load(results)); write(results / "report" / "fits.json", conclusions)

Top-level keys beyond the contract of the report: `problems` (what was wrong with the files), `selection` (laws ranked by AICc), `returns`
(diminishing returns along the joint curve), `irreducible_loss`, `compute_optimal`. No sentence stands here: `analysis.report` words it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.estimate import Code, Refusal, collect
from analysis.findings import diagnostics, forecasts, size_law, training, verdict
from analysis.findings import equal_sizes as shapes
from analysis.findings import fit_card as card
from analysis.findings import fit_summary as fit_blocks
from analysis.findings import learning_rates as rates
from analysis.findings import one_factor as sweeps
from analysis.findings import pareto_front as front
from analysis.findings import refusal_rules as verdicts
from analysis.findings import shape_effects as structure
from analysis.findings import tokens_and_context as axes
from analysis.findings.fit_summary import Options
from analysis.findings.levers import Study, levers
from analysis.findings.lines import at_length, training_lengths, without_head_sweep
from analysis.findings.one_factor import Sweep
from analysis.findings.size_law import AT_LENGTH, CONVENTIONS, SIZE, Fitted, fit_size_law
from analysis.findings.training_length import over_length
from analysis.fits import law_selection as selection
from analysis.fits.forecast_law import fit_forecast_law
from analysis.fits.shape_law import fit_shape_law
from analysis.table import configurations as replicates
from analysis.table import evidence
from analysis.table import load as tables
from analysis.table.configurations import Configurations, Noise
from analysis.table.load import Table
from analysis.text import findings as texts
from study.files import replaced

SCHEMA_VERSION = "1.0"
QUESTION = "What do depth, width, heads, or simply more parameters buy?"


def conclude(table: Table, options: Options | None = None) -> dict[str, Any]:
    """Analyze a loaded table; every key of fits.json, whatever the study lacks being a refusal in its place."""
    options = options or Options()
    tree = _facts(table)
    study = _Evidence.of(table, options) if len(table.trials) else None
    tree |= _findings(study, options) if study else _nothing()
    tree["card"] = card.fit_card(table, study.primary if study else None, options)
    tree["provenance"] = card.provenance(table)
    tree["stories"] = texts.conclude(evidence.load(table.path, tree))
    tree["forecasts"] = _forecasts(table, study)
    tree["refusals"] = [*collect({k: v for k, v in tree.items() if k != "card"}), *(study.refused if study else [])]
    cleaned: dict[str, Any] = clean(tree)
    return cleaned


def _facts(table: Table) -> dict[str, Any]:
    """What was read, before anything is concluded."""
    return {
        "schema_version": SCHEMA_VERSION,
        "study": table.name,
        "question": str(table.study.get("question") or QUESTION),
        "results": table.path.resolve().name,
        "data": data_facts(table),
        "counts": tables.counts(table),
        "exclusions": [e.__dict__ for e in table.excluded],
        "problems": list(table.problems),
    }


@dataclass(frozen=True)
class _Evidence:
    """Configuration means, noise, sweeps and fits: what all findings start from.

    `cells` holds every usable configuration, `joint` those of one recipe that a joint fit may compare; `unfit` says why there is no joint
    fit, where there is none.
    """

    table: Table
    cells: Configurations
    joint: Configurations
    noise: Noise | Refusal
    sweeps: list[Sweep]
    fits: list[Fitted]
    refused: list[dict[str, str]]
    unfit: dict[str, Any]

    @staticmethod
    def of(table: Table, options: Options) -> _Evidence:
        cells = replicates.average(table.trials)
        mask = selection.one_recipe(table.trials)
        joint = cells if mask.all() else replicates.average(table.trials[mask])
        tried = all_fits(joint, options.delta)
        reasons = {f.reason: f.code for f in tried if isinstance(f, Refusal)}
        refused = [{"subject": "fits", "code": str(code), "reason": reason} for reason, code in reasons.items()]
        fitted = [f for f in tried if isinstance(f, Fitted)]
        found = sweeps.find_sweeps(cells, set(joint.config_id))
        unfit = next((f for f in tried if isinstance(f, Refusal)), Refusal(Code.MISSING, "no fit of all configurations")).to_dict()
        return _Evidence(table, cells, joint, replicates.measure_noise(cells), found, fitted, refused, unfit)

    @property
    def primary(self) -> Fitted | None:
        """The joint fit under the first convention."""
        return next((f for f in self.fits if f.fit_id == "joint"), None)


def all_fits(cells: Configurations, delta: float | None = None) -> list[Fitted | Refusal]:
    """The joint fit under each way to count N, that with configurations of unvaried size, one per sweep, and the best shape law."""
    found = sweeps.find_sweeps(cells)
    growing = [s for s in found if verdicts.sizes(cells.take(list(s.members))) > 1]
    members = sorted({i for s in growing for i in s.members})
    sized = cells.take(members) if members else cells
    title = "All configurations" if len(sized) == len(cells) else "All configurations of the sweeps in which size varies"
    columns = [c for c in CONVENTIONS if np.isfinite(cells.columns[c]).all()]
    tried = [fit_size_law("joint" if c == SIZE else f"joint@{c}", title, sized, c, delta=delta) for c in columns]
    if 0 < len(sized) < len(cells):
        tried.append(fit_size_law("joint:all", "All configurations, those of equal size included", cells, delta=delta))
    for sweep in growing:
        own = cells.take(list(sweep.members))
        tried.append(fit_size_law(f"sweep:{sweep.name}", f"Sweep {sweep.name}", own, sweep=sweep.name, delta=delta))
    return tried + (_fits_of_one_length(sized) if verdicts.runs_shared(sized) else [])


def _fits_of_one_length(cells: Configurations) -> list[Fitted | Refusal]:
    """A fit of L(N) for each number of training tokens: branches of one run share it, but those of one length are runs of their own."""
    lengths = [cells.take(at_length(cells, n)) for n in training_lengths(cells)]
    known = [own for own in lengths if verdicts.sizes(own) > 2]
    return [fit_size_law(f"{AT_LENGTH}{(n := int(own.columns['n_tokens'][0]))}", f"Trained on {n:,} tokens", own) for own in known]


# ---- findings ----


def _findings(study: _Evidence, options: Options) -> dict[str, Any]:
    """Every block that needs at least one usable trial."""
    primary, noise, cells = study.primary, study.noise, study.cells
    quick = replace(options, n_bootstrap=0)
    beside = replace(quick, profile=False)
    chosen = [options if f is primary else quick if f.sweep or f.fit_id.startswith(AT_LENGTH) else beside for f in study.fits]
    blocks = {f.fit_id: fit_blocks.build(f, noise, own) for f, own in zip(study.fits, chosen, strict=True)}
    described = [sweeps.describe(cells, sweep, noise) for sweep in study.sweeps]
    for sweep in described:
        own = next((f for f in study.fits if f.sweep == sweep["name"]), None)
        sweep["slope"] = blocks[own.fit_id]["slope"] if own else None
        sweep["axis"] = axes.describe(cells, next(s for s in study.sweeps if s.name == sweep["name"]))
        sweep["shapes"] = shapes.describe(cells, next(s for s in study.sweeps if s.name == sweep["name"]), noise)
        sweep["unit_below_noise_from"] = size_law.unit_below_noise(own, sweep, noise) if own else None
    contrasts = structure.contrasts(study.joint, _sweep_fits(study), sweeps.find_sweeps(study.joint), noise)
    return _answer(study, blocks) | {
        "noise": noise.to_dict(),
        "fits": blocks,
        "primary_fit": primary.fit_id if primary else None,
        "sweeps": described,
        "structure": {"contrasts": contrasts},
        "returns": _json(size_law.diminishing(primary, noise)) if primary else study.unfit,
        "conventions": conventions(blocks),
        "selection": law_selection(study.joint),
        "irreducible_loss": irreducible(primary, blocks) if primary else study.unfit,
        "compute_optimal": compute_optimal(study.joint, primary, noise),
        "diagnostics": diagnostics.examine(primary, noise) if primary else study.unfit,
        "timing": training.timing(study.table.trials, cells, study.sweeps),
        "overfitting": training.overfitting(cells),
        "learning_rates": _json(rates.learning_rates(study.table, noise)),
        "fronts": front.fronts(study.table),
    }


def _answer(study: _Evidence, blocks: Mapping[str, Any]) -> dict[str, Any]:
    """Levers, shape, best model, trust and next step: what the answer is made from."""
    cells, table = study.joint, study.table
    laws = {n: fit_shape_law(cells.take(without_head_sweep(cells, at_length(cells, n)))) for n in training_lengths(cells)}
    asked = Study(cells, study.noise, laws)
    found = levers(asked)
    shape = verdict.shape(asked, found)
    misfit = blocks[study.primary.fit_id]["residual_sd"] if study.primary else None
    trust = verdict.trust(table, table.trials[selection.one_recipe(table.trials)], asked, found, misfit)
    return {
        "levers": [lever.to_dict() for lever in found],
        "over_length": over_length(cells, study.noise),
        "shape": shape,
        "best": verdict.best_model(asked),
        "forecast_law": _forecast_law(cells),
        "trust": trust,
        "next": verdict.next_step(table, asked, shape, trust),
    }


def _forecast_law(cells: Configurations) -> dict[str, Any]:
    """The law to forecast from, of the longest training length."""
    longest = training_lengths(cells)[-1]
    return {"n_tokens": longest} | fit_forecast_law(cells.take(at_length(cells, longest))).to_dict()


def _sweep_fits(study: _Evidence) -> list[Fitted]:
    return [f for f in study.fits if f.sweep is not None]


def _json(found: Any) -> Any:
    return found.to_dict() if isinstance(found, Refusal) else found


def _nothing() -> dict[str, Any]:
    """The tree of a study without a usable trial."""
    refusal = Refusal(Code.NO_TRIALS, "no trial completed with a usable loss").to_dict()
    keys = (
        "over_length",
        "shape",
        "best",
        "trust",
        "next",
        "forecast_law",
        "noise",
        "structure",
        "returns",
        "irreducible_loss",
        "compute_optimal",
        "diagnostics",
        "overfitting",
        "learning_rates",
    )
    empty: dict[str, Any] = {"fits": {}, "primary_fit": None, "sweeps": [], "levers": [], "conventions": [], "selection": []}
    return empty | dict.fromkeys(keys, refusal) | {"timing": {"rows": [], "fit": refusal, "heads_slowdown": refusal}}


def conventions(blocks: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The joint fit's exponent and slope under each way to count N: at small sizes the choice moves them."""
    rows = []
    for name, block in blocks.items():
        if name == "joint" or name.startswith("joint@"):
            alpha = block["parameters"].get("alpha", {})
            row = {"convention": block["convention"], "fit": name, "alpha": alpha.get("value"), "low": alpha.get("low")}
            row |= {"high": alpha.get("high"), "slope": block["slope"]["value"], "slope_low": block["slope"]["low"]}
            rows.append(row | {"slope_high": block["slope"]["high"], "r2": block["r2"], "residual_sd": block["residual_sd"]})
    return rows


def law_selection(cells: Configurations) -> list[dict[str, Any]]:
    """Laws ranked by AICc (n = distinct configurations), with the weight of each."""
    ranked = selection.rank(cells, selection.candidate_laws(cells))
    finite = [c.aicc for c in ranked if math.isfinite(c.aicc)]
    return [
        {
            "law": c.law.name,
            "equation": c.law.equation,
            "aicc": c.aicc,
            "delta_aicc": c.aicc - finite[0] if finite else None,
            "weight": weight,
            "n": c.n,
            "k": c.k,
            "parameters": dict(c.result.params) if c.result.status.usable else None,
            "status": c.result.status.name,
        }
        for c, weight in zip(ranked, selection.weights(ranked), strict=True)
    ]


def irreducible(primary: Fitted, blocks: Mapping[str, Any]) -> dict[str, Any]:
    """E as the loss that nothing removes: refused unless the training tokens vary too."""
    if "n_tokens" not in primary.result.law.columns and primary.cells.columns["n_tokens"].min() < primary.cells.columns["n_tokens"].max():
        reason = "a floor needs a law of size and text together, which needs three numbers of training tokens; train at one more length"
        return Refusal(Code.TOO_FEW_DF, reason).to_dict()
    if "n_tokens" not in primary.result.law.columns:
        reason = (
            "at one training budget a floor in N is the loss of an infinitely large model trained as long, not the irreducible loss; "
            "vary n_tokens as well"
        )
        return Refusal(Code.FIXED_TOKENS, reason).to_dict()
    cell: dict[str, Any] = blocks[primary.fit_id]["parameters"].get("E") or Refusal(Code.MISSING, "the law has no floor").to_dict()
    return cell


def compute_optimal(cells: Configurations, primary: Fitted | None, noise: Noise | Refusal) -> dict[str, Any]:
    """Exponent a of N_opt ~ C^a = beta / (alpha + beta) (Hoffmann et al. 2022, eq. 4): only where N and D varied independently."""
    n, d = np.log(cells.columns[SIZE]), np.log(cells.columns["n_tokens"])
    if np.ptp(d) < 1e-9:
        reason = "compute-optimal N and D need runs at several n_tokens; all configurations saw the same number"
        return Refusal(Code.FIXED_TOKENS, reason).to_dict()
    r = float(np.corrcoef(n, d)[0, 1]) if np.ptp(n) > 1e-9 else 1.0
    if abs(r) > 0.9:
        reason = f"compute-optimal N and D cannot be told apart: ln N and ln D correlate by {r:.2f}; vary them separately"
        return Refusal(Code.COLLINEAR, reason).to_dict()
    if primary is None or "beta" not in primary.result.params:
        lengths = len(np.unique(d))
        reason = (
            f"compute-optimal N and D need a law of size and text, which {lengths} training lengths do not give; train at three or more"
        )
        return Refusal(Code.TOO_FEW_DF, reason).to_dict()
    refusal = fit_blocks.early_refusal(primary, "beta")
    return refusal.to_dict() if refusal else {**fit_blocks.optimal_exponent(primary, noise), "correlation": r}


def _forecasts(table: Table, study: _Evidence | None) -> list[dict[str, Any]]:
    """Forecasts on record, scored where their configuration has run."""
    path = table.path / "forecasts.json"
    if not table.path.is_dir() or not path.exists():
        return []
    rows = forecasts.read(path)
    return forecasts.scored(rows, study.joint, table.trials) if study else rows


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
