"""Forecasts of configurations that have not been run, kept in forecasts.json and scored once they have.

A forecast states a point and a prediction interval for the mean of a new configuration, the law, the data it used, the time and the commit.
It is refused beyond one observed log-range, refused for a configuration that has run, and never rewritten afterwards; only its outcome is
filled in.

    made = forecasts.make(fitted, target, Source(commit, now)); forecasts.add(results / "forecasts.json", made, cells)
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.estimate import LEVEL, NATS, SIZE, Code, Estimate, Refusal
from analysis.findings.lines import at_length
from analysis.findings.size_law import Fitted, observations
from analysis.findings.training_length import longer
from analysis.fits import intervals
from analysis.fits.forecast_law import fit_forecast_law
from analysis.fits.quantities import Loss
from analysis.table.configurations import Configurations
from models.config import Shape
from study.files import write_json

SCHEMA_VERSION = "1.0"
SHAPE_COLUMNS = ("n_layer", "n_embd", "n_head", "n_tokens")


@dataclass(frozen=True)
class Target:
    """A configuration to be forecast: depth, width, heads and training tokens."""

    n_layer: int
    n_embd: int
    n_head: int
    n_tokens: int

    @property
    def params_non_embedding(self) -> int:
        """Parameters less embeddings of the project's own network."""
        return Shape(n_layer=self.n_layer, n_embd=self.n_embd, n_head=self.n_head).params_non_embedding


def parse(text: str, cells: Configurations) -> Target:
    """`LAYERSxWIDTHhHEADS` or `LAYERSxWIDTHhHEADS@TOKENS`; tokens default to the study's where it has one budget.

    Raises:
        ValueError: another form, a width that the heads do not divide, tokens not given where the study has several budgets.
    """
    match = re.fullmatch(r"(\d+)x(\d+)h(\d+)(?:@(\d+))?", text.strip())
    if not match:
        raise ValueError(f"forecast {text!r} is not of the form 8x256h8 (layers x width h heads) or 8x256h8@81920000 (@ training tokens)")
    n_layer, n_embd, n_head = (int(v) for v in match.groups()[:3])
    budgets = sorted({int(v) for v in cells.columns["n_tokens"]})
    if match[4] is None and len(budgets) != 1:
        raise ValueError(f"forecast {text!r} needs its training tokens, for example {text}@{budgets[-1]}: the study has {budgets}")
    if min(n_layer, n_embd, n_head) < 1 or n_embd % n_head:
        raise ValueError(f"forecast {text!r}: n_embd={n_embd} is not divisible by n_head={n_head}; choose a multiple of {n_head}")
    return Target(n_layer, n_embd, n_head, int(match[4]) if match[4] else budgets[0])


def size_of(target: Target, cells: Configurations, column: str) -> float:
    """N of a target. The project's formula is used only where it gives the table's own counts.

    Raises:
        ValueError: the table's models are not counted so.
    """
    own = [Target(*(int(cells.columns[c][i]) for c in SHAPE_COLUMNS)).params_non_embedding for i in range(len(cells))]
    if column != "params_non_embedding" or not np.allclose(own, cells.columns["params_non_embedding"], rtol=1e-6):
        raise ValueError("the table's models are not counted as this project's are, so the size of a new shape is not known")
    return float(target.params_non_embedding)


@dataclass(frozen=True)
class Source:
    """What a forecast is made from beside a law: commit, time, and SHA-256 of the text (runs on another one are no outcome)."""

    commit: str | None
    now: datetime
    text: str | None = None


def make(fitted: Fitted, target: Target, source: Source) -> dict[str, Any] | Refusal:
    """Forecast the mean loss of a configuration from a law in size: point and prediction interval (F-calibrated profile)."""
    size, law, seen = size_of(target, fitted.cells, fitted.column), fitted.result.law, fitted.cells.columns["n_tokens"]
    refused = _size_beyond(size, fitted.cells.columns[fitted.column])
    if not refused and "n_tokens" in law.columns:
        refused = _beyond(f"{target.n_tokens:,} training tokens lie", target.n_tokens, seen, "train longer")
    elif not refused and not seen.min() == seen.max() == target.n_tokens:
        reason = (
            f"the law {law.equation} does not say what training tokens do, and {target.n_tokens:,} are not the {seen.min():,.0f} of "
            "the data; forecast that number, or train at three or more numbers of tokens"
        )
        refused = Refusal(Code.FIXED_TOKENS, reason)
    if refused:
        return refused
    at = {name: float(values[0]) for name, values in fitted.at(size, n_tokens=float(target.n_tokens)).items()}
    found = intervals.profile(observations(fitted), Loss(at), new_run=True)
    if found.status == "failed":
        return Refusal(Code.TOO_FEW_DF, f"no forecast: {found.reason}")
    low, high = (end if math.isfinite(end) else None for end in (found.low, found.high))
    told = Estimate(found.point, low, high, NATS, len(fitted.cells), found.method)
    known = {"equation": law.equation, "parameters": dict(fitted.result.params), "reference": dict(fitted.result.reference)}
    return _record(law.name, told, known, fitted.cells, target, source)


def by_length(cells: Configurations, target: Target, source: Source) -> dict[str, Any] | Refusal:
    """Forecast a shape that was trained at shorter lengths from the law of length."""
    found = longer(cells)
    if isinstance(found, Refusal):
        return found
    shape = found.find((target.n_layer, target.n_embd, target.n_head))
    if shape is None:
        return Refusal(Code.EXTRAPOLATION, "the shape was not trained at three shorter lengths")
    own = cells.columns["n_tokens"][list(found.members[shape])]
    if target.n_tokens * own[0] > own[-1] ** 2:
        reason = f"{target.n_tokens:,} training tokens lie more than one observed log-range beyond the shape's own"
        return Refusal(Code.EXTRAPOLATION, reason)
    told, law = found.law.predict(shape, target.n_tokens), found.law.to_dict()
    own_law = {"E_s": float(found.law.floor[shape]), "B_s": float(found.law.amplitude[shape]), **law["params"]}
    known = {"parameters": own_law, "equation": law["equation"], "reference": law["reference"]}
    untested = "no step as long was forecast from three shorter lengths" if told.low is None else None
    return _record("D", told, known, cells.take(sorted(i for members in found.members for i in members)), target, source, untested)


def by_shape(cells: Configurations, target: Target, source: Source) -> dict[str, Any] | Refusal:
    """Forecast from the law of fixed exponents in depth, width and size, where shapes of the target's length determine it."""
    own = cells.take(at_length(cells, target.n_tokens))
    if any(len(np.unique(own.columns[name])) < 2 for name in ("n_layer", "n_embd")):
        return Refusal(Code.NO_VARIATION, "depth or width takes one value, so the law of size alone forecasts")
    found = fit_forecast_law(own)
    if isinstance(found, Refusal):
        return found
    size = size_of(target, own, SIZE)
    if refused := _size_beyond(size, own.columns[SIZE]):
        return refused
    told, law = found.predict(target.n_layer, target.n_embd, size), found.to_dict()
    known = {"equation": law["equation"], "parameters": law["params"], "reference": law["reference"]}
    untested = found.interval_refused.reason if found.interval_refused else None
    return _record("F", told, known, own, target, source, untested)


def _record(
    name: str, told: Estimate, law: Mapping[str, Any], cells: Configurations, target: Target, source: Source, untested: str | None = None
) -> dict[str, Any]:
    """A forecast as it stands in the file.

    Args:
        law: equation, parameters and reference.
        cells: those that it was fitted to.
        untested: why there is no interval.
    """
    size, sizes = size_of(target, cells, SIZE), cells.columns[SIZE]
    return {
        "configuration": {**target.__dict__, "params_non_embedding": int(size)},
        "point": told.value,
        **{"low": told.low, "high": told.high, "level": LEVEL, "method": told.method, "law": name, **law},
        "interval_refused": untested,
        "data": {"config_ids": [str(c) for c in cells.config_id], "n_trials": len(cells.cell_loss), "sha256": source.text},
        "inside_data": bool(sizes.min() <= size <= sizes.max()),
        "made_at": source.now.isoformat(),
        "git_commit": source.commit,
        "outcome": None,
    }


def _beyond(what: str, value: float, seen: Any, advice: str) -> Refusal | None:
    """A refusal of what lies more than one observed log-range beyond the data."""
    low, high = float(seen.min()), float(seen.max())
    if low * low / high <= value <= high * high / low:
        return None
    reason = f"{what} more than one observed log-range beyond the data ({low:,.0f} to {high:,.0f})"
    return Refusal(Code.EXTRAPOLATION, f"{reason}; forecast {low * low / high:,.0f} to {high * high / low:,.0f}, or {advice}")


def _size_beyond(size: float, seen: Any) -> Refusal | None:
    return _beyond(f"N={size:,.0f} lies", size, seen, "add sizes")


# ---- the file ----


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_json(path, {"schema_version": SCHEMA_VERSION, "forecasts": list(rows)})


def read(path: Path) -> list[dict[str, Any]]:
    """Forecasts on record; none where there is no file.

    Raises:
        ValueError: the file is not what this module writes.
    """
    if not path.exists():
        return []
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return [dict(row) for row in held["forecasts"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as forecasts ({str(error)[:80]}); set it aside or restore it") from error


def add(path: Path, forecast: Mapping[str, Any], cells: Configurations) -> None:
    """Put a forecast on record. One for the same configuration that has no outcome yet is replaced.

    Raises:
        ValueError: the configuration has run already: a forecast is not written, nor rewritten, after the fact.
    """
    rows = read(path)
    wanted = forecast["configuration"]
    if len(_matches(cells, wanted)) or any(row["configuration"] == wanted and row["outcome"] for row in rows):
        shape = f"{wanted['n_layer']}x{wanted['n_embd']}h{wanted['n_head']}"
        raise ValueError(f"{shape} has run already, so it can no longer be forecast; forecast a configuration that has no result")
    _write(path, [*(row for row in rows if row["configuration"] != wanted), forecast])


def _matches(cells: Configurations, wanted: Mapping[str, Any]) -> Any:
    """Indices of the configurations that a forecast is of."""
    return np.flatnonzero(np.all([cells.columns[column] == wanted[column] for column in SHAPE_COLUMNS], axis=0))


def scored(rows: Sequence[Mapping[str, Any]], cells: Configurations, trials: pd.DataFrame) -> list[dict[str, Any]]:
    """The forecasts with the outcomes of those whose configuration has run on their text; point and interval stay as they were written.

    A forecast that was made after the first of its trials had ended keeps its outcome but is not counted (`counted` false).
    """
    texts = set(trials["data_sha256"].dropna())
    found = []
    for row in rows:
        hits, text = _matches(cells, row["configuration"]), row["data"].get("sha256")
        ran = len(hits) and (text is None or text in texts)
        found.append(dict(row) | ({"outcome": _outcome(row, cells, int(hits[0]), trials)} if ran else {}))
    return found


def record_outcomes(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write scored forecasts where they tell more than the file does."""
    if path.exists() and list(rows) != read(path):
        _write(path, rows)


def _outcome(row: Mapping[str, Any], cells: Configurations, i: int, trials: pd.DataFrame) -> dict[str, Any]:
    loss = float(cells.loss[i])
    own = trials[trials["config_id"].astype(str) == str(cells.config_id[i])]
    ended = own["finished_at"].dropna()
    made = datetime.fromisoformat(row["made_at"])
    late = bool(len(ended)) and ended.min().to_pydatetime() < made
    error = math.log(loss / row["point"])
    covered = (row["low"] is None or row["low"] <= loss) and (row["high"] is None or loss <= row["high"])
    return {
        "loss": loss,
        "n_seeds": int(cells.n_seeds[i]),
        "error": error,
        "error_percent": 100 * math.expm1(error),
        "covered": None if row.get("interval_refused") else bool(covered),
        "counted": not late,
        "trial_ids": sorted(str(t) for t in own["trial_id"]),
        "note": "made after its trial had ended: not counted" if late else "",
    }
