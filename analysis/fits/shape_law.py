"""The law to infer from: what depth, width and size each buy, from configurations that differ in shape.

    L = E + A n_layer^-a n_embd^-b  =  E + A (n_layer n_embd^2)^-alpha (n_embd / n_layer)^(-kappa / 3)

with alpha = (a + b) / 3 and kappa = b - 2 a, all signed. kappa is what shape does at equal size: 0 where only the number of parameters
matters, positive where wide models are better, negative where deep ones are. The floor E stays in the law whatever AICc says: without it
intervals of few configurations cover half of what they promise.

Point and interval are one estimator: least squares of log loss on configuration means, with F-calibrated profiles.

    found = fit_shape_law(cells)
    found.kappa, found.gain("n_embd", n_layer=2, n_embd=64)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.estimate import LEVEL, NATS, SIZE, Code, Estimate, Refusal, Verdict, judged
from analysis.fits.coordinates import Array, FitError
from analysis.fits.intervals import Interval, interval_of
from analysis.fits.laws import POWER_FLOOR_ASPECT, SHAPE, SHAPE_CROSSED, Law
from analysis.fits.objective import jacobians, residuals, spared
from analysis.fits.profile_likelihood import MeansFit, fit_to
from analysis.fits.quantities import Gain, Parameter, Quantity, Sum
from analysis.table.configurations import Configurations, f_p_value, t_p_value

CURVED = POWER_FLOOR_ASPECT.on(**{SIZE: "shape_size"})
"""E + A (n_layer n_embd^2)^-alpha exp(gamma ln(aspect / aspect_opt)^2): the shape law with a best aspect."""

MAX_CORRELATION = 0.95
MIN_LEVELS = 3
MIN_DF = 4
CLEAR = 0.01
"""p below which a departure from the law is clear: two are tested, so at most 2 % of studies lose kappa for nothing."""

MIN_SPARED = 0.1
"""Share of its noise that a configuration must keep as residual to be judged by it: one that determines a parameter alone cannot."""

DOUBLINGS = {"n_layer": (1.0, 0.0), "n_embd": (0.0, 1.0), "params": (1 / 3, 1 / 3)}
"""Doublings of depth and of width that double a factor; `params` at fixed aspect."""


@dataclass(frozen=True)
class Outlier:
    """A configuration far from the law that all others follow, or a seed far from its siblings.

    Args:
        deviation: of log loss (0.1 is 10 % above).
        p: two-sided, times the number that were looked at.
    """

    kind: str
    config_id: str
    seed: int | None
    deviation: float
    p: float

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return dict(vars(self))


@dataclass(frozen=True)
class ShapeFit:
    """The fitted shape law of one training length; losses in nats.

    Args:
        law: what gains and predictions follow: the plain law, or the one of the clearest departure.
        a, b: exponents of depth and width (local ones at the centre where an interaction is clear, those of the plain law where a curvature
            is clear but no best aspect lies inside the data).
        optimum: best aspect (n_embd / n_layer) where a curvature is clear.
        residual_sd: relative scatter of configuration means around the law.
        lack_of_fit: the part of that scatter that seeds do not explain; None with one seed each.
        reference: geometric means of depth and width, where A holds.
    """

    law: Law
    E: Estimate | Refusal
    A: float
    alpha: Estimate | Refusal
    kappa: Estimate | Refusal
    a: Estimate | Refusal
    b: Estimate | Refusal
    optimum: Estimate | Refusal | None
    residual_sd: float
    lack_of_fit: float | None
    outliers: tuple[Outlier, ...]
    reference: dict[str, float]
    n: int
    means: MeansFit = field(repr=False, compare=False)

    def predict(self, n_layer: float, n_embd: float) -> float:
        """The law's loss of a shape."""
        return float(np.exp(self.means.design.log_predict(self.means.theta, {"n_layer": n_layer, "n_embd": n_embd})[0, 0]))

    def gain(self, factor: str, n_layer: float, n_embd: float) -> Estimate | Refusal:
        """What a doubling of a factor buys at a shape, in nats (positive: lower loss): from half a doubling below it to half above.

        Args:
            factor: n_layer, n_embd, or params (at fixed aspect).
        """
        deeper, wider = DOUBLINGS[factor]
        below, above = ({"n_layer": n_layer * 2 ** (side * deeper / 2), "n_embd": n_embd * 2 ** (side * wider / 2)} for side in (-1, 1))
        return estimated(interval_of(self.means, Gain(at=above, other=below)), NATS, told=True)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        estimates = {name: getattr(self, name) for name in ("E", "alpha", "kappa", "a", "b", "optimum")}
        return {
            "equation": self.law.equation,
            "source": self.law.source,
            "reference": self.reference,
            "A": self.A,
            **{name: value and value.to_dict() for name, value in estimates.items()},
            "residual_sd": self.residual_sd,
            "outliers": [outlier.to_dict() for outlier in self.outliers],
            "n_configurations": self.n,
        }


def fit_shape_law(cells: Configurations) -> ShapeFit | Refusal:
    """Fit the shape law to the configurations of one training length, or say why they do not determine it."""
    refused = _refused(cells)
    if refused:
        return refused
    try:
        plain, curved, crossed = (fit_to(law, cells) for law in (SHAPE, CURVED, SHAPE_CROSSED))
    except FitError as error:
        return Refusal(Code.TOO_FEW_DF, str(error))
    if not plain.converged.all():
        return Refusal(Code.NOT_CONVERGED, "the law in depth and width has no optimum in these data; add shapes")
    curvature, interaction = departure(plain, curved), departure(plain, crossed)
    clearest = min(curvature, interaction)
    used = plain if clearest >= CLEAR else curved if curvature == clearest else crossed
    optimum = _optimum(curved, cells) if used is curved else None
    withheld = None if used is plain else _withheld(used is curved, clearest)
    # A best aspect says more than exponents, which change their sides there.
    a, b = (
        (withheld if isinstance(optimum, Estimate) else None)
        or estimated(interval_of(plain if used is curved else used, Parameter(name)), "")
        for name in "ab"
    )
    alpha: Quantity = Parameter("alpha") if used is curved else Sum({"a": 1 / 3, "b": 1 / 3})
    return ShapeFit(
        law=used.design.law,
        E=_floor(used),
        A=float(used.design.to_params(used.theta)["A"][0]),
        alpha=estimated(interval_of(used, alpha), ""),
        kappa=withheld or estimated(interval_of(plain, Sum({"b": 1.0, "a": -2.0})), ""),
        a=a,
        b=b,
        optimum=optimum,
        residual_sd=_scatter(used),
        lack_of_fit=_lack_of_fit(used, cells),
        outliers=(*_far_configurations(used, cells), *_far_seeds(cells)),
        reference=used.design.reference,
        n=len(cells),
        means=used,
    )


# ---- guards ----


def _refused(cells: Configurations) -> Refusal | None:
    depth, width = cells.columns["n_layer"], cells.columns["n_embd"]
    unknown = [name for name in ("n_layer", "n_embd") if not np.isfinite(cells.columns[name]).any()]
    if unknown:
        return Refusal(Code.MISSING, f"the runs have no {' and no '.join(unknown)}, so nothing is said of what shape does; give the column")
    if len(cells) and len(np.unique(cells.columns["n_tokens"])) > 1:
        return Refusal(
            Code.UNMATCHED, "the configurations have several training lengths, and the shape law is of one; fit each length alone"
        )
    for name, values in (("depths", depth), ("widths", width)):
        levels = len(np.unique(values[np.isfinite(values)]))
        if levels < MIN_LEVELS:
            reason = f"the law in depth and width needs {MIN_LEVELS} {name} and there are {levels}; add {MIN_LEVELS - levels} more"
            return Refusal(Code.NO_VARIATION, reason)
    if not (np.isfinite(depth) & np.isfinite(width)).all():
        return Refusal(Code.MISSING, "some configurations have no n_layer or n_embd; give both to learn what shape does")
    if (df := len(cells) - len(SHAPE.parameters)) < MIN_DF:
        reason = f"{len(cells)} configurations leave {df} degrees of freedom for the law in depth and width; it needs {MIN_DF}"
        return Refusal(Code.TOO_FEW_DF, reason)
    correlation = float(np.corrcoef(np.log(depth), np.log(width))[0, 1])
    if abs(correlation) > MAX_CORRELATION:
        reason = (
            f"depth and width move together (correlation of logs {correlation:.2f}), so their effects cannot be told apart; vary one alone"
        )
        return Refusal(Code.COLLINEAR, reason)
    return None


# ---- fits and estimates ----


def departure(plain: MeansFit, further: MeansFit) -> float:
    """p of the F test of a law against one with a further term; below CLEAR the plain law is not the whole story."""
    less, more = (float((plain.data.weights[0] * _residuals(fitted) ** 2).sum()) for fitted in (plain, further))
    f = max(less - more, 0.0) / max(more / further.df, 1e-300)
    return f_p_value(f, 1, further.df) if further.converged.all() else 1.0


def _residuals(fitted: MeansFit) -> Array:
    return residuals(fitted.data, fitted.theta)[0]


def _scatter(fitted: MeansFit) -> float:
    return math.sqrt(float((_residuals(fitted) ** 2).sum()) / fitted.df)


def estimated(found: Interval, unit: str, told: bool = False) -> Estimate | Refusal:
    """A closed interval with its point, or why it is not reported; `told` where its sign is a verdict."""
    if found.status == "failed":
        return Refusal(Code.NOT_CONVERGED, found.reason)
    if found.status != "closed":
        ends = {end: value for end, value in (("lower", found.low), ("upper", found.high)) if np.isfinite(value)}
        return Refusal(Code.WIDE_INTERVAL, "the data leave one side of it open; add shapes, or seeds of the largest", ends)
    verdict = judged(found.low, found.high, Verdict.NOT_TOLD) if told else Verdict.NONE
    return Estimate(found.point, found.low, found.high, unit, found.n_configurations, found.method, verdict)


def _floor(fitted: MeansFit) -> Estimate | Refusal:
    found = interval_of(fitted, Parameter("E"))
    if found.status in ("open_low", "open") or found.low <= 0:
        bound = {"upper": found.high, "level": LEVEL} if np.isfinite(found.high) else None
        return Refusal(
            Code.FLOOR_REACHES_ZERO, "the interval of the irreducible loss E reaches 0: larger models are needed to see it", bound
        )
    return estimated(found, NATS)


def _withheld(is_curved: bool, p: float) -> Refusal:
    what = "the best aspect lies inside the range" if is_curved else "the exponents of depth and width move with each other"
    return Refusal(Code.NO_OPTIMUM if is_curved else Code.INTERACTION, f"one exponent for shape would mislead: {what} (p = {p:.2g})")


def _optimum(curved: MeansFit, cells: Configurations) -> Estimate | Refusal:
    found = interval_of(curved, Parameter("aspect_opt"))
    aspects = cells.columns["aspect"]
    if float(curved.design.to_params(curved.theta)["gamma"][0]) <= 0:
        return Refusal(Code.NO_OPTIMUM, "loss bends the other way in aspect: the worst shape lies inside the range, not the best")
    if not aspects.min() <= found.point <= aspects.max():
        side = "wider" if found.point > aspects.max() else "deeper"
        return Refusal(Code.EXTRAPOLATION, f"the best aspect lies beyond those that were run; train {side} models", {"beyond": side})
    return estimated(found, "n_embd / n_layer")


# ---- what departs ----


def _lack_of_fit(fitted: MeansFit, cells: Configurations) -> float | None:
    """Standard deviation of means around the law (of log loss), less what the noise between seeds explains."""
    df = int((cells.n_seeds - 1).sum())
    noise = float((cells.log_deviations() ** 2).sum()) / df if df else 0.0
    if noise <= 0:
        return None
    return math.sqrt(max(_scatter(fitted) ** 2 - noise * float(np.mean(1 / cells.n_seeds)), 0.0))


def _far_configurations(fitted: MeansFit, cells: Configurations) -> list[Outlier]:
    """Configurations whose residual is out of the ordinary against a law that the others alone determine (externally studentized)."""
    free = (fitted.theta > fitted.data.low) & (fitted.theta < fitted.data.high)
    residual, keeps = _residuals(fitted), spared(jacobians(fitted.data, fitted.theta)[:, :, free[:, 0]])[0]
    found = []
    for i in np.flatnonzero(keeps > MIN_SPARED):
        others = (float((residual**2).sum()) - residual[i] ** 2 / keeps[i]) / (fitted.df - 1)
        p = len(residual) * t_p_value(residual[i] / math.sqrt(max(others, 1e-30) * keeps[i]), fitted.df - 1)
        if p < CLEAR:
            found.append(Outlier("configuration", str(cells.config_id[i]), None, float(residual[i] / keeps[i]), float(p)))
    return found


def _far_seeds(cells: Configurations) -> list[Outlier]:
    """The seed of each configuration that is furthest from its siblings, where the noise within all others does not explain it.

    Of two siblings either may be the odd one: then the seed is None.
    """
    group, seeds, deviations = cells.cell_config, cells.n_seeds, cells.log_deviations()
    within = np.bincount(group, weights=deviations**2)
    found = []
    for own in np.flatnonzero(seeds > 1):
        m, df = int(seeds[own]), int((seeds - 1).sum() - (seeds[own] - 1))
        if df < MIN_DF:
            continue
        members = np.flatnonzero(group == own)
        far = members[np.argmax(np.abs(deviations[members]))]
        noise = (within.sum() - within[own]) / df
        deviation = float(deviations[far] * m / (m - 1))
        p = len(group) * t_p_value(deviation / math.sqrt(max(noise, 1e-30) * m / (m - 1)), df)
        if p < CLEAR:
            found.append(Outlier("seed", str(cells.config_id[own]), int(cells.cell_seed[far]) if m > 2 else None, deviation, float(p)))
    return found
