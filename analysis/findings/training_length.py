"""When does a lever begin to pay? Its gain per doubling over training length, the length from which that is more than noise, and shape.

Contrasts are made within a length and a seed, of shapes that ran all lengths. Lengths of one run share most of it, so that their errors
go together: their covariance is pooled over shapes, and no course is assumed between lengths but a straight line in ln D from one to the
next. The crossing's interval holds all lengths at which the gain is not told apart from the noise (a test inverted, as Fieller's is).

    found = over_length(cells, noise); found["courses"][0]["crossing"]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.estimate import SIZE, Code, Estimate, Refusal, Verdict, judged
from analysis.findings.lines import FACTORS, Line, at_length, lines
from analysis.findings.sweeps import by_seed, shape_of
from analysis.fits.length_law import MIN_LENGTHS, LengthFit, fit_length_law
from analysis.table.configurations import SHAPE, Configurations, Floats, Noise, t_quantile
from analysis.table.load import size_labels

GRID = 401
"""Lengths at which the gain is held against the noise, evenly in ln D."""


@dataclass(frozen=True)
class Block:
    """Losses of shapes that ran the same lengths and seeds.

    What is asked of it is a sum of the shapes' losses with weights that add up to 0 (shapes,), at each length or over weighted ones.

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

    def scatter(self, shapes: Floats) -> Floats:
        """Covariance of the sum over lengths."""
        return self.covariance * float(np.sum(shapes**2)) / self.n_seeds

    def estimate(self, shapes: Floats, lengths: Floats, unit: str) -> Estimate:
        """The sum over weighted lengths (lengths,) with its t interval."""
        value = float(lengths @ (shapes @ self.mean))
        half = t_quantile(self.df) * math.sqrt(float(lengths @ self.scatter(shapes) @ lengths))
        verdict = judged(value - half, value + half, Verdict.NOT_TOLD)
        return Estimate(value, value - half, value + half, unit, self.n_seeds, "contrast within seeds", verdict)

    def slope(self, shapes: Floats, unit: str) -> Estimate:
        """Change per doubling of text, by least squares over the lengths."""
        centered = np.log2(self.lengths) - np.log2(self.lengths).mean()
        return self.estimate(shapes, centered / float(np.sum(centered**2)), unit)

    def crossing(self, shapes: Floats, level: float) -> Estimate | Refusal:
        """The length from which the sum is above a level that was estimated from the same scatter.

        Returns:
            tokens; an end of the interval that lies outside of the lengths is None. Refused where all lengths lie on one side.
        """
        # lengths of a run share scatter, which counts once in the level's degrees of freedom (Satterthwaite 1946)
        level_df = self.df * float(np.trace(self.covariance) ** 2 / np.sum(self.covariance**2))
        at = np.log2(self.lengths)
        x = np.linspace(at[0], at[-1], GRID)
        mix = np.stack([np.interp(x, at, own) for own in np.eye(len(at))], axis=1)  # (GRID, lengths)
        above = mix @ (shapes @ self.mean) - level
        error = np.sqrt(np.einsum("gi,ij,gj->g", mix, self.scatter(shapes), mix) + level**2 / (2 * level_df))
        unclear = np.flatnonzero(np.abs(above) <= t_quantile(self.df) * error)
        rises = np.flatnonzero((above[:-1] < 0) & (above[1:] >= 0))
        if not len(rises):
            return self._one_sided(bool(above[0] >= 0), "" if len(unclear) else ", clearly")
        unclear = np.union1d(unclear, rises[-1])  # an interval narrower than the grid
        low = None if unclear[0] == 0 else 2 ** float(x[unclear[0]])
        high = None if unclear[-1] == GRID - 1 else 2 ** float(x[unclear[-1]])
        return Estimate(2 ** float(x[rises[-1]]), low, high, "tokens", self.n_seeds, "inverted test, linear in ln D between lengths")

    def _one_sided(self, above: bool, sure: str) -> Refusal:
        first, last = (2 ** float(np.log2(n)) for n in (self.lengths[0], self.lengths[-1]))
        if above:
            reason = (
                f"it is larger than the noise at every length from {first:,.0f} tokens on{sure}; train shorter to see where that begins"
            )
            return Refusal(Code.EXTRAPOLATION, reason, {"upper": first})
        reason = f"it is larger than the noise at no length up to {last:,.0f} tokens{sure}; train longer to see where that begins"
        return Refusal(Code.EXTRAPOLATION, reason, {"lower": last})


def over_length(cells: Configurations, noise: Noise | Refusal) -> dict[str, Any] | Refusal:
    """Courses of every lever with their crossings, and the best shape of each size at each length; lengths that repeat their text go."""
    block = block_of(cells)
    if isinstance(block, Refusal):
        return block
    return {
        "lengths": [int(n) for n in block.lengths],
        "n_shapes": len(block.mean),
        "n_seeds": block.n_seeds,
        "courses": [own for factor in FACTORS[:-2] if (own := _lever(cells, block, factor, noise))],
        "best_shapes": [row for group in _equal_sizes(cells, block) for row in _best_shapes(cells, block, group)],
    }


# ---- longer than was trained ----


@dataclass(frozen=True)
class Longer:
    """The law of length, and the configurations of each of its shapes, shortest length first."""

    law: LengthFit
    cells: Configurations
    members: tuple[tuple[int, ...], ...]

    def find(self, shape: Sequence[float]) -> int | None:
        """The first of the law's shapes that has this depth, width and number of heads."""
        first = [own[0] for own in self.members]
        shapes = list(zip(*(self.cells.columns[name][first].tolist() for name in SHAPE), strict=True))
        return shapes.index(tuple(shape)) if tuple(shape) in shapes else None

    def to_dict(self) -> dict[str, Any]:
        """The law, and what each shape would reach on twice its longest text."""
        rows = []
        for shape, members in enumerate(self.members):
            i, n_tokens = members[-1], 2 * int(self.law.longest[shape])
            there, here = self.law.predict(shape, n_tokens), float(self.cells.loss[i])
            own = {"config_id": str(self.cells.config_id[i]), "n_tokens": n_tokens, "observed": here}
            rows.append(shape_of(self.cells, i) | own | {"forecast": there, "gain": here - there.value})
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
    return law if isinstance(law, Refusal) else Longer(law, cells, tuple(line.members for line in found))


# ---- the block ----


def _over_text(cells: Configurations) -> list[Line]:
    """Lines of shapes that were trained at several lengths, each within one epoch of its text."""
    n_tokens, unique = cells.columns["n_tokens"], cells.columns["unique_tokens"]
    repeated = (unique > 0) & (n_tokens > unique)
    return lines(cells, [i for n in np.unique(n_tokens) for i in at_length(cells, n) if not repeated[i]], "n_tokens")


def block_of(cells: Configurations) -> Block | Refusal:
    """Shapes that ran every common length on fresh text, and every seed."""
    found = _over_text(cells)
    if not found:
        return Refusal(Code.FIXED_TOKENS, "no shape was trained at two lengths within one epoch of its text; train several lengths of each")
    most = max(len(line.members) for line in found)
    at = [dict(zip(line.values, line.members, strict=True)) for line in found if 2 * len(line.members) > most]
    by_config = by_seed(cells)
    ran = {n: np.isfinite(by_config[[own[n] for own in at]]).all(axis=0) for n in set.intersection(*map(set, at))}
    shared = sorted(n for n, seeds in ran.items() if seeds.sum() > 1)  # a length that is under way waits for its seeds
    seeds = np.all([ran[n] for n in shared], axis=0)
    if len(shared) < 2 or seeds.sum() < 2 or len(at) < 2:
        reason = (
            "no two shapes share two lengths and two seeds, so that what a length changes is not told from luck; add a seed or a length"
        )
        return Refusal(Code.ONE_SEED, reason)
    members = np.array([[own[n] for n in shared] for own in at])
    losses = np.ascontiguousarray(by_config[members][:, :, seeds].transpose(0, 2, 1))  # (shapes, seeds, lengths)
    residual = losses - losses.mean(1, keepdims=True) - losses.mean(0, keepdims=True) + losses.mean((0, 1), keepdims=True)
    df = (losses.shape[0] - 1) * (losses.shape[1] - 1)
    covariance = np.einsum("csi,csj->ij", residual, residual) / df
    return Block(members, np.array(shared), losses.mean(1), covariance, df, losses.shape[1])


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
    gains = [block.estimate(weights, own, "nats per doubling") for own in np.eye(len(block.lengths))]
    return {
        "factor": factor,
        "n_steps": len(steps),
        "gains": [{"n_tokens": int(n), "gain": gain} for n, gain in zip(block.lengths, gains, strict=True)],
        "per_doubling_of_text": block.slope(weights, "nats per doubling, per doubling of text"),
        "crossing": noise if isinstance(noise, Refusal) else block.crossing(weights, noise.detectable),
    }


# ---- shape ----


def _equal_sizes(cells: Configurations, block: Block) -> list[list[int]]:
    """Shapes (places in the block) of equal size but different aspect; sizes ascending."""
    sizes, aspect = (cells.columns[name][block.members[:, 0]] for name in (SIZE, "aspect"))
    labels = size_labels(sizes)
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return [group.tolist() for group in groups if aspect[group].max() > 1.2 * aspect[group].min()]


def _best_shapes(cells: Configurations, block: Block, group: Sequence[int]) -> list[dict[str, Any]]:
    """At each length the shape of lowest loss among those of one size, and by how much it leads the next."""
    rows = []
    for at, n in enumerate(block.lengths):
        first, second = sorted(group, key=lambda i: float(block.mean[i, at]))[:2]
        shapes, lengths = np.eye(len(block.mean)), np.eye(len(block.lengths))
        lead = block.estimate(shapes[second] - shapes[first], lengths[at], "nats/token")
        named = {name: shape_of(cells, int(block.members[i, at])) for name, i in (("best", first), ("next", second))}
        rows.append({"n_tokens": int(n), **named, "lead": lead})
    return rows
