"""Evidence: what a report is made from - the conclusions of `fits.json` and the rows of the tables beside it.

Reads `report/fits.json`, `trials`, `curves`, `samples` of a results folder; writes nothing.

    evidence = load(Path("results/quick")); evidence.fits["answer"]
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.table.runs_file import is_trials
from study import records

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Evidence:
    """Conclusions and rows of one study. `trials` holds only rows that the conclusions used."""

    results: Path
    fits: Mapping[str, Any]
    trials: Sequence[Row]
    curves: Sequence[Row]
    samples: Sequence[Row]
    problems: list[str] = field(default_factory=list)


def load(results: Path, fits: Mapping[str, Any] | None = None) -> Evidence:
    """Read the evidence of a results folder.

    Args:
        fits: stands for `report/fits.json`.

    Raises:
        ValueError: there is no fits.json, or it cannot be read.
    """
    results, path = Path(results), Path(results) / "report" / "fits.json"
    try:
        conclusions = fits if fits is not None else dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; write it with: python -m analysis {results}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); write it again with: python -m analysis {results}") from error
    problems: list[str] = []
    trials = [{**row, "sweeps": row["sweeps"] or []} for row in _rows(results, "trials", problems)]
    left_out = {row.get("trial_id") for row in conclusions.get("exclusions") or []}
    used = [row for row in trials if row["status"] == "COMPLETED" and row["trial_id"] not in left_out]
    curves, samples = _rows(results, "curves", problems), _rows(results, "samples", problems)
    return Evidence(results, conclusions, used, curves, samples, problems)


def _rows(results: Path, table: str, problems: list[str]) -> list[dict[str, Any]]:
    if results.is_file():  # a single trials table that another program wrote
        return records.read_file(results, table).to_pylist() if table == "trials" and is_trials(results) else []
    return records.read(results, table, problems).to_pylist()
