"""A refusal: a typed reason that stands where a number would, because the data do not determine the number.

Refusal(Code.ONE_SEED, "every configuration has one seed ...").to_dict()  ->  {"refused": {"code": "one_seed", "reason": "..."}}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


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


def is_refused(value: Any) -> bool:
    """Whether a JSON value is a refusal."""
    return isinstance(value, Mapping) and "refused" in value


def collect(tree: Any) -> list[dict[str, str]]:
    """Every refusal inside a JSON tree, each reason once: {"subject", "code", "reason"}, the subjects being dotted paths."""
    merged: dict[tuple[str, str], list[str]] = {}
    for row in _walk(tree, ""):
        merged.setdefault((row["code"], row["reason"]), []).append(row["subject"])
    return [{"subject": ", ".join(subjects), "code": code, "reason": reason} for (code, reason), subjects in merged.items()]


def _walk(tree: Any, subject: str) -> Iterator[dict[str, str]]:
    if is_refused(tree):
        yield {"subject": subject, "code": str(tree["refused"]["code"]), "reason": tree["refused"]["reason"]}
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _walk(value, f"{subject}.{key}" if subject else str(key))
    elif isinstance(tree, list):
        for value in tree:
            label = next((str(value[k]) for k in ("name", "claim", "factor", "config_id") if isinstance(value, Mapping) and k in value), "")
            yield from _walk(value, f"{subject}.{label}" if label else subject)
