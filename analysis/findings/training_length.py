"""When does a lever begin to pay? Its gain per doubling over training length, the length from which that is more than noise, and shape.

Contrasts are made within a length and a seed, of shapes that ran all lengths. Lengths of one run share most of it, so that their errors
go together: their covariance is pooled over shapes, and no course is assumed between lengths but a straight line in ln D from one to the
next. The crossing's interval holds all lengths at which the gain is not told apart from the noise (a test inverted, as Fieller's is).

    found = over_length(cells, noise); found["courses"][0]["crossing"]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from analysis.estimate import SIZE, Code, Estimate, Refusal, Verdict, judged
from analysis.findings.lines import FACTORS, Line, at_length, lines
from analysis.fits.length_law import MIN_LENGTHS, LengthFit, fit_length_law
from analysis.table.configurations import SHAPE, Configurations, Floats, Noise, t_quantile, whole
from analysis.table.load import SAME_SIZE

GRID = 401
"""Lengths at which the gain is held against the noise, evenly in ln D."""


@dataclass(frozen=True)
class Block:
    """Losses of shapes that ran the same lengths and seeds.

    Args:
        members: index of each shape's configuration at each length, shape (shapes, lengths).
        lengths: training tokens, ascending.
        mean: over seeds, nats, shape (shapes, lengths).
        covariance: of one run's loss over lengths, without what a seed does to all shapes alike, shape (lengths, lengths).
        df: its degrees of freedom.
        n_seeds: seeds of every shape.
    """

    members: Any
    lengths: Floats
    mean: Floats
    covariance: Floats
    df: int
    n_seeds: int

    @property
    def level_df(self) -> float:
        """Degrees of freedom of the scatter pooled over lengths: what lengths of a run share counts once (Satterthwaite 1946)."""
        return self.df * float(np.trace(self.covariance) ** 2 / np.sum(self.covariance**2))

    def course(self, weights: Floats) -> Course:
        """The sum of the shapes' losses with these weights (which add up to 0), over length."""
        scatter = self.covariance * float(np.sum(weights**2)) / self.n_seeds
        return Course(np.log2(self.lengths), weights @ self.mean, scatter, self.df, self.n_seeds)


@dataclass(frozen=True)
class Course:
    """A quantity in nats over length.

    Args:
        at: log2 of the training tokens.
        value: at each length.
        covariance: of the values.
        df: its degrees of freedom.
    """

    at: Floats
    value: Floats
    covariance: Floats
    df: int
    n: int

    def estimate(self, weights: Floats, unit: str) -> Estimate:
        """A weighted sum of the values with its t interval."""
        value = float(weights @ self.value)
        half = t_quantile(self.df) * math.sqrt(float(weights @ self.covariance @ weights))
        verdict = judged(value - half, value + half, Verdict.NOT_TOLD)
        return Estimate(value, value - half, value + half, unit, self.n, "contrast within seeds", verdict)

    def each(self, unit: str) -> list[Estimate]:
        """The value at each length."""
        return [self.estimate(own, unit) for own in np.eye(len(self.at))]

    def slope(self, unit: str) -> Estimate:
        """Change per doubling of text, by least squares over the lengths."""
        centered = self.at - self.at.mean()
        return self.estimate(centered / float(np.sum(centered**2)), unit)

    def crossing(self, level: float, level_df: float) -> Estimate | Refusal:
        """The length from which the value is above a level that was estimated from a standard deviation with `level_df` degrees of freedom.

        Returns:
            tokens; an end of the interval that lies outside of the lengths is None. Refused where all lengths lie on one side.
        """
        x = np.linspace(self.at[0], self.at[-1], GRID)
        mix = np.stack([np.interp(x, self.at, own) for own in np.eye(len(self.at))], axis=1)  # (GRID, lengths)
        above = mix @ self.value - level
        error = np.sqrt(np.einsum("gi,ij,gj->g", mix, self.covariance, mix) + level**2 / (2 * level_df))
        unclear = np.flatnonzero(np.abs(above) <= t_quantile(self.df) * error)
        rises = np.flatnonzero((above[:-1] < 0) & (above[1:] >= 0))
        if not len(rises):
            return self._one_sided(float(above[0]), bool(len(unclear)))
        point = 2 ** float(x[rises[-1]])
        unclear = np.union1d(unclear, rises[-1])  # an interval narrower than the grid
        low = None if unclear[0] == 0 else 2 ** float(x[unclear[0]])
        high = None if unclear[-1] == GRID - 1 else 2 ** float(x[unclear[-1]])
        return Estimate(point, low, high, "tokens", self.n, "inverted test, linear in ln D between lengths")

    def _one_sided(self, first: float, unclear: bool) -> Refusal:
        ends = [f"{2**x:,.0f}" for x in (self.at[0], self.at[-1])]
        sure = "" if unclear else ", clearly"
        if first >= 0:
            reason = f"it is larger than the noise at every length from {ends[0]} tokens on{sure}; train shorter to see where that begins"
            return Refusal(Code.EXTRAPOLATION, reason, {"upper": 2 ** float(self.at[0])})
        reason = f"it is larger than the noise at no length up to {ends[1]} tokens{sure}; train longer to see where that begins"
        return Refusal(Code.EXTRAPOLATION, reason, {"lower": 2 ** float(self.at[-1])})


def over_length(cells: Configurations, noise: Noise | Refusal) -> dict[str, Any]:
    """Courses of every lever with their crossings, and the best shape of each size at each length; lengths that repeat their text go."""
    block = block_of(cells)
    if isinstance(block, Refusal):
        return block.to_dict()
    courses = [own for factor in FACTORS[:-2] if (own := _lever(cells, block, factor, noise))]
    return {
        "lengths": [int(n) for n in block.lengths],
        "n_shapes": len(block.mean),
        "n_seeds": block.n_seeds,
        "courses": courses,
        "best_shapes": [row for group in _equal_sizes(cells, block) for row in _best_shapes(cells, block, group)],
    }


# ---- longer than was trained ----


@dataclass(frozen=True)
class Longer:
    """The law of length, and the configurations of each of its shapes, shortest length first."""

    law: LengthFit
    members: tuple[tuple[int, ...], ...]

    def find(self, cells: Configurations, shape: Sequence[float]) -> int | None:
        """The first of the law's shapes that has this depth, width and number of heads."""
        own = (shape_id for shape_id, members in enumerate(self.members) if _shape_at(cells, members[0]) == tuple(shape))
        return next(own, None)

    def to_dict(self, cells: Configurations) -> dict[str, Any]:
        """The law, and what each shape would reach on twice its longest text."""
        rows = []
        for shape, members in enumerate(self.members):
            n_tokens = 2 * int(self.law.longest[shape])
            there, here = self.law.predict(shape, n_tokens), float(cells.loss[members[-1]])
            place = {**_shape(cells, members[-1]), "config_id": str(cells.config_id[members[-1]])}
            rows.append({**place, "n_tokens": n_tokens, "observed": here, "forecast": there.to_dict(), "gain": here - there.value})
        return self.law.to_dict() | {"twice": rows}


def longer(cells: Configurations) -> Longer | Refusal:
    """The law of length of the shapes that were trained at three lengths or more, each within one epoch of its text."""
    found = [line for line in _over_text(cells) if len(line.members) >= MIN_LENGTHS]
    tokens = sorted({n for line in found for n in line.values})
    loss = np.full((len(found), len(tokens)), np.nan)
    for row, line in zip(loss, found, strict=True):
        row[[tokens.index(n) for n in line.values]] = cells.loss[list(line.members)]
    floors = cells.columns["loss_floor"][np.isfinite(cells.columns["loss_floor"])]
    law = fit_length_law(np.array(tokens), loss, float(floors.min()) if len(floors) else 0.0)
    return law if isinstance(law, Refusal) else Longer(law, tuple(line.members for line in found))


# ---- the block ----


def _over_text(cells: Configurations) -> list[Line]:
    """Lines of shapes that were trained at several lengths, each within one epoch of its text."""
    fresh = [i for n in np.unique(cells.columns["n_tokens"]) for i in at_length(cells, n) if _epochs(cells, i) <= 1]
    return lines(cells, fresh, "n_tokens") if fresh else []


def block_of(cells: Configurations) -> Block | Refusal:
    """Shapes that ran every common length on fresh text, and every seed."""
    found = _over_text(cells)
    if not found:
        return Refusal(Code.FIXED_TOKENS, "no shape was trained at two lengths within one epoch of its text; train several lengths of each")
    most = max(len(line.members) for line in found)
    whole = [line for line in found if 2 * len(line.members) > most]
    common = set.intersection(*(set(line.values) for line in whole))
    of = {n: set.intersection(*(_seeds(cells, line.members[line.values.index(n)]) for line in whole)) for n in common}
    shared = sorted(n for n in common if len(of[n]) > 1)  # a length that is under way waits for its seeds
    members = np.array([[line.members[line.values.index(n)] for n in shared] for line in whole])
    seeds = set.intersection(*(of[n] for n in shared)) if len(shared) > 1 else set()
    if len(seeds) < 2 or len(members) < 2:
        reason = (
            "no two shapes share two lengths and two seeds, so that what a length changes is not told from luck; add a seed or a length"
        )
        return Refusal(Code.ONE_SEED, reason)
    lookup = {(int(c), int(s)): float(v) for c, s, v in zip(cells.cell_config, cells.cell_seed, cells.cell_loss, strict=True)}
    losses = np.array([[[lookup[int(i), int(s)] for i in row] for s in sorted(seeds)] for row in members])  # (shapes, seeds, lengths)
    residual = losses - losses.mean(1, keepdims=True) - losses.mean(0, keepdims=True) + losses.mean((0, 1), keepdims=True)
    df = (losses.shape[0] - 1) * (losses.shape[1] - 1)
    covariance = np.einsum("csi,csj->ij", residual, residual) / df
    return Block(members, np.array(shared), losses.mean(1), covariance, df, losses.shape[1])


def _seeds(cells: Configurations, i: int) -> set[int]:
    return {int(seed) for seed in cells.cell_seed[cells.cell_config == i]}


def _epochs(cells: Configurations, i: int) -> float:
    """How often a configuration saw its text; 1 where the rows do not say."""
    unique = float(cells.columns["unique_tokens"][i])
    return float(cells.columns["n_tokens"][i]) / unique if unique > 0 else 1.0


# ---- levers ----


def _lever(cells: Configurations, block: Block, factor: str, noise: Noise | Refusal) -> dict[str, Any] | None:
    """The course of a factor's gain per doubling, averaged over all steps of its lines; None where nothing differs in it alone."""
    place = {int(i): shape for shape, i in enumerate(block.members[:, 0])}
    weights = np.zeros(len(block.mean))
    steps = [(line, pair) for line in lines(cells, list(place), factor) for pair in line.steps()]
    for line, (i, j) in steps:
        share = 1 / line.doublings((i, j)) / len(steps)
        weights[place[i]] += share
        weights[place[j]] -= share
    if not steps:
        return None
    course = block.course(weights)
    crossing = noise if isinstance(noise, Refusal) else course.crossing(noise.detectable, block.level_df)
    gains = course.each("nats per doubling")
    return {
        "factor": factor,
        "n_steps": len(steps),
        "gains": [{"n_tokens": int(n), "gain": gain.to_dict()} for n, gain in zip(block.lengths, gains, strict=True)],
        "per_doubling_of_text": course.slope("nats per doubling, per doubling of text").to_dict(),
        "crossing": crossing.to_dict(),
    }


# ---- shape ----


def _equal_sizes(cells: Configurations, block: Block) -> list[list[int]]:
    """Shapes (places in the block) of equal size but different aspect, widest first; sizes ascending."""
    sizes, aspect = cells.columns[SIZE][block.members[:, 0]], cells.columns["aspect"][block.members[:, 0]]
    order = [int(i) for i in np.argsort(sizes, kind="stable")]
    groups: list[list[int]] = [order[:1]]
    for before, now in pairwise(order):
        if sizes[now] <= sizes[before] * (1 + SAME_SIZE):
            groups[-1].append(now)
        else:
            groups.append([now])
    chosen = [sorted(group, key=lambda i: -aspect[i]) for group in groups]
    return [group for group in chosen if aspect[group[0]] > 1.2 * aspect[group[-1]]]


def _best_shapes(cells: Configurations, block: Block, group: Sequence[int]) -> list[dict[str, Any]]:
    """At each length the shape of lowest loss among those of one size, and by how much it leads the next."""
    rows = []
    for at, n in enumerate(block.lengths):
        first, second = sorted(group, key=lambda i: float(block.mean[i, at]))[:2]
        weights = np.zeros(len(block.mean))
        weights[second], weights[first] = 1.0, -1.0
        lead = block.course(weights).each("nats/token")[at]
        shapes = {name: _shape(cells, int(block.members[i, at])) for name, i in (("best", first), ("next", second))}
        rows.append({"n_tokens": int(n), **shapes, "lead": lead.to_dict()})
    return rows


def _shape_at(cells: Configurations, i: int) -> tuple[float, ...]:
    return tuple(float(cells.columns[name][i]) for name in SHAPE)


def _shape(cells: Configurations, i: int) -> Mapping[str, int | None]:
    return {name: whole(cells.columns[name][i]) for name in ("n_layer", "n_embd", "n_head", SIZE)}
