"""Fits of the law of size alone, each with the configurations behind it: what every finding about N starts from.

fitted = fit_size_law("joint", "All configurations", cells); fitted.slope(1e6)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.estimate import PER_DOUBLING, SIZE, Code, Estimate, Refusal
from analysis.findings.lines import at_length, training_lengths
from analysis.findings.sweeps import find_sweeps
from analysis.fits import fit as fits
from analysis.fits import intervals
from analysis.fits.fit import FitError, FitResult
from analysis.fits.laws import POWER, POWER_FLOOR, POWER_FLOOR_CROSSED, POWER_FLOOR_DATA, TOKENS, Law
from analysis.fits.profile_likelihood import fit_to
from analysis.fits.quantities import Gain
from analysis.fits.shape_law import CLEAR, MAX_CORRELATION, MIN_DF, departure, estimated
from analysis.table.configurations import Configurations, Noise, f_p_value, t_quantile
from analysis.table.load import distinct_sizes, size_labels

CONVENTIONS = ("params_non_embedding", "params_total", "params_blocks")
"""The ways to count N under which the joint fit is repeated."""
AT_LENGTH = "length:"
"""Begins the names of fits to trials of one number of training tokens."""
BESIDE_STARTS = 4
"""Starts of the fits beside the primary one: four found the same optimum as twelve in 158 of 158 simulated fits of M1 and M2."""
RUN = ("params_non_embedding", "n_layer", "n_embd", "n_head", "lr", "unique_tokens", "batch_size")
"""What configurations share that are checkpoints or branches of one run."""
MAX_LEFT_OUT = 200
"""Sizes forecast from smaller ones at most, the largest of them: of thousands of sizes none matters by itself."""


@dataclass(frozen=True)
class Fitted:
    """A fit with the configurations that it used.

    Args:
        fit_id: key in fits.json.
        result: the fit on configuration means.
        cells: those configurations.
        column: how N is counted.
        sweep: the one sweep whose configurations were used, or None.
        title: for people.
    """

    fit_id: str
    title: str
    result: FitResult
    cells: Configurations
    column: str
    sweep: str | None = None

    @property
    def df(self) -> int:
        """Configurations less parameters."""
        return len(self.cells) - len(self.result.params)

    def at(self, size: Any, **other: Any) -> dict[str, NDArray[np.float64]]:
        """Columns at sizes, everything else at the fit's reference."""
        n = np.atleast_1d(np.asarray(size, dtype=float))
        fixed = {**self.result.reference, **other}
        return {name: n if name == self.column else np.full(len(n), fixed[name]) for name in self.result.law.columns}

    def slope(self, size: float) -> float:
        """Local slope dlnL/dlnN at a size (negative where larger is better)."""
        step = 1e-5
        up, down = self.result.predict(self.at([size * math.exp(step), size * math.exp(-step)]))
        return float((math.log(up) - math.log(down)) / (2 * step))

    def jacobian(self, points: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """d ln L / d coordinates at points, (points, parameters), by central differences."""
        theta, step = self.result.theta, 1e-6
        offsets = step * np.eye(len(theta))
        shifted = np.concatenate([theta[:, None] + offsets, theta[:, None] - offsets], axis=1)
        values = self.result.design.log_predict(shifted, dict(points))
        half = len(theta)
        return ((values[:half] - values[half:]) / (2 * step)).T


# ---- fits ----


def all_fits(cells: Configurations, delta: float | None = None) -> list[Fitted | Refusal]:
    """The joint fit under each way to count N, that with configurations of unvaried size, one per sweep, and one per training length."""
    growing = [s for s in find_sweeps(cells) if distinct_sizes(cells.columns[SIZE][list(s.members)]) > 1]
    members = sorted({i for s in growing for i in s.members})
    sized = cells.take(members) if members else cells
    title = "All configurations" if len(sized) == len(cells) else "All configurations of the sweeps in which size varies"
    columns = [c for c in CONVENTIONS if np.isfinite(cells.columns[c]).all()]
    tried = [fit_size_law("joint" if c == SIZE else f"joint@{c}", title, sized, c, delta=delta) for c in columns]
    if 0 < len(sized) < len(cells):
        tried.append(fit_size_law("joint:all", "All configurations, those of equal size included", cells, delta=delta))
    for sweep in growing:
        own = cells.take(list(sweep.members))
        tried.append(fit_size_law(f"sweep:{sweep.name}", f"Sweep {sweep.name}", own, sweep=sweep.name, delta=delta))
    # branches share their run, but those of one length have runs of their own
    for n in training_lengths(sized) if runs_shared(sized) else []:
        own = sized.take(at_length(sized, n))
        if distinct_sizes(own.columns[SIZE]) > 2:
            tried.append(fit_size_law(f"{AT_LENGTH}{n}", f"Trained on {n:,} tokens", own))
    return tried


def fit_size_law(
    fit_id: str, title: str, cells: Configurations, column: str = SIZE, sweep: str | None = None, delta: float | None = None
) -> Fitted | Refusal:
    """Fit L(N), or L(N, D) where training tokens vary too, to configuration means: by least squares, or Huber of width `delta`."""
    if distinct_sizes(cells.columns[column]) < 2:
        return Refusal(
            Code.NO_VARIATION, f"{title}: N takes one value, so the data say nothing about what parameters buy; add a second size"
        )
    if refused := moving_together(cells):
        return refused
    law = POWER_FLOOR if distinct_sizes(cells.columns[column]) >= 4 else POWER  # with a floor, for the entropy of text is not zero
    if len(np.unique(cells.columns["n_tokens"])) >= 3 and len(cells) > len(POWER_FLOOR_DATA.parameters):
        law = POWER_FLOOR_DATA
    try:
        n_starts = fits.N_STARTS if fit_id == "joint" else BESIDE_STARTS
        result = fits.fit(law.on(**{SIZE: column}), cells.columns, cells.loss, delta=delta, n_starts=n_starts)
    except FitError as error:
        return Refusal(Code.TOO_FEW_SIZES, f"{title}: {error}")
    return Fitted(fit_id, title, result, cells, column, sweep)


# ---- what intervals rest on ----


def runs_shared(cells: Configurations) -> int:
    """Number of runs behind configurations that are checkpoints or branches of them; 0 where every configuration has its own run."""
    if not len(cells) or not cells.columns["is_branch"].any():
        return 0
    recipe = np.stack([np.nan_to_num(cells.columns[c]) for c in RUN])
    runs = np.unique(recipe, axis=1).shape[1]
    return runs if runs < len(cells) else 0


def mean_variance(fitted: Fitted, noise: Noise | Refusal) -> tuple[float | None, int]:
    """Variance of a configuration mean about the curve in log loss, and its degrees of freedom; None where nothing tells.

    Residual scatter alone where the lack of fit exceeds the seeds' noise (F test at 5 %); otherwise residuals and seed noise pooled, which
    is what lets a four-level sweep with seeds say anything (Draper and Smith 1998, chapter 2).
    """
    if runs_shared(fitted.cells):
        return None, 0  # branches of one run scatter together: their scatter says too little
    rss, df = float(np.sum(fitted.result.residuals**2)), fitted.df
    if isinstance(noise, Refusal):
        return (rss / df, df) if df > 0 else (None, 0)
    pure = float(np.mean((noise.difference_sd / fitted.cells.loss) ** 2 / fitted.cells.n_seeds))
    if df > 0 and f_p_value(rss / df / pure, df, noise.difference_df) < 0.05:
        return rss / df, df
    return (rss + pure * noise.difference_df) / (df + noise.difference_df), df + noise.difference_df


def half_width(fitted: Fitted, direction: NDArray[np.float64], noise: Noise | Refusal) -> float | None:
    """Of the interval of a function of the coordinates with this gradient (delta method); None where no variance is known."""
    variance, df = mean_variance(fitted, noise)
    if variance is None:
        return None
    own = fitted.jacobian({name: fitted.cells.columns[name] for name in fitted.result.law.columns})
    shape = float(direction @ np.linalg.pinv(own.T @ own, rcond=1e-12) @ direction)
    return t_quantile(df) * math.sqrt(max(shape, 0.0) * variance)


def observations(fitted: Fitted, means: bool = False) -> intervals.Observations:
    """The fit's rows, one per configuration and seed, for intervals: seeds of one configuration are grouped, never independent.

    Args:
        means: give configuration means instead, one row each.
    """
    cells = fitted.cells
    if means:
        cells = replace(cells, cell_config=np.arange(len(cells)), cell_loss=cells.loss)
    return intervals.Observations(fitted.result.law, cells, fitted.result.reference)


# ---- would it have been foretold? ----


def leave_largest_out(fitted: Fitted) -> list[dict[str, Any]]:
    """Each size predicted from the smaller ones only, rolling up to the largest: the error that an extrapolation would have made."""
    cells, law = fitted.cells, fitted.result.law
    sizes = cells.columns[fitted.column]
    groups = size_labels(sizes)
    targets = np.unique(groups)[1:][-MAX_LEFT_OUT:]
    keep = groups[None, :] < targets[:, None]
    points = {name: cells.columns[name] for name in law.columns}
    enough = (targets >= 2 + int(law.has_floor)) & (intervals.distinct_points(points, keep.astype(float)) >= len(law.parameters))
    if not enough.any():
        return []
    batch = fits.fit_batch(fitted.result, cells.columns, cells.loss, keep[enough])
    found = []
    for n, log_loss in zip(targets[enough], np.log(batch.predict(cells.columns)), strict=True):
        own = groups == n
        error = float(np.mean(np.log(cells.loss[own]) - log_loss[own]))  # positive where the loss is higher than predicted
        found.append({
            "size": float(np.exp(np.mean(np.log(sizes[own])))),
            "observed": float(np.mean(cells.loss[own])),
            "predicted": float(np.exp(np.mean(log_loss[own]))),
            "error_percent": 100 * math.expm1(error),
            "from_sizes": int(n),
        })  # fmt: skip
    return found


# ---- size and text together ----


def moving_together(cells: Configurations) -> Refusal | None:
    """The refusal of everything that size alone or text alone would do, where they were varied together."""
    n, d = np.log(cells.columns[SIZE]), np.log(cells.columns[TOKENS])
    r = float(np.corrcoef(n, d)[0, 1]) if len(cells) > 2 and np.ptp(n) > 1e-9 and np.ptp(d) > 1e-9 else 0.0
    if abs(r) <= MAX_CORRELATION:
        return None
    both = _gain(POWER_FLOOR, cells, SIZE) if r > 0 else None
    reason = f"training tokens follow the parameters (correlation of logs {r:.2f}), so what either does alone is not told"
    advice = "train one size at several lengths"
    if not isinstance(both, Estimate) or both.low is None:
        return Refusal(Code.COLLINEAR, f"{reason}; {advice}")
    reason += f"; a doubling of N, text with it, buys {both.value:.3g} nats [{both.low:.3g}, {both.high:.3g}]"
    return Refusal(Code.COLLINEAR, f"{reason}; {advice}", {"both": both.to_dict()})


def gains(cells: Configurations) -> dict[str, Estimate | Refusal]:
    """Parameters and text -> nats per doubling at the centre, the other held, where no two models share a training length.

    Where text follows size (a ladder at 20 tokens per parameter, say) no law can tell them apart: then a doubling of both is all that the
    data say, and each alone is refused with that number in its bound.
    """
    lengths, df = len(np.unique(cells.columns[TOKENS])), len(cells) - len(POWER_FLOOR_DATA.parameters)
    if lengths == 1:
        of_text = Refusal(Code.FIXED_TOKENS, "all configurations saw as many tokens; train at several lengths")
        return {"params": _gain(POWER_FLOOR, cells, SIZE), "n_tokens": of_text}
    refused = moving_together(cells)
    if refused is None and lengths < 3:
        refused = Refusal(Code.TOO_FEW_DF, "a law of size and text needs three training lengths; train at more")
    if refused is None and df < MIN_DF:
        reason = f"{len(cells)} configurations leave {df} degrees of freedom for a law of size and text; add some"
        refused = Refusal(Code.TOO_FEW_DF, reason)
    if refused:
        return {"params": refused, "n_tokens": refused}
    return {"params": _gain(law := _law(cells), cells, SIZE), "n_tokens": _gain(law, cells, TOKENS)}


def _law(cells: Configurations) -> Law:
    """The additive law, or the one whose exponent of text moves with size where that is clear and the configurations allow it."""
    if len(cells) - len(POWER_FLOOR_CROSSED.parameters) < MIN_DF:
        return POWER_FLOOR_DATA
    p = departure(fit_to(POWER_FLOOR_DATA, cells), fit_to(POWER_FLOOR_CROSSED, cells))
    return POWER_FLOOR_CROSSED if p < CLEAR else POWER_FLOOR_DATA


def _gain(law: Law, cells: Configurations, column: str) -> Estimate | Refusal:
    """Nats per doubling of a column around the centre, by least squares with a profile interval."""
    try:
        fitted = fit_to(law, cells)
    except FitError as error:
        return Refusal(Code.TOO_FEW_DF, str(error))
    if fitted.df < 1:
        reason = f"as many configurations as {law.equation} has parameters leave no scatter to judge it by; add some"
        return Refusal(Code.TOO_FEW_DF, reason)
    center = {name: float(np.exp(np.mean(np.log(cells.columns[name])))) for name in law.columns}
    ends = [center | {column: center[column] * math.sqrt(2) ** side} for side in (1, -1)]
    found = estimated(intervals.interval_of(fitted, Gain(at=ends[0], other=ends[1])), PER_DOUBLING, told=True)
    return replace(found, method=f"law {law.name} in {' and '.join(law.columns)}") if isinstance(found, Estimate) else found
