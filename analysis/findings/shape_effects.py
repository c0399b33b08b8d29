"""Size or shape? Structural effects at equal size, in nats and as parameter-equivalents, each gated by the measured noise floor.

Configurations of unequal size are never compared directly: one that is off the reference sweep's sizes is compared with that sweep's
fitted curve at its own size, by interpolation only. A parameter-equivalent exp(-dL / |dL/dlnN|) says by which factor the parameters of a
model on the curve would have to change for the same effect: 0.85 is "acts like a model with 15 % fewer parameters".

    found = structure.contrasts(cells, sweep_fits, described, noise)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.estimate import Refusal, Verdict
from analysis.findings.one_factor import NAMES, SHAPE, Sweep
from analysis.findings.refusal_rules import sizes
from analysis.findings.size_law import Fitted, mean_variance
from analysis.table.configurations import Configurations, Noise, t_p_value, t_quantile
from analysis.table.load import SAME_SIZE

SLOPE_STEP = 1e-3
FLAT = 1e-9
"""|dlnL/dlnN| below which a curve is flat: the fit's exponent is then at its bound of zero."""
LARGEST = 500.0


@dataclass(frozen=True)
class Effect:
    """A difference of log loss at equal size and what it is worth in parameters.

    Args:
        delta: mean loss less that of the comparison at equal size, nats; positive is worse.
        error: its standard error, nats; None where no noise is measured and the curve leaves no degree of freedom.
        df: degrees of freedom of the error.
        log_equivalent: ln of the parameter-equivalent; None where the curve is flat, so that no number of parameters has such an effect.
        log_equivalent_error: its standard error (delta method, with the slope's own).
    """

    delta: float
    error: float | None
    df: float
    log_equivalent: float | None
    log_equivalent_error: float | None

    def to_dict(self, decided: bool) -> dict[str, Any]:
        """JSON form with interval, p and verdict; a verdict needs a measured noise floor."""
        block: dict[str, Any] = {"delta": self.delta, "low": None, "high": None, "p": None, "p_adjusted": None, "verdict": Verdict.NOT_TOLD}
        block |= {
            "parameter_equivalent": None if self.log_equivalent is None else _ratio(self.log_equivalent),
            "pe_low": None,
            "pe_high": None,
        }
        if self.error is None:
            return block
        t = t_quantile(self.df)
        block |= {"low": self.delta - t * self.error, "high": self.delta + t * self.error}
        if self.log_equivalent is not None and self.log_equivalent_error is not None:
            reach = t * self.log_equivalent_error
            block |= {"pe_low": _ratio(self.log_equivalent - reach), "pe_high": _ratio(self.log_equivalent + reach)}
        if decided:
            p = t_p_value(self.delta / self.error, self.df)
            block |= {"p": p, "verdict": Verdict.WITHIN_NOISE if p > 0.05 else Verdict.DIFFER}
        return block


def _ratio(log_ratio: float) -> float:
    """exp, short of overflow: where the curve is almost flat a small effect is worth more parameters than can be counted."""
    return math.exp(min(max(log_ratio, -LARGEST), LARGEST))


def reference_curve(sweep_fits: Sequence[Fitted]) -> Fitted | None:
    """The sweep fit that others are compared with: most sizes, then the widest range."""
    usable = [f for f in sweep_fits if sizes(f.cells, f.column) >= 3]
    return max(usable, key=lambda f: (sizes(f.cells, f.column), float(np.ptp(np.log(f.cells.columns[f.column])))), default=None)


def contrasts(cells: Configurations, sweep_fits: Sequence[Fitted], sweeps: Sequence[Sweep], noise: Noise | Refusal) -> list[dict[str, Any]]:
    """All contrasts at equal size: configurations against the reference curve, ends of sweeps of constant size, matched groups."""
    curve = reference_curve(sweep_fits)
    if curve is None:
        return []
    column = curve.column
    rows = [_against_curve(cells, i, curve, noise) for i in _off_curve(cells, curve)]
    seen: set[tuple[int, int]] = set()
    for sweep in sweeps:
        pair = _constant_size_ends(cells, sweep, column)
        if pair:
            seen.add(pair)
            rows.append(_pair(cells, pair, curve, noise, sweep))
    rows += [_pair(cells, pair, curve, noise, None) for pair in matched_pairs(cells, column) if pair not in seen]
    return adjusted(rows)


def adjusted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The contrasts with `p_adjusted` (Holm 1979, over all contrasts that have a p).

    Of many comparisons some pass 0.05 by luck; two configurations differ where they still do after the adjustment.
    """
    decided = sorted((row for row in rows if row["p"] is not None), key=lambda row: float(row["p"]))
    largest = 0.0
    for rank, row in enumerate(decided):
        largest = max(largest, min(1.0, (len(decided) - rank) * row["p"]))
        row["p_adjusted"] = largest
        row["verdict"] = Verdict.WITHIN_NOISE if largest > 0.05 else Verdict.DIFFER
    return rows


# ---- against the curve ----


def _off_curve(cells: Configurations, curve: Fitted) -> list[int]:
    """Configurations that are not on the reference sweep, within its range, at its tokens, and of a depth or width it does not hold."""
    on = {str(c) for c in curve.cells.config_id}
    known = set(zip(curve.cells.columns["n_layer"], curve.cells.columns["n_embd"], strict=True))
    size, tokens = cells.columns[curve.column], cells.columns["n_tokens"]
    low, high = curve.cells.columns[curve.column].min(), curve.cells.columns[curve.column].max()
    inside = (size >= low * (1 - SAME_SIZE)) & (size <= high * (1 + SAME_SIZE)) & np.isin(tokens, curve.cells.columns["n_tokens"])
    shapes = zip(cells.columns["n_layer"], cells.columns["n_embd"], strict=True)
    return [i for i, shape in enumerate(shapes) if inside[i] and str(cells.config_id[i]) not in on and shape not in known]


def _against_curve(cells: Configurations, i: int, curve: Fitted, noise: Noise | Refusal) -> dict[str, Any]:
    loss, size = float(cells.loss[i]), float(cells.columns[curve.column][i])
    scale = math.sqrt(loss * float(curve.result.predict(curve.at(size))[0]))  # turns differences of logs into nats to third order
    effect = effect_at(curve, size, math.log(loss), scale, [int(cells.n_seeds[i])], noise, on_curve=True)
    block = effect.to_dict(isinstance(noise, Noise))
    label = shape_label(cells, i)
    kind = {"name": f"{label} vs {curve.sweep} curve", "config_id": str(cells.config_id[i]), "kind": "curve"}
    return {**kind, **block}


def effect_at(
    curve: Fitted, size: float, log_loss: float, scale: float, n_seeds: Sequence[int], noise: Noise | Refusal, on_curve: bool
) -> Effect:
    """Effect of a log loss (or, with `on_curve` false, of a difference of log losses) at a size of the curve.

    Args:
        scale: loss in nats at which log differences are turned into nats.
        n_seeds: seeds behind each mean that enters.
        on_curve: whether the curve's value at the size is what the loss is compared with.
    """
    theta = curve.result.theta

    def reading(coordinates: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        points = curve.at(size * np.exp([-SLOPE_STEP, 0.0, SLOPE_STEP]))
        logs = curve.result.design.log_predict(coordinates, points)
        delta = log_loss - (logs[:, 1] if on_curve else 0.0)
        slope = np.maximum(np.abs(logs[:, 2] - logs[:, 0]) / (2 * SLOPE_STEP), FLAT)
        return np.broadcast_to(delta, slope.shape), -delta / slope

    delta, equivalent = (float(v[0]) for v in reading(theta[:, None]))
    slope = abs(curve.slope(size))
    worth = None if slope < FLAT else equivalent
    step = 1e-5 * np.eye(len(theta))
    (up, up_equivalent), (down, down_equivalent) = reading(theta[:, None] + step), reading(theta[:, None] - step)
    curve_variance, curve_df = mean_variance(curve, noise)
    own = _own_variance(noise, n_seeds, scale) if isinstance(noise, Noise) else (len(n_seeds) * curve_variance if curve_variance else None)
    own_df = noise.difference_df if isinstance(noise, Noise) else curve_df
    if own is None or curve_variance is None or (isinstance(noise, Refusal) and curve_df < 2):
        return Effect(delta * scale, None, 0, worth, None)
    spread = curve_variance * curve.covariance()
    by_curve = (up - down) / 2e-5
    by_curve_equivalent = (up_equivalent - down_equivalent) / 2e-5
    variance_curve = float(by_curve @ spread @ by_curve)
    total = own + variance_curve
    df = total**2 / (own**2 / own_df + variance_curve**2 / curve_df) if total > 0 else own_df
    equivalent_variance = own / max(slope, FLAT) ** 2 + float(by_curve_equivalent @ spread @ by_curve_equivalent)
    return Effect(delta * scale, math.sqrt(total) * scale, df, worth, math.sqrt(equivalent_variance))


def _own_variance(noise: Noise, n_seeds: Sequence[int], scale: float) -> float:
    """Variance of the log of means over so many seeds: their noise alone, for a shape's misfit is what is asked for."""
    return (noise.standard_error(*n_seeds) / scale) ** 2


# ---- equal sizes ----


def _constant_size_ends(cells: Configurations, sweep: Sweep, column: str) -> tuple[int, int] | None:
    """First and last level of a shape sweep in which N does not vary (heads), or None."""
    members = list(sweep.members)
    if sweep.factor not in SHAPE or len(members) < 2 or sizes(cells.take(members), column) > 1:
        return None
    return members[0], members[-1]


def matched_pairs(cells: Configurations, column: str) -> list[tuple[int, int]]:
    """Pairs of equal size (within SAME_SIZE) and tokens in groups whose aspect varies: each against the middle aspect of its group."""
    keys = np.log(cells.columns[column])
    order = np.argsort(keys, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(keys[order]) > math.log1p(SAME_SIZE)) + 1)
    pairs = []
    for group in groups:
        if len(np.unique(cells.columns["aspect"][group])) < 2 or len(np.unique(cells.columns["n_tokens"][group])) > 1:
            continue
        by_aspect = sorted((int(i) for i in group), key=lambda i: (float(cells.columns["aspect"][i]), float(cells.columns["head_dim"][i])))
        middle = by_aspect[len(by_aspect) // 2]
        pairs += [(middle, i) for i in by_aspect if i != middle]
    return pairs


def _pair(cells: Configurations, pair: tuple[int, int], curve: Fitted, noise: Noise | Refusal, sweep: Sweep | None) -> dict[str, Any]:
    first, second = pair
    size = cells.columns[curve.column]
    center = float(np.sqrt(size[first] * size[second]))
    scale = float(np.sqrt(cells.loss[first] * cells.loss[second]))
    # What the small difference in N is worth is taken off along the curve.
    expected = curve.slope(center) * math.log(size[second] / size[first])
    difference = math.log(cells.loss[second] / cells.loss[first]) - expected
    effect = effect_at(curve, center, difference, scale, [int(cells.n_seeds[i]) for i in pair], noise, on_curve=False)
    block = effect.to_dict(isinstance(noise, Noise))
    labels = [shape_label(cells, i) for i in pair]
    name = f"{labels[1]} vs {labels[0]}"
    if sweep is not None:
        few, many = (int(cells.columns[sweep.factor][i]) for i in pair)
        name = f"{many} vs {few} {NAMES[sweep.factor]}"
    kind = {"name": name, "config_id": str(cells.config_id[second]), "kind": "heads" if sweep else "matched"}
    return {**kind, **block}


# ---- names ----


def shape_label(cells: Configurations, i: int) -> str:
    """Depth x width, with the heads where the study varies them at that depth and width: 12x256, 2x64h8."""
    shape = [int(cells.columns[c][i]) for c in SHAPE]
    same = (cells.columns["n_layer"] == shape[0]) & (cells.columns["n_embd"] == shape[1])
    heads = f"h{shape[2]}" if len(np.unique(cells.columns["n_head"][same])) > 1 else ""
    return f"{shape[0]}x{shape[1]}{heads}"
