"""What a doubling buys of depth, width, heads, parameters and text: for each training length, at the centre and at the largest models.

From contrasts between configurations that differ in the factor alone, else from the law in depth and width; each says which. A doubling
is more than a difference of two configurations, so the law's lack of fit is in its error; the steps between levels are differences and
nothing else.

    found = levers(Study(cells, noise, laws={768_000: fit_shape_law(...)}))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from analysis.estimate import PER_DOUBLING, SIZE, Code, Estimate, Refusal
from analysis.findings.contrast import Family, Pair
from analysis.findings.lines import FACTORS, Line, at_length, lines, training_lengths
from analysis.findings.size_law import gains
from analysis.fits.shape_law import ShapeFit
from analysis.table.configurations import SHAPE, Configurations, Noise

NEAR = 0.1
"""Lines this much farther from the centre than the nearest one, in doublings, are as near."""
BESIDE, FAR, LONG = 0.5, 0.75, 3.2
"""Doublings by which the middle of a wide pair and of any pair may miss where a lever is asked for, and that it may span; beyond them the
law is asked."""


@dataclass(frozen=True)
class Lever:
    """What a doubling of a factor buys.

    Args:
        factor: n_layer, n_embd, n_head, params (at the aspect of the best shape) or n_tokens.
        n_tokens: training length; of n_tokens itself the longer one of the step.
        at: "centre" or "largest".
        gain: nats per doubling, positive for lower loss.
        of_reducible: share of the loss above the floor that a doubling takes away; None where no floor is known.
        time_per_step: by which factor a doubling makes a step longer; None where steps were not timed alone, and of text.
        steps: between neighbouring levels, {"from", "to", "gain"}.
        source: "contrast" or "law".
    """

    factor: str
    n_tokens: int | None
    at: str
    gain: Estimate | Refusal
    of_reducible: float | None = None
    steps: Sequence[Mapping[str, Any]] = ()
    source: str = "contrast"
    time_per_step: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form: the row of the levers table."""
        known = self.gain if isinstance(self.gain, Estimate) else None
        return {
            "factor": self.factor,
            "n_tokens": self.n_tokens,
            "at": self.at,
            "gain_per_doubling": self.gain,
            "bits": None if known is None else known.value / math.log(2),
            "of_reducible": self.of_reducible,
            "steps": list(self.steps),
            "source": self.source,
            "verdict": str(known.verdict) if known else "refused",
            "time_per_step": self.time_per_step,
        }


@dataclass(frozen=True)
class Study:
    """What levers are read from: configurations of one recipe, the noise between seeds, the law of each length."""

    cells: Configurations
    noise: Noise | Refusal
    laws: Mapping[int, ShapeFit | Refusal] = field(default_factory=dict)

    def lengths(self) -> list[int]:
        """Training lengths, shortest first."""
        return training_lengths(self.cells)

    def shared(self) -> bool:
        """Whether several configurations share a training length, or all have one."""
        lengths = self.lengths()
        return len(lengths) == 1 or any(len(at_length(self.cells, n)) > 1 for n in lengths)

    def misfit(self, n_tokens: int) -> tuple[float, float]:
        """Relative standard deviation of configurations around the law beyond seed noise, and its degrees of freedom."""
        law = self.laws.get(n_tokens)
        if not isinstance(law, ShapeFit) or law.lack_of_fit is None:
            return 0.0, 1.0
        return law.lack_of_fit, float(max(law.n - 4, 1))

    def share(self, gain: float, loss: float, n_tokens: int) -> float | None:
        """A gain as a share of a loss above the floor: the text's own entropy, else that of the law of this length."""
        own, law = self.cells.columns["loss_floor"], self.laws.get(n_tokens)
        floor = law.E.value if isinstance(law, ShapeFit) and isinstance(law.E, Estimate) else math.inf
        floor = float(np.nanmedian(own)) if np.isfinite(own).any() else floor
        return gain / (loss - floor) if loss > floor else None


def levers(study: Study) -> list[Lever]:
    """All levers, by length and factor."""
    lengths = study.lengths()
    if not study.shared() or not np.isfinite(study.cells.columns["aspect"]).any():
        return _without_pairs(study, lengths)
    found = [lever for n in lengths for factor in FACTORS[:-1] for lever in _of_length(study, n, factor)]
    return found + _of_text(study, lengths)


def best(cells: Configurations, members: Sequence[int]) -> int:
    """Index of the configuration of lowest mean loss."""
    return min(members, key=lambda i: float(cells.loss[i]))


def _of_length(study: Study, n_tokens: int, factor: str) -> list[Lever]:
    """A factor at one length: at the centre, and at the largest models where that is another pair."""
    members = at_length(study.cells, n_tokens)
    aspect = float(study.cells.columns["aspect"][best(study.cells, members)])
    found = lines(study.cells, members, factor, aspect)
    if not found:
        rows = [_by_law(study, n_tokens, members, factor, at) for at in ("centre", "largest")]
        return rows if isinstance(rows[0].gain, Estimate) else rows[:1]
    center, place = _center(study.cells, members, factor), _place(study.cells, members, factor)
    family = Family.of(study.cells, [pair for line in found for pair in line.steps()])
    central = _central(found, place)
    at_center = [(line, pair) for line in central if (pair := line.around(center, LONG, BESIDE))]
    size = study.cells.columns[SIZE]
    largest = max(found, key=lambda line: (float(size[line.members[-1]]), len(line.members)))
    last = largest.last()
    rows = []
    if at_center:
        own = _by_contrast(study, family, at_center, central[0], factor, n_tokens, "centre")
        far = max(line.away(pair, center, place) for line, pair in at_center)
        rows.append(_surest(study, own, members, far > FAR or max(line.doublings(pair) for line, pair in at_center) > LONG))
    if last and [(largest.members, last)] != [(line.members, pair) for line, pair in at_center]:
        own = _by_contrast(study, family, [(largest, last)], largest, factor, n_tokens, "largest")
        rows.append(_surest(study, own, members, size[last[1]] < 2**-FAR * size[list(members)].max() or largest.doublings(last) > LONG))
    return rows


def _center(cells: Configurations, members: Sequence[int], factor: str) -> float:
    """Geometric mean of a factor over the configurations."""
    return float(np.exp(np.mean(np.log(cells.columns[SIZE if factor == "params" else factor][list(members)]))))


def _place(cells: Configurations, members: Sequence[int], factor: str) -> list[float]:
    """The centre, in doublings, of what lines of a factor hold."""
    held = {"n_layer": ("n_embd",), "n_embd": ("n_layer",), "params": ()}.get(factor, ("n_layer", "n_embd"))
    return [math.log2(_center(cells, members, name)) for name in held]


def _central(found: Sequence[Line], place: Sequence[float]) -> list[Line]:
    """Lines nearest to the centre, of those with most levels among equally near ones."""
    away = [math.dist(line.place[: len(place)], place) for line in found]
    near = [line for line, distance in zip(found, away, strict=True) if distance <= min(away) + NEAR]
    return [line for line in near if len(line.members) == len(near[0].members)]


def _without_pairs(study: Study, lengths: Sequence[int]) -> list[Lever]:
    """Where shapes are unknown or every configuration has a length of its own: parameters and text by the law in both, shape not at all."""
    reason = "every configuration has a training length of its own, so none can be compared; train several shapes at equal length"
    rows = [Lever(factor, None, "centre", _unknown(study.cells, factor) or Refusal(Code.UNMATCHED, reason)) for factor in SHAPE]
    by_law = {name: Lever(name, None, "centre", gain, source="law") for name, gain in gains(study.cells).items()}
    text = _of_text(study, lengths)
    known = any(isinstance(row.gain, Estimate) and row.gain.low is not None for row in text)
    return [*rows, by_law["params"], *(text if known else [by_law["n_tokens"]])]


def _unknown(cells: Configurations, factor: str) -> Refusal | None:
    """The refusal of a factor that the runs have no column of."""
    if factor == "params" or np.isfinite(cells.columns[factor]).any():
        return None
    return Refusal(Code.MISSING, f"the runs have no {factor}; give the column to learn what it does")


# ---- from contrasts ----


def _by_contrast(
    study: Study, family: Family, chosen: Sequence[tuple[Line, Pair]], shown: Line, factor: str, n_tokens: int, at: str
) -> Lever:
    pairs, per = [pair for _, pair in chosen], [line.doublings(pair) for line, pair in chosen]
    before = float(np.mean([study.cells.loss[i] for i, _ in pairs]))
    text = factor == "n_tokens"
    sd, df = (0.0, 1.0) if text else study.misfit(n_tokens)  # a shape's own misfit is in both of its lengths
    gain = replace(family.contrast(pairs, per, misfit=sd * before, df_misfit=df, wide=True), unit=PER_DOUBLING)
    levels = zip(pairwise(shown.values), shown.steps(), strict=True)
    steps = [{"from": a, "to": b, "gain": family.contrast([pair])} for (a, b), pair in levels]
    share, time = study.share(gain.value, before, n_tokens), None if text else _time(study.cells, pairs, per)
    return Lever(factor, n_tokens, at, gain, share, steps, time_per_step=time)


def _time(cells: Configurations, pairs: Sequence[Pair], per: Sequence[float]) -> float | None:
    """By which factor a doubling makes a step longer, of configurations that had their device to themselves."""
    alone = cells.columns["ms_exclusive"]
    ratios = [math.log(alone[j] / alone[i]) / doublings for (i, j), doublings in zip(pairs, per, strict=True)]
    return math.exp(float(np.mean(ratios))) if np.isfinite(ratios).all() else None


# ---- from the law ----


def _surest(study: Study, row: Lever, members: Sequence[int], beside: bool) -> Lever:
    """The law's lever where the pair lies beside what is asked for, or has no interval and the law has one (with one seed)."""
    sure = isinstance(row.gain, Estimate) and row.gain.low is not None
    if row.n_tokens is None or (sure and not beside) or row.factor == "n_head":
        return row
    law = _by_law(study, row.n_tokens, members, row.factor, row.at)
    return replace(law, steps=row.steps, time_per_step=row.time_per_step) if isinstance(law.gain, Estimate) else row


def _by_law(study: Study, n_tokens: int, members: Sequence[int], factor: str, at: str) -> Lever:
    """A lever read from the law in depth and width: at the centre, or at the largest model."""
    cells = study.cells
    heads = Refusal(Code.NO_VARIATION, "no two configurations differ in their heads alone; vary n_head at one depth and width")
    law = _unknown(cells, factor) or (heads if factor == "n_head" else study.laws[n_tokens])
    if isinstance(law, Refusal):
        return Lever(factor, n_tokens, at, law, source="law")
    largest = max(members, key=lambda i: float(cells.columns[SIZE][i]))
    depth, width = (float(cells.columns[c][largest]) if at == "largest" else _center(cells, members, c) for c in ("n_layer", "n_embd"))
    gain = law.gain(factor, depth, width)
    if isinstance(gain, Refusal):
        return Lever(factor, n_tokens, at, gain, source="law")
    share = study.share(gain.value, law.predict(depth, width), n_tokens)
    return Lever(factor, n_tokens, at, replace(gain, unit=PER_DOUBLING), share, source="law")


# ---- text ----


def _of_text(study: Study, lengths: Sequence[int]) -> list[Lever]:
    """The gain of each step in text, over the shapes that trained at both lengths: at all of them, and at the largest."""
    fresh = [i for n in lengths for i in at_length(study.cells, n)]
    found = lines(study.cells, fresh, "n_tokens") if len(lengths) > 1 else []
    if not found:
        reason = (
            f"all configurations saw {lengths[0]:,} tokens; train at several lengths"
            if len(lengths) == 1
            else "no shape trained on fresh text at two lengths with all else equal, so text and size cannot be told apart"
        )
        code = Code.FIXED_TOKENS if len(lengths) == 1 else Code.COLLINEAR
        return [Lever("n_tokens", None, "centre", Refusal(code, reason))]
    family = Family.of(study.cells, [pair for line in found for pair in line.steps()])
    rows = []
    for n in lengths[1:]:
        ending = [(line, pair) for line in found for pair in line.steps() if study.cells.columns["n_tokens"][pair[1]] == n]
        if ending:
            largest = max(ending, key=lambda chosen: float(study.cells.columns[SIZE][chosen[1][1]]))
            rows.append(_by_contrast(study, family, ending, ending[0][0], "n_tokens", n, "centre"))
            if len(ending) > 1:
                rows.append(_by_contrast(study, family, [largest], largest[0], "n_tokens", n, "largest"))
    return rows
