"""A value with its interval and verdict, or a typed refusal in its place; both as Python values and as the cells of fits.json.

Estimate(0.12, 0.10, 0.14, NATS, 6, "contrast", Verdict.GAIN).to_dict()
Refusal(Code.ONE_SEED, "every configuration has one seed ...").to_dict()  ->  {"refused": {"code": "one_seed", "reason": "..."}}
value_of(cell)    # the number in a cell of fits.json, or None where it was refused
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

import numpy as np


class Code(StrEnum):
    """Why a number is refused. The values are stable: fits.json and tests name them."""

    NO_TRIALS = "no_completed_trials"
    ONE_SEED = "one_seed"
    TOO_FEW_SIZES = "too_few_sizes"
    TOO_FEW_DF = "too_few_degrees_of_freedom"
    NARROW_RANGE = "range_too_narrow"
    WIDE_INTERVAL = "interval_too_wide"
    FLOOR_REACHES_ZERO = "floor_interval_reaches_zero"
    AT_BOUND = "parameter_at_bound"
    STARTS_DISAGREE = "starts_disagree"
    NOT_CONVERGED = "not_converged"
    FIXED_TOKENS = "tokens_do_not_vary"
    COLLINEAR = "n_and_d_collinear"
    EXTRAPOLATION = "beyond_one_log_range"
    UNMATCHED = "sizes_not_matched"
    COUNTS_CHECKPOINTS = "n_counts_checkpoints"
    SHARED_DEVICE = "timing_not_exclusive"
    MISSING = "column_missing"
    NO_VARIATION = "nothing_varies"
    NO_OPTIMUM = "no_single_exponent_of_shape"
    BACKTEST_FAILS = "backtest_covers_too_little"
    INTERACTION = "depth_and_width_interact"


SIZE = "params_non_embedding"
"""What N counts unless another column is named (Kaplan et al. 2020, section 1.3)."""
LEVEL = 0.95
"""Level of every interval of the report."""
NATS = "nats per token"
PER_DOUBLING = "nats per doubling"
"""Units of losses and differences, and of what a doubling buys; a token is a character where the text is read in characters."""


class Verdict(StrEnum):
    """What an interval says of a difference or gain. The values are stable: fits.json, answer.json and tests name them."""

    GAIN = "gain"
    LOSS = "loss"
    WITHIN_NOISE = "within_noise"
    NOT_TOLD = "not_told"
    NONE = ""


@dataclass(frozen=True)
class Estimate:
    """A number that the data determine, with its uncertainty.

    Args:
        value: the point, from the same estimator as the interval.
        low: lower end of the 95 % interval, or None where that side is open or no interval exists.
        high: its upper end, or None.
        unit: of value, low and high.
        n: observations behind it (pairs of a contrast, configurations of a fit).
        method: of point and interval, in a word or two.
        verdict: gain (lower loss, interval clear of 0), loss, within_noise (differences of configurations only), not_told (a slope or a
            quantity of a law whose interval holds 0), or none.
    """

    value: float
    low: float | None
    high: float | None
    unit: str
    n: int
    method: str
    verdict: Verdict = Verdict.NONE

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"verdict": str(self.verdict)}


def judged(low: float | None, high: float | None, unclear: Verdict) -> Verdict:
    """The verdict on a gain (positive: lower loss) with this interval; `unclear` where it holds 0."""
    if low is not None and low > 0:
        return Verdict.GAIN
    if high is not None and high < 0:
        return Verdict.LOSS
    return Verdict.NOT_TOLD if low is None or high is None else unclear


@dataclass(frozen=True)
class Refusal:
    """A reason in one sentence: what was asked, what the data lack, what would help.

    Args:
        code: machine-readable kind.
        reason: the sentence.
        bound: what can still be said (for example {"upper": 0.45, "level": 0.95}), or None.
    """

    code: Code
    reason: str
    bound: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form, in the place of the number."""
        body: dict[str, Any] = {"refused": {"code": str(self.code), "reason": self.reason}}
        return body | ({"bound": dict(self.bound)} if self.bound else {})


# ---- cells of fits.json ----

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


# ---- the refusals of a tree ----


def collect(tree: Any) -> list[dict[str, str]]:
    """Every refusal inside a JSON tree, each reason once: {"subject", "code", "reason"}, the subjects being dotted paths."""
    merged: dict[tuple[str, str], list[str]] = {}
    for row in _walk(tree, ""):
        merged.setdefault((row["code"], row["reason"]), []).append(row["subject"])
    return [{"subject": ", ".join(subjects), "code": code, "reason": reason} for (code, reason), subjects in merged.items()]


def _walk(tree: Any, subject: str) -> Iterator[dict[str, str]]:
    if isinstance(tree, Mapping) and "refused" in tree:
        yield {"subject": subject, "code": str(tree["refused"]["code"]), "reason": tree["refused"]["reason"]}
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _walk(value, f"{subject}.{key}" if subject else str(key))
    elif isinstance(tree, list):
        for value in tree:
            label = next((str(value[k]) for k in ("name", "claim", "factor", "config_id") if isinstance(value, Mapping) and k in value), "")
            yield from _walk(value, f"{subject}.{label}" if label else subject)
