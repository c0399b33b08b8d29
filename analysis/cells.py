"""Cells of `fits.json`: a plain number, a number with its interval, or a typed refusal in the place of the number.

Reads and writes nothing. `value_of({"value": 0.3, "low": 0.2, "high": 0.4})` is 0.3; `value_of({"refused": {...}})` is None.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

Fits = Mapping[str, Any]
Row = Mapping[str, Any]


def value_of(cell: Any) -> float | None:
    """The number in a cell of `fits.json`: plain, with an interval, or None where it was refused."""
    if isinstance(cell, Mapping):
        cell = cell.get("value")
    return float(cell) if isinstance(cell, int | float) and not isinstance(cell, bool) and np.isfinite(cell) else None


def is_refused(cell: Any) -> bool:
    """Whether a part of `fits.json` is a typed refusal instead of a result (an absent part counts as refused)."""
    return cell is None or (isinstance(cell, Mapping) and "refused" in cell)


def interval_of(cell: Any) -> tuple[float, float] | None:
    """(low, high) of a cell, or None where either end is missing or infinite."""
    if not isinstance(cell, Mapping):
        return None
    low, high = value_of(cell.get("low")), value_of(cell.get("high"))
    return None if low is None or high is None else (low, high)


def reason_of(cell: Any) -> str:
    """Why a cell was refused, or "" where it holds a number."""
    return str(cell["refused"].get("reason", "refused")) if isinstance(cell, Mapping) and "refused" in cell else ""


def part_of(fits: Any, name: str) -> Mapping[str, Any] | None:
    """A part of `fits.json` that holds results, or None where it is absent or refused."""
    part = fits.get(name) if isinstance(fits, Mapping) else None
    return part if isinstance(part, Mapping) and "refused" not in part else None
