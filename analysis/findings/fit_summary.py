"""One fit as a block of fits.json: parameters or refusals, the local slope, residuals, the curve with its band, and how it was obtained.

block = build("joint", "All configurations", POWER_FLOOR, cells, noise, options)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.estimate import NATS, Refusal
from analysis.findings import refusal_rules as verdicts
from analysis.findings.size_law import Fitted, mean_variance, observations
from analysis.fits import intervals
from analysis.fits import law_selection as selection
from analysis.fits.laws import Law, Power
from analysis.fits.quantities import Parameter, Quantity, Slope
from analysis.table.configurations import LEVEL, Noise, t_quantile

CURVE_POINTS = 60
MANY = 5000
"""Trials beyond which the bootstrap resamples configurations only, and lists are thinned."""
SHOWN = 1000
REACH = 2.0
"""The drawn curve goes this factor beyond the data on either side, and never beyond one observed log-range."""


@dataclass(frozen=True)
class Options:
    """How intervals are computed.

    Args:
        n_bootstrap: configuration-level bootstrap replicates; 0 leaves the cross-check out.
        seed: of the bootstrap.
        level: of every interval.
        delta: width of Huber's function in log loss, for the fits in N; None takes least squares, which is what profiles are made from.
        profile: profile-likelihood interval of the slope even where no parameter may be reported; False then takes the delta method,
            which is enough for a fit that only stands beside the primary one.
    """

    n_bootstrap: int = 1000
    seed: int = 0
    level: float = LEVEL
    delta: float | None = None
    profile: bool = True


# ---- the block ----


def build(fitted: Fitted, noise: Noise | Refusal, options: Options) -> dict[str, Any]:
    """The JSON block of a fit."""
    result, cells = fitted.result, fitted.cells
    card = result.to_dict()
    refused = {name: refusal for name in result.params if (refusal := early_refusal(fitted, name))}
    resampled = bootstrapped(fitted, options)
    sure = [name for name in result.params if name not in refused]
    found = resampled if result.delta else profile_all(fitted, noise, options, sure)  # point and interval are one estimator
    parameters = {name: parameter(fitted, name, found.get(name), refused.get(name)) for name in result.params}
    block = {
        "title": fitted.title,
        "law": result.law.name,
        "equation": result.law.equation,
        "source": result.law.source,
        "convention": fitted.column,
        "sweep": fitted.sweep,
        "n_rows": len(cells.cell_loss),
        "n_configurations": len(cells),
        "n_seeds": int(np.max(cells.n_seeds)),
        "n_sizes": verdicts.sizes(cells, fitted.column),
        "decades": verdicts.decades(cells, fitted.column),
        "df": fitted.df,
        "reference": result.reference,
        "parameters": parameters,
        "slope": slope_block(fitted, found.get("slope")),
        "loss_at_reference": loss_at_reference(fitted, noise),
        "status": result.status.name,
        "status_text": result.message,
        **{k: card[k] for k in ("gradient_norm", "n_starts", "starts_agreeing", "inlier_fraction", "condition", "delta")},
        "objective": result.objective_value,
        "objective_name": result.objective,
        "r2": r_squared(fitted),
        "aicc": selection.aicc(result),
        "residual_sd": residual_sd(fitted),
        "residuals": residual_rows(fitted, noise),
        "curve": curve(fitted, noise),
    }
    ends = {name: {"low": v.low, "high": v.high, "status": v.status} for name, v in resampled.items()}
    return block | {"bootstrap": ends, "disagreement": disagreement(found, resampled) if resampled else None}


def r_squared(fitted: Fitted) -> float:
    """1 - residual over total sum of squares of configuration means, in nats."""
    loss = fitted.cells.loss
    total = float(np.sum((loss - loss.mean()) ** 2))
    return 1 - float(np.sum((loss - fitted.result.fitted) ** 2)) / total if total > 0 else float("nan")


def residual_sd(fitted: Fitted) -> float | None:
    """Residual standard deviation of configuration means, log loss, df = configurations - parameters."""
    return float(np.sqrt(np.sum(fitted.result.residuals**2) / fitted.df)) if fitted.df > 0 else None


def residual_rows(fitted: Fitted, noise: Noise | Refusal) -> list[dict[str, Any]]:
    """Residual of each configuration in nats, with the interval that its seeds give."""
    cells = fitted.cells
    left = cells.loss - fitted.result.fitted
    rows = []
    for i in thinned(len(cells)):
        half = noise.half_width(int(cells.n_seeds[i])) if isinstance(noise, Noise) else None
        ends = {"low": None, "high": None} if half is None else {"low": left[i] - half, "high": left[i] + half}
        rows.append({"config_id": str(cells.config_id[i]), "x": float(cells.columns[fitted.column][i]), "residual": float(left[i]), **ends})
    return rows


def thinned(n: int) -> list[int]:
    """Indices of at most SHOWN items, evenly spread: what a person can look at of thousands."""
    return [int(i) for i in (np.arange(n) if n <= SHOWN else np.unique(np.linspace(0, n - 1, SHOWN).round()))]


def curve(fitted: Fitted, noise: Noise | Refusal) -> dict[str, Any]:
    """The law over N, tokens at their reference, with a pointwise band (delta method, residual scatter of configuration means)."""
    sizes = fitted.cells.columns[fitted.column]
    low, high = float(sizes.min()), float(sizes.max())
    reach = min(REACH, high / low)
    x = np.geomspace(low / reach, high * reach, CURVE_POINTS)
    points = fitted.at(x)
    y = fitted.result.predict(points)
    block: dict[str, Any] = {"x": x, "y": y, "inside": [bool(low * (1 - 1e-9) <= v <= high * (1 + 1e-9)) for v in x]}
    variance, df = mean_variance(fitted, noise)
    if variance is None:
        return block | {"low": None, "high": None}
    half = t_quantile(df) * fitted.log_error(points, variance)
    with np.errstate(over="ignore"):  # far from few points the band is as good as unbounded
        return block | {"low": y * np.exp(-half), "high": y * np.exp(half)}


# ---- parameters ----


def profile_all(fitted: Fitted, noise: Noise | Refusal, options: Options, parameters: Sequence[str]) -> dict[str, intervals.Interval]:
    """Profile-likelihood intervals of the slope at the reference and of the named parameters; the delta method where that must do."""
    if verdicts.runs_shared(fitted.cells):
        return {}
    if fitted.df >= 1 and (options.profile or parameters):
        return intervals.profiles(observations(fitted), quantities_of(fitted, parameters), level=options.level)
    slope = delta_slope(fitted, noise, options.level)
    return {} if slope is None else {"slope": slope}


def delta_slope(fitted: Fitted, noise: Noise | Refusal, level: float) -> intervals.Interval | None:
    """Interval of the slope at the reference from the linearized fit; None where neither scatter nor seeds give a variance."""
    variance, df = mean_variance(fitted, noise)
    if variance is None:
        return None
    size, step = float(fitted.result.reference[fitted.column]), 1e-3
    up, down = fitted.jacobian(fitted.at(size * np.exp([step, -step])))
    error = fitted.combination_error((up - down) / (2 * step), variance)
    half, slope = t_quantile(df, level) * error, fitted.slope(size)
    return intervals.Interval(slope - half, slope + half, level, "delta", "closed", slope, len(fitted.cells))


def quantities_of(fitted: Fitted, parameters: Sequence[str]) -> dict[str, Quantity]:
    """The slope at the reference, where the law has N, and parameters."""
    at = {name: float(value) for name, value in fitted.result.reference.items()}
    named: dict[str, Quantity] = {name: Parameter(name) for name in parameters}
    return named | {"slope": Slope(at, fitted.column)}


def early_refusal(fitted: Fitted, name: str) -> Refusal | None:
    """A refusal that needs no interval: the data are too few or too narrow, or the fit is not at a determined optimum."""
    result, law = fitted.result, fitted.result.law
    guarded = name == law.floor or name in exponents(law) or law.has_floor
    poor = verdicts.data_refusal(result, fitted.cells, fitted.column) if guarded else None
    return poor or verdicts.status_refusal(name, result) or verdicts.shared_runs_refusal(name, result, fitted.cells)


def exponents(law: Law) -> list[str]:
    """Names of a law's exponents."""
    return [factor.exponent for term in law.terms for factor in term.factors if isinstance(factor, Power)]


def parameter(fitted: Fitted, name: str, interval: intervals.Interval | None, refusal: Refusal | None) -> dict[str, Any]:
    """A parameter's value with interval, or the refusal that stands in its place."""
    law = fitted.result.law
    if refusal is None and (name == law.floor or name in exponents(law)):
        refusal = verdicts.interval_refusal(name, interval, name in exponents(law))
    if refusal is not None:
        return refusal.to_dict()
    value = interval.point if interval is not None and interval.status != "failed" else fitted.result.params[name]
    return _cell(value, interval, NATS if name == law.floor or name in law.amplitudes else "")


def loss_at_reference(fitted: Fitted, noise: Noise | Refusal) -> dict[str, Any]:
    """The curve's value at the reference size with a delta-method interval."""
    points = {name: np.array([value]) for name, value in fitted.result.reference.items()}
    value = float(fitted.result.predict(points)[0])
    variance, df = mean_variance(fitted, noise)
    cell: dict[str, Any] = {"value": value, "low": None, "high": None, "level": LEVEL, "method": "delta", "unit": NATS}
    if variance is not None:
        half = t_quantile(df) * float(fitted.log_error(points, variance)[0])
        cell |= {"low": value * math.exp(-half), "high": value * math.exp(half)}
    return cell


def slope_block(fitted: Fitted, interval: intervals.Interval | None) -> dict[str, Any]:
    """Local slope dlnL/dlnN at the reference size, and what a doubling around it buys in nats (from N/sqrt(2) to N sqrt(2))."""
    size = float(fitted.result.reference[fitted.column])
    slope, loss = fitted.slope(size), float(fitted.result.predict(fitted.at(size))[0])
    cell = _cell(slope, interval, "dlnL/dlnN")
    if verdicts.runs_shared(fitted.cells):
        cell["method"] = "none: the configurations are branches of shared runs"
    gains = {key: None if cell[key] is None else doubling_gain(loss, cell[key]) for key in ("value", "low", "high")}
    doubling = {"value": gains["value"], "low": gains["high"], "high": gains["low"], "unit": NATS}
    return cell | {"at": size, "loss": loss, "nats_per_e_fold": slope * loss, "gain_per_doubling": doubling}


def optimal_exponent(fitted: Fitted, noise: Noise | Refusal) -> dict[str, Any]:
    """a = beta / (alpha + beta), the exponent of the compute-optimal N in C, with a delta-method interval."""
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


def doubling_gain(loss: float, slope: float) -> float:
    """Nats that doubling N around a point of the curve buys: L 2 sinh(-slope ln2 / 2), exact to third order in ln 2."""
    return loss * 2 * math.sinh(-slope * math.log(2) / 2)


def _cell(value: float, interval: intervals.Interval | None, unit: str) -> dict[str, Any]:
    ends: dict[str, Any] = {
        "low": None,
        "high": None,
        "level": LEVEL,
        "method": "none: too few sizes to see how far models scatter around the curve",
    }
    if interval is not None and interval.status == "failed":
        ends["method"] = f"none: {interval.reason}"
    elif interval is not None:
        low, high = (end if math.isfinite(end) else None for end in (interval.low, interval.high))  # None: the data do not bound that side
        ends = {"low": low, "high": high, "level": interval.level, "method": interval.method, "interval": interval.status}
    return {"value": value, **ends, "unit": unit}


def bootstrapped(fitted: Fitted, options: Options) -> dict[str, intervals.Interval]:
    """Configuration-level bootstrap of parameters and slope: a cross-check of profiles, and the interval of what they are not made for."""
    if not options.n_bootstrap or fitted.df < 1 or verdicts.runs_shared(fitted.cells):
        return {}
    rng = np.random.default_rng(options.seed)
    wanted = quantities_of(fitted, list(fitted.result.params))
    # Of many thousand trials the means are resampled: 1,000 weights for each of 100,000 rows would take the memory of the machine.
    source, n = observations(fitted, means=len(fitted.cells.cell_loss) > MANY), options.n_bootstrap
    return intervals.bootstrap(source, wanted, rng=rng, n=n, level=options.level, start=fitted.result)


def disagreement(profiled: Mapping[str, intervals.Interval], resampled: Mapping[str, intervals.Interval]) -> str | None:
    """A sentence naming the quantities whose two intervals differ in width by more than 25 %, or None."""
    apart: dict[str, list[str]] = {"wider": [], "narrower": []}
    for name, interval in profiled.items():
        widths = (interval.width, resampled[name].width)
        finite = [math.isfinite(w) and w > 0 for w in widths]
        if finite[0] != finite[1] or (all(finite) and max(widths) > 1.25 * min(widths)):
            apart["wider" if not finite[1] or widths[1] > widths[0] else "narrower"].append(name)
    parts = [f"{kind} for {', '.join(names)}" for kind, names in apart.items() if names]
    if not parts:
        return None
    return f"the bootstrap's intervals are over 25 % {' and '.join(parts)} than the profile's; the profile's are reported"
