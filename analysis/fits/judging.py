"""The status of a fit: the most serious doubt about it, and the sentence that says so."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from analysis.fits import estimators as modes
from analysis.fits.coordinates import MAX_LOG_AMPLITUDE, MIN_LOG_AMPLITUDE, Array, Design
from analysis.fits.fit_result import FitStatus
from analysis.fits.laws import Bowl, Cross, Law
from analysis.fits.newton import TOLERANCE, Minimum, Objective

ILL_CONDITIONED = 1e6  # of the scaled Jacobian: noise of 1e-4 then moves parameters by more than their size


def condition_number(data: Objective, theta: Array) -> float:
    """Condition number of the weighted Jacobian with unit columns; infinite where a coordinate has no effect."""
    slope = modes.jacobian(data, theta) * np.sqrt(data.weights[0])[:, None]
    length = np.linalg.norm(slope, axis=0)
    return float(np.linalg.cond(slope / length)) if (length > 1e-12).all() else float("inf")


def judge(design: Design, found: Minimum, best: int, agreeing: NDArray[np.bool_], condition: float, distinct: int) -> tuple[FitStatus, str]:
    """The most serious doubt about a fit, and the sentence for it."""
    theta = found.theta[:, best]
    apart = float(np.ptp(found.theta[:, agreeing], axis=1).max())
    bounds = bounds_hit(design, theta)
    bowls = [f for t in design.law.terms for f in t.factors if isinstance(f, Bowl)]
    params = design.to_params(theta[:, None])
    if not found.converged[best]:
        status, detail = FitStatus.NOT_CONVERGED, f"scaled gradient {found.gradient_norm[best]:.1e} exceeds {TOLERANCE:.0e}"
    elif bounds:
        status, detail = FitStatus.BOUND_HIT, "; ".join(bounds)
    elif (agreeing.sum() < 2 and len(agreeing) > 1) or apart > 0.01:
        status, detail = FitStatus.STARTS_DISAGREE, f"{int(agreeing.sum())} of {len(agreeing)} starts reach the best objective"
    elif any(params[f.curvature][0] <= 0 for f in bowls):
        status, detail = FitStatus.NO_OPTIMUM, "the curvature in ln aspect is not positive"
    elif condition > ILL_CONDITIONED:
        status, detail = FitStatus.ILL_CONDITIONED, f"condition number {condition:.1e} of the scaled Jacobian"
    elif distinct == len(design.law.parameters):
        status, detail = FitStatus.SATURATED, f"{distinct} distinct points, {distinct} parameters"
    else:
        return FitStatus.CONVERGED, FitStatus.CONVERGED.value
    return status, f"{status.value} ({detail})"


def bounds_hit(design: Design, theta: Array) -> list[str]:
    """Sentences naming each coordinate that is at its bound."""
    low, high = design.bounds()
    names = coordinate_names(design.law)
    sentences = []
    for j in np.flatnonzero((theta <= low) | (theta >= high)):
        side = "lower" if theta[j] <= low[j] else "upper"
        vanished = low[j] == MIN_LOG_AMPLITUDE and high[j] == MAX_LOG_AMPLITUDE and side == "lower"
        sentences.append(f"the term of {names[j]} vanishes" if vanished else f"{names[j]} is at its {side} bound")
    return sentences


def coordinate_names(law: Law) -> list[str]:
    """The parameter that each coordinate belongs to, in coordinate order."""
    names = [law.floor] if law.floor else []
    for term in law.terms:
        names.append(term.amplitude)
        for factor in term.factors:
            if isinstance(factor, Bowl):
                names += [factor.optimum, factor.curvature]
            elif isinstance(factor, Cross):
                names.append(factor.coefficient)
            elif hasattr(factor, "exponent"):
                names.append(factor.exponent)
    return names
