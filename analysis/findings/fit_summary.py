"""One fit as a block of fits.json: parameters or refusals, the local slope, residuals, the curve, and how it was obtained.

block = build(fitted, noise, Options())

Refusals come in the order in which they are tried: too few or too narrow data, a fit at no determined optimum, shared runs, then what the
interval itself says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.estimate import LEVEL, NATS, SIZE, Code, Refusal
from analysis.findings.size_law import Fitted, half_width, observations, runs_shared
from analysis.findings.sweeps import ends, mean_ends, thinned
from analysis.fits import intervals
from analysis.fits.fit import FitResult, FitStatus
from analysis.fits.laws import Law, Power
from analysis.fits.quantities import Parameter, Quantity, Slope
from analysis.table.configurations import Configurations, Noise
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
        "parameters": {name: refused.get(name) or _parameter(fitted, name, found.get(name)) for name in result.params},
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
    cells, left = fitted.cells, fitted.cells.loss - fitted.result.fitted
    known = [
        (str(cells.config_id[i]), float(cells.columns[fitted.column][i]), float(left[i]), int(cells.n_seeds[i]))
        for i in thinned(len(cells))
    ]
    return [{"config_id": config, "x": x, "residual": own, **mean_ends(own, n, noise)} for config, x, own, n in known]


def _curve(fitted: Fitted) -> dict[str, Any]:
    """The law over N, tokens at their reference."""
    sizes = fitted.cells.columns[fitted.column]
    low, high = float(sizes.min()), float(sizes.max())
    reach = min(REACH, high / low)
    x = np.geomspace(low / reach, high * reach, CURVE_POINTS)
    return {"x": x, "y": fitted.result.predict(fitted.at(x)), "inside": (low * (1 - 1e-9) <= x) & (x <= high * (1 + 1e-9))}


# ---- intervals ----


def _intervals(fitted: Fitted, noise: Noise | Refusal, options: Options, parameters: Sequence[str]) -> dict[str, intervals.Interval]:
    """Intervals of the slope at the reference and of the named parameters, from the estimator of the point.

    Profile likelihood; the delta method for the slope of a fit that only stands beside the primary one, where nothing else is reported;
    bootstrap of configurations for the primary fit by Huber.
    """
    if runs_shared(fitted.cells):
        return {}
    at = {name: float(value) for name, value in fitted.result.reference.items()}
    slope = {"slope": Slope(at, fitted.column)}
    if fitted.result.delta is not None:
        if fitted.fit_id != "joint" or not options.n_bootstrap or fitted.df < 1:
            return {}
        rng = np.random.default_rng(options.seed)
        # Of many thousand trials the means are resampled: 1,000 weights for each of 100,000 rows would take the memory of the machine.
        source = observations(fitted, means=len(fitted.cells.cell_loss) > MANY)
        return intervals.bootstrap(source, fitted.result, _parameters(fitted.result.params) | slope, rng, options.n_bootstrap)
    beside = fitted.fit_id.startswith(("joint@", "joint:"))
    if fitted.df >= 1 and (parameters or not beside):
        return intervals.profiles(observations(fitted), _parameters(parameters) | slope)
    return _delta_slope(fitted, noise)


def _parameters(names: Iterable[str]) -> dict[str, Quantity]:
    return {name: Parameter(name) for name in names}


def _delta_slope(fitted: Fitted, noise: Noise | Refusal) -> dict[str, intervals.Interval]:
    """Interval of the slope at the reference from the linearized fit; none where neither scatter nor seeds give a variance."""
    size, step = float(fitted.result.reference[fitted.column]), 1e-3
    up, down = fitted.jacobian(fitted.at(size * np.exp([step, -step])))
    half, slope = half_width(fitted, (up - down) / (2 * step), noise), fitted.slope(size)
    if half is None:
        return {}
    return {"slope": intervals.Interval(slope - half, slope + half, "delta", "closed", slope, len(fitted.cells))}


# ---- numbers ----


def _parameter(fitted: Fitted, name: str, interval: intervals.Interval | None) -> dict[str, Any] | Refusal:
    """A parameter's value with interval, or the refusal that its interval gives."""
    law = fitted.result.law
    exponent = name in exponents(law)
    refused = interval_refusal(name, interval, exponent) if name == law.floor or exponent else None
    value = interval.point if interval is not None and interval.status != "failed" else fitted.result.params[name]
    return refused or _cell(value, interval, NATS if name == law.floor or name in law.amplitudes else "")


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
    """A value with its interval; an end that the data do not bound is infinite, which JSON holds as null."""
    cell: dict[str, Any] = {"value": value, "low": None, "high": None, "level": LEVEL}
    if interval is None:
        cell["method"] = "none: too few sizes to see how far models scatter around the curve"
    elif interval.status == "failed":
        cell["method"] = f"none: {interval.reason}"
    else:
        cell |= {"low": interval.low, "high": interval.high, "method": interval.method, "interval": interval.status}
    return cell | {"unit": unit}


def compute_optimal(cells: Configurations, primary: Fitted | None, noise: Noise | Refusal) -> dict[str, Any] | Refusal:
    """Exponent a of N_opt ~ C^a = beta / (alpha + beta) (Hoffmann et al. 2022, eq. 4): only where N and D varied independently."""
    n, d = np.log(cells.columns[SIZE]), np.log(cells.columns["n_tokens"])
    if np.ptp(d) < 1e-9:
        return Refusal(Code.FIXED_TOKENS, "compute-optimal N and D need runs at several n_tokens; all configurations saw the same number")
    r = float(np.corrcoef(n, d)[0, 1]) if np.ptp(n) > 1e-9 else 1.0
    if abs(r) > 0.9:
        reason = f"compute-optimal N and D cannot be told apart: ln N and ln D correlate by {r:.2f}; vary them separately"
        return Refusal(Code.COLLINEAR, reason)
    if primary is None or "beta" not in primary.result.params:
        reason = f"compute-optimal N and D need a law of size and text, which {len(np.unique(d))} training lengths do not give"
        return Refusal(Code.TOO_FEW_DF, f"{reason}; train at three or more")
    return early_refusal(primary, "beta") or _optimal_exponent(primary, noise) | {"correlation": r}


def _optimal_exponent(fitted: Fitted, noise: Noise | Refusal) -> dict[str, Any]:
    """beta / (alpha + beta) with a delta-method interval."""
    design, theta = fitted.result.design, fitted.result.theta

    def exponent(coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
        params = design.to_params(coordinates)
        return np.asarray(params["beta"] / (params["alpha"] + params["beta"]), dtype=float)

    step = 1e-6 * np.eye(len(theta))
    half = half_width(fitted, (exponent(theta[:, None] + step) - exponent(theta[:, None] - step)) / 2e-6, noise)
    value = float(exponent(theta[:, None])[0])
    return {"value": value, **ends(value, half), "level": LEVEL, "method": "delta"}


# ---- refusals ----


def early_refusal(fitted: Fitted, name: str) -> Refusal | None:
    """A refusal that needs no interval: the data are too few or too narrow, or the fit is not at a determined optimum."""
    law = fitted.result.law
    guarded = name == law.floor or name in exponents(law) or law.has_floor
    return (_data_refusal(fitted) if guarded else None) or status_refusal(name, fitted.result) or _shared_runs_refusal(name, fitted)


def _data_refusal(fitted: Fitted) -> Refusal | None:
    """Too few sizes or configurations, too narrow a range."""
    values, params = fitted.cells.columns[fitted.column], fitted.result.params
    n_sizes, span = distinct_sizes(values), float(np.log10(values.max() / values.min()))
    names = " and ".join(n for n in ("E", "alpha") if n in params) or ", ".join(params)
    if n_sizes < MIN_SIZES:
        return Refusal(Code.TOO_FEW_SIZES, f"{names} cannot be told from fewer than {MIN_SIZES} sizes and there are {n_sizes}; add sizes")
    if fitted.df < MIN_DF:
        counted = f"{len(fitted.cells)} configurations for {len(params)} parameters; have {MIN_DF} more than parameters"
        return Refusal(Code.TOO_FEW_DF, f"{names} cannot be told: {counted}")
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


def _shared_runs_refusal(name: str, fitted: Fitted) -> Refusal | None:
    """Refusal of intervals that would count the checkpoints of one run as independent; the estimate stands in the bound."""
    if not (runs := runs_shared(fitted.cells)):
        return None
    reason = (
        f"no standard errors: the {len(fitted.cells)} configurations are branches of {runs} runs, and counting them as independent would "
        "make every interval too short; train runs of separate length, or report the estimate alone"
    )
    return Refusal(Code.COUNTS_CHECKPOINTS, reason, {"estimate": fitted.result.params[name]})


def interval_refusal(name: str, interval: intervals.Interval | None, exponent: bool) -> Refusal | None:
    """Refusals that the interval itself gives: an exponent known to no better than a factor of two, a floor that may be zero."""
    if interval is None:
        return Refusal(Code.NOT_CONVERGED, f"no interval of {name} could be computed")
    low, high = interval.low, interval.high
    shown = f"[{', '.join(f'{end:.3g}' if math.isfinite(end) else 'unbounded' for end in (low, high))}]"
    if name == "E" and not low > 0:
        bound = {"upper": high, "level": LEVEL} if math.isfinite(high) else None
        upper = f", and E < {high:.3g}" if bound else ""
        return Refusal(Code.FLOOR_REACHES_ZERO, f"the interval of E, {shown} nats, reaches 0; use the local slope{upper}", bound)
    if exponent and not (low > 0 and math.isfinite(high) and high / low <= MAX_RATIO):
        reason = f"the {LEVEL:.0%} interval of {name}, {shown}, spans more than a factor of {MAX_RATIO:g}; use the local slope"
        return Refusal(Code.WIDE_INTERVAL, reason, {"low": low, "high": high, "level": LEVEL})
    return None
