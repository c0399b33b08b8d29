"""One fit as a block of fits.json: parameters or refusals, the local slope, residuals, the curve, and how it was obtained.

block = build(fitted, noise, Options())

Refusals come in the order in which they are tried: too few or too narrow data, a fit at no determined optimum, shared runs, then what the
interval itself says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.estimate import LEVEL, NATS, SIZE, Code, Refusal
from analysis.findings.size_law import Fitted, mean_variance, observations, runs_shared
from analysis.findings.sweeps import thinned
from analysis.fits import intervals
from analysis.fits.fit import FitResult, FitStatus
from analysis.fits.laws import Law, Power
from analysis.fits.quantities import Parameter, Quantity, Slope
from analysis.table.configurations import Configurations, Noise, t_quantile
from analysis.table.load import distinct_sizes

CURVE_POINTS = 60
MANY = 5000
"""Trials beyond which the bootstrap resamples configurations only."""
REACH = 2.0
"""The curve goes this factor beyond the data on either side, and never beyond one observed log-range."""
MIN_SIZES, MIN_DF, MIN_DECADES = 5, 2, 1.5
MAX_RATIO = 2.0
"""An exponent whose interval spans more than this factor is not determined."""


@dataclass(frozen=True)
class Options:
    """How the laws of size alone are fitted.

    Args:
        n_bootstrap: configuration-level bootstrap replicates behind the intervals of the primary fit by Huber; 0 leaves them out.
        seed: of the bootstrap.
        delta: width of Huber's function in log loss; None takes least squares, which is what profiles are made from.
    """

    n_bootstrap: int = 1000
    seed: int = 0
    delta: float | None = None


# ---- the block ----


def build(fitted: Fitted, noise: Noise | Refusal, options: Options) -> dict[str, Any]:
    """The JSON block of a fit."""
    result, cells = fitted.result, fitted.cells
    refused = {name: refusal for name in result.params if (refusal := early_refusal(fitted, name))}
    found = _intervals(fitted, noise, options, [name for name in result.params if name not in refused])
    return {
        "title": fitted.title,
        "law": result.law.name,
        "equation": result.law.equation,
        "source": result.law.source,
        "convention": fitted.column,
        "n_configurations": len(cells),
        "reference": result.reference,
        "parameters": {name: _parameter(fitted, name, found.get(name), refused.get(name)) for name in result.params},
        "slope": _slope(fitted, found.get("slope")),
        "status": result.status.name,
        "status_text": result.message,
        "delta": result.delta,
        "residual_sd": residual_sd(fitted),
        "residuals": _residuals(fitted, noise),
        "curve": _curve(fitted),
    }


def residual_sd(fitted: Fitted) -> float | None:
    """Residual standard deviation of configuration means, log loss, df = configurations - parameters."""
    return float(np.sqrt(np.sum(fitted.result.residuals**2) / fitted.df)) if fitted.df > 0 else None


def _residuals(fitted: Fitted, noise: Noise | Refusal) -> list[dict[str, Any]]:
    """Residual of each configuration in nats, with the interval that its seeds give."""
    cells = fitted.cells
    left = cells.loss - fitted.result.fitted
    rows = []
    for i in thinned(len(cells)):
        half = noise.half_width(int(cells.n_seeds[i])) if isinstance(noise, Noise) else None
        ends = {"low": None, "high": None} if half is None else {"low": left[i] - half, "high": left[i] + half}
        rows.append({"config_id": str(cells.config_id[i]), "x": float(cells.columns[fitted.column][i]), "residual": float(left[i]), **ends})
    return rows


def _curve(fitted: Fitted) -> dict[str, Any]:
    """The law over N, tokens at their reference."""
    sizes = fitted.cells.columns[fitted.column]
    low, high = float(sizes.min()), float(sizes.max())
    reach = min(REACH, high / low)
    x = np.geomspace(low / reach, high * reach, CURVE_POINTS)
    inside = [bool(low * (1 - 1e-9) <= v <= high * (1 + 1e-9)) for v in x]
    return {"x": x, "y": fitted.result.predict(fitted.at(x)), "inside": inside}


# ---- intervals ----


def _intervals(fitted: Fitted, noise: Noise | Refusal, options: Options, parameters: Sequence[str]) -> dict[str, intervals.Interval]:
    """Intervals of the slope at the reference and of the named parameters, from the estimator of the point.

    Profile likelihood; the delta method for the slope of a fit that only stands beside the primary one, where nothing else is reported;
    bootstrap for the primary fit by Huber.
    """
    if runs_shared(fitted.cells):
        return {}
    if fitted.result.delta is not None:
        return _bootstrapped(fitted, options) if fitted.fit_id == "joint" else {}
    beside = fitted.fit_id.startswith(("joint@", "joint:"))
    if fitted.df >= 1 and (parameters or not beside):
        return intervals.profiles(observations(fitted), quantities_of(fitted, parameters))
    slope = _delta_slope(fitted, noise)
    return {} if slope is None else {"slope": slope}


def _bootstrapped(fitted: Fitted, options: Options) -> dict[str, intervals.Interval]:
    """Configuration-level bootstrap of parameters and slope."""
    if not options.n_bootstrap or fitted.df < 1:
        return {}
    rng = np.random.default_rng(options.seed)
    wanted = quantities_of(fitted, list(fitted.result.params))
    # Of many thousand trials the means are resampled: 1,000 weights for each of 100,000 rows would take the memory of the machine.
    source = observations(fitted, means=len(fitted.cells.cell_loss) > MANY)
    return intervals.bootstrap(source, fitted.result, wanted, rng, options.n_bootstrap)


def _delta_slope(fitted: Fitted, noise: Noise | Refusal) -> intervals.Interval | None:
    """Interval of the slope at the reference from the linearized fit; None where neither scatter nor seeds give a variance."""
    variance, df = mean_variance(fitted, noise)
    if variance is None:
        return None
    size, step = float(fitted.result.reference[fitted.column]), 1e-3
    up, down = fitted.jacobian(fitted.at(size * np.exp([step, -step])))
    half = t_quantile(df) * fitted.combination_error((up - down) / (2 * step), variance)
    slope = fitted.slope(size)
    return intervals.Interval(slope - half, slope + half, "delta", "closed", slope, len(fitted.cells))


def quantities_of(fitted: Fitted, parameters: Sequence[str]) -> dict[str, Quantity]:
    """Parameters, and the slope at the reference."""
    at = {name: float(value) for name, value in fitted.result.reference.items()}
    named: dict[str, Quantity] = {name: Parameter(name) for name in parameters}
    return named | {"slope": Slope(at, fitted.column)}


# ---- numbers ----


def _parameter(fitted: Fitted, name: str, interval: intervals.Interval | None, refusal: Refusal | None) -> dict[str, Any]:
    """A parameter's value with interval, or the refusal that stands in its place."""
    law = fitted.result.law
    if refusal is None and (name == law.floor or name in exponents(law)):
        refusal = interval_refusal(name, interval, name in exponents(law))
    if refusal is not None:
        return refusal.to_dict()
    value = interval.point if interval is not None and interval.status != "failed" else fitted.result.params[name]
    return _cell(value, interval, NATS if name == law.floor or name in law.amplitudes else "")


def exponents(law: Law) -> list[str]:
    """Names of a law's exponents."""
    return [factor.exponent for term in law.terms for factor in term.factors if isinstance(factor, Power)]


def _slope(fitted: Fitted, interval: intervals.Interval | None) -> dict[str, Any]:
    """Local slope dlnL/dlnN at the reference size."""
    size = float(fitted.result.reference[fitted.column])
    cell = _cell(fitted.slope(size), interval, "dlnL/dlnN")
    if runs_shared(fitted.cells):
        cell["method"] = "none: the configurations are branches of shared runs"
    return cell | {"at": size, "loss": float(fitted.result.predict(fitted.at(size))[0])}


def _cell(value: float, interval: intervals.Interval | None, unit: str) -> dict[str, Any]:
    ends: dict[str, Any] = {"low": None, "high": None, "level": LEVEL}
    if interval is None:
        ends["method"] = "none: too few sizes to see how far models scatter around the curve"
    elif interval.status == "failed":
        ends["method"] = f"none: {interval.reason}"
    else:
        low, high = (end if math.isfinite(end) else None for end in (interval.low, interval.high))  # None: the data do not bound that side
        ends = {"low": low, "high": high, "level": LEVEL, "method": interval.method, "interval": interval.status}
    return {"value": value, **ends, "unit": unit}


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
    refusal = early_refusal(primary, "beta")
    return refusal.to_dict() if refusal else {**_optimal_exponent(primary, noise), "correlation": r}


def _optimal_exponent(fitted: Fitted, noise: Noise | Refusal) -> dict[str, Any]:
    """beta / (alpha + beta) with a delta-method interval."""
    design, theta = fitted.result.design, fitted.result.theta

    def value(coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
        params = design.to_params(coordinates)
        return np.asarray(params["beta"] / (params["alpha"] + params["beta"]), dtype=float)

    step = 1e-6 * np.eye(len(theta))
    direction = (value(theta[:, None] + step) - value(theta[:, None] - step)) / 2e-6
    cell: dict[str, Any] = {"value": float(value(theta[:, None])[0]), "low": None, "high": None, "level": LEVEL, "method": "delta"}
    variance, df = mean_variance(fitted, noise)
    if variance is not None:
        half = t_quantile(df) * fitted.combination_error(direction, variance)
        cell |= {"low": cell["value"] - half, "high": cell["value"] + half}
    return cell


# ---- refusals ----


def early_refusal(fitted: Fitted, name: str) -> Refusal | None:
    """A refusal that needs no interval: the data are too few or too narrow, or the fit is not at a determined optimum."""
    result, law = fitted.result, fitted.result.law
    guarded = name == law.floor or name in exponents(law) or law.has_floor
    poor = _data_refusal(result, fitted.cells, fitted.column) if guarded else None
    return poor or status_refusal(name, result) or _shared_runs_refusal(name, result, fitted.cells)


def _data_refusal(result: FitResult, cells: Configurations, column: str) -> Refusal | None:
    """Too few sizes or configurations, too narrow a range."""
    values = cells.columns[column]
    n_sizes, df, span = distinct_sizes(values), len(cells) - len(result.params), float(np.log10(values.max() / values.min()))
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


def status_refusal(name: str, result: FitResult) -> Refusal | None:
    """Refusals of a fit that is not at a well-determined optimum."""
    codes = {
        FitStatus.BOUND_HIT: Code.AT_BOUND,
        FitStatus.STARTS_DISAGREE: Code.STARTS_DISAGREE,
        FitStatus.NOT_CONVERGED: Code.NOT_CONVERGED,
        FitStatus.SATURATED: Code.TOO_FEW_DF,
        FitStatus.ILL_CONDITIONED: Code.WIDE_INTERVAL,
    }
    if result.status is FitStatus.CONVERGED:
        return None
    return Refusal(codes[result.status], f"{name} is not reported: {result.message}")


def _shared_runs_refusal(name: str, result: FitResult, cells: Configurations) -> Refusal | None:
    """Refusal of intervals that would count the checkpoints of one run as independent; the estimate stands in the bound."""
    runs = runs_shared(cells)
    if not runs:
        return None
    reason = (
        f"no standard errors: the {len(cells)} configurations are branches of {runs} runs, and counting them as independent would make "
        "every interval too short; train runs of separate length, or report the estimate alone"
    )
    return Refusal(Code.COUNTS_CHECKPOINTS, reason, {"estimate": result.params[name]})


def interval_refusal(name: str, interval: intervals.Interval | None, exponent: bool) -> Refusal | None:
    """Refusals that the interval itself gives: an exponent known to no better than a factor of two, a floor that may be zero."""
    if interval is None:
        return Refusal(Code.NOT_CONVERGED, f"no interval of {name} could be computed")
    low, high = interval.low, interval.high
    shown = f"[{_number(low)}, {_number(high)}]"
    if name == "E" and not low > 0:
        bound = {"upper": high, "level": LEVEL} if math.isfinite(high) else None
        upper = f", and E < {high:.3g}" if bound else ""
        return Refusal(Code.FLOOR_REACHES_ZERO, f"the interval of E, {shown} nats, reaches 0; use the local slope{upper}", bound)
    if exponent and not (low > 0 and math.isfinite(high) and high / low <= MAX_RATIO):
        reason = f"the {LEVEL:.0%} interval of {name}, {shown}, spans more than a factor of {MAX_RATIO:g}; use the local slope"
        return Refusal(Code.WIDE_INTERVAL, reason, {"low": low, "high": high, "level": LEVEL})
    return None


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "unbounded"
