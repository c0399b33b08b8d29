"""What a doubling of parameters or of text buys where no two models share a training length: from the law in both.

Where text follows size (a ladder at 20 tokens per parameter, say) no law can tell them apart: then a doubling of both is all that the data
say, and each alone is refused with that number in its bound.

    found = gains(cells); found["params"], found["n_tokens"]
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from analysis.estimate import PER_DOUBLING, Code, Estimate, Refusal
from analysis.fits.coordinates import FitError
from analysis.fits.intervals import interval_of
from analysis.fits.laws import POWER_FLOOR, POWER_FLOOR_CROSSED, POWER_FLOOR_DATA, SIZE, TOKENS, Law
from analysis.fits.quantities import Gain
from analysis.fits.shape_law import MAX_CORRELATION, MIN_DF, departure, estimated, fit_to
from analysis.table.configurations import Configurations

FACTORS = {"params": SIZE, "n_tokens": TOKENS}


def correlation(cells: Configurations) -> float:
    """Of ln N and ln D over the configurations; 0 where either does not vary."""
    n, d = np.log(cells.columns[SIZE]), np.log(cells.columns[TOKENS])
    return float(np.corrcoef(n, d)[0, 1]) if len(cells) > 2 and np.ptp(n) > 1e-9 and np.ptp(d) > 1e-9 else 0.0


def moving_together(cells: Configurations) -> Refusal | None:
    """The refusal of everything that size alone or text alone would do, where they were varied together."""
    if abs(r := correlation(cells)) <= MAX_CORRELATION:
        return None
    both = _gain(POWER_FLOOR, cells, SIZE) if r > 0 else None
    told = isinstance(both, Estimate) and both.low is not None
    reason = f"training tokens follow the parameters (correlation of logs {r:.2f}), so what either does alone is not told"
    if isinstance(both, Estimate) and told:
        reason += f"; a doubling of N, text with it, buys {both.value:.3g} nats [{both.low:.3g}, {both.high:.3g}]"
    reason += "; train one size at several lengths"
    return Refusal(Code.COLLINEAR, reason, {"both": both.to_dict()} if isinstance(both, Estimate) and told else None)


def gains(cells: Configurations) -> dict[str, Estimate | Refusal]:
    """Factor -> nats per doubling at the centre, the other factor held."""
    refused = moving_together(cells)
    if len(np.unique(cells.columns[TOKENS])) == 1:
        of_text = Refusal(Code.FIXED_TOKENS, "all configurations saw as many tokens; train at several lengths")
        return {"params": _gain(POWER_FLOOR, cells, SIZE), "n_tokens": of_text}
    if refused is None and len(np.unique(cells.columns[TOKENS])) < 3:
        refused = Refusal(Code.TOO_FEW_DF, "a law of size and text needs three training lengths; train at more")
    if refused is None and (df := len(cells) - len(POWER_FLOOR_DATA.parameters)) < MIN_DF:
        refused = Refusal(
            Code.TOO_FEW_DF, f"{len(cells)} configurations leave {df} degrees of freedom for a law of size and text; add some"
        )
    law = POWER_FLOOR_DATA if refused else _law(cells)
    return {factor: refused or _gain(law, cells, column) for factor, column in FACTORS.items()}


def _law(cells: Configurations) -> Law:
    """The additive law, or the one whose exponent of text moves with size where that is clear and the configurations allow it."""
    if len(cells) - len(POWER_FLOOR_CROSSED.parameters) < MIN_DF:
        return POWER_FLOOR_DATA
    test = departure("interaction", fit_to(POWER_FLOOR_DATA, cells), fit_to(POWER_FLOOR_CROSSED, cells), "c")
    return POWER_FLOOR_CROSSED if test.clear else POWER_FLOOR_DATA


def _gain(law: Law, cells: Configurations, column: str) -> Estimate | Refusal:
    """Nats per doubling of a column around the centre, by least squares with a profile interval."""
    try:
        fitted = fit_to(law, cells)
    except FitError as error:
        return Refusal(Code.TOO_FEW_DF, str(error))
    if fitted.df < 1:
        return Refusal(
            Code.TOO_FEW_DF, f"as many configurations as {law.equation} has parameters leave no scatter to judge it by; add some"
        )
    center = {name: float(np.exp(np.mean(np.log(cells.columns[name])))) for name in law.columns}
    ends = [center | {column: center[column] * math.sqrt(2) ** side} for side in (1, -1)]
    found = estimated(interval_of(fitted, Gain(at=ends[0], other=ends[1])), PER_DOUBLING, told=True)
    return replace(found, method=f"law {law.name} in {' and '.join(law.columns)}") if isinstance(found, Estimate) else found
