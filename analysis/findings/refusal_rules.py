"""Which numbers of a fit may be reported: the rules that refuse a parameter, in the order in which they are tried.

refusal = parameter_refusal("alpha", result, interval, cells, "params_non_embedding")
"""

from __future__ import annotations

import math

import numpy as np

from analysis.estimate import Code, Refusal
from analysis.fits.fit import FitResult, FitStatus
from analysis.fits.intervals import Interval
from analysis.table.configurations import Configurations
from analysis.table.load import distinct_sizes

MODEL = ("params_non_embedding", "n_layer", "n_embd", "n_head", "lr", "unique_tokens", "batch_size")
MIN_SIZES = 5
MIN_DF = 2
MIN_DECADES = 1.5
MAX_RATIO = 2.0
"""An exponent whose interval spans more than this factor is not determined."""


def sizes(cells: Configurations, column: str = "params_non_embedding") -> int:
    """Number of distinct sizes: values of N that differ by more than SAME_SIZE."""
    return distinct_sizes(cells.columns[column])


def decades(cells: Configurations, column: str = "params_non_embedding") -> float:
    """Range of N in decades."""
    values = cells.columns[column]
    return float(np.log10(values.max() / values.min())) if len(values) else 0.0


def data_refusal(result: FitResult, cells: Configurations, column: str) -> Refusal | None:
    """Refusals of a law's floor, amplitudes and exponents that need no interval: too few sizes or configurations, too narrow a range."""
    n_sizes, df, span = sizes(cells, column), len(cells) - len(result.params), decades(cells, column)
    names = " and ".join(n for n in ("E", "alpha") if n in result.params) or ", ".join(result.params)
    if n_sizes < MIN_SIZES:
        return Refusal(Code.TOO_FEW_SIZES, f"{names} cannot be told from fewer than {MIN_SIZES} sizes and there are {n_sizes}; add sizes")
    if df < MIN_DF:
        reason = (
            f"{names} cannot be told: {len(cells)} configurations for {len(result.params)} parameters; have {MIN_DF} more than parameters"
        )
        return Refusal(Code.TOO_FEW_DF, reason)
    if span < MIN_DECADES:
        reason = f"{names} cannot be told from sizes over {span:.2f} decades of N; cover at least {MIN_DECADES} decades"
        return Refusal(Code.NARROW_RANGE, reason)
    return None


def runs_shared(cells: Configurations) -> int:
    """Number of runs behind configurations that are checkpoints or branches of them; 0 where every configuration has its own run."""
    if not len(cells) or not cells.columns["is_branch"].any():
        return 0
    recipe = np.stack([np.nan_to_num(cells.columns[c]) for c in MODEL])
    runs = np.unique(recipe, axis=1).shape[1]
    return runs if runs < len(cells) else 0


def shared_runs_refusal(name: str, result: FitResult, cells: Configurations) -> Refusal | None:
    """Refusal of intervals that would count the checkpoints of one run as independent; the estimate stands in the bound."""
    runs = runs_shared(cells)
    if not runs:
        return None
    reason = (
        f"no standard errors: the {len(cells)} configurations are branches of {runs} runs, and counting them as independent would make "
        "every interval too short; train runs of separate length, or report the estimate alone"
    )
    return Refusal(Code.COUNTS_CHECKPOINTS, reason, {"estimate": result.params[name]})


def status_refusal(name: str, result: FitResult) -> Refusal | None:
    """Refusals of a fit that is not at a well-determined optimum."""
    codes = {
        FitStatus.BOUND_HIT: Code.AT_BOUND,
        FitStatus.STARTS_DISAGREE: Code.STARTS_DISAGREE,
        FitStatus.NOT_CONVERGED: Code.NOT_CONVERGED,
        FitStatus.SATURATED: Code.TOO_FEW_DF,
        FitStatus.ILL_CONDITIONED: Code.WIDE_INTERVAL,
        FitStatus.NO_OPTIMUM: Code.AT_BOUND,
    }
    if result.status is FitStatus.CONVERGED:
        return None
    return Refusal(codes[result.status], f"{name} is not reported: {result.message}")


def interval_refusal(name: str, interval: Interval | None, exponent: bool) -> Refusal | None:
    """Refusals that the interval itself gives: an exponent known to no better than a factor of two, a floor that may be zero."""
    if interval is None:
        return Refusal(Code.NOT_CONVERGED, f"no interval of {name} could be computed")
    low, high = interval.low, interval.high
    shown = f"[{number_text(low)}, {number_text(high)}]"
    if name == "E" and not low > 0:
        bound = {"upper": high, "level": interval.level} if math.isfinite(high) else None
        upper = f", and E < {high:.3g}" if bound else ""
        return Refusal(Code.FLOOR_REACHES_ZERO, f"the interval of E, {shown} nats, reaches 0; use the local slope{upper}", bound)
    if exponent and not (low > 0 and math.isfinite(high) and high / low <= MAX_RATIO):
        reason = f"the {interval.level:.0%} interval of {name}, {shown}, spans more than a factor of {MAX_RATIO:g}; use the local slope"
        return Refusal(Code.WIDE_INTERVAL, reason, {"low": low, "high": high, "level": interval.level})
    return None


def number_text(value: float) -> str:
    """Three significant digits, or "unbounded"."""
    return f"{value:.3g}" if math.isfinite(value) else "unbounded"
