"""Lines of configurations that differ in one thing only: what contrasts between levels of a factor are made from.

A line of depth holds width and heads, one of width holds depth and heads (or head width, where heads follow the width by rule), one of
heads holds depth and width, one of parameters holds the aspect of the best shape, one of text holds the shape. The learning rate may follow
the shape by rule, never the text.

    found = lines(cells, at_length(cells, 768_000), "n_layer"); found[0].steps()     # pairs of configurations
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from analysis.estimate import SIZE
from analysis.findings.contrast import Pair
from analysis.findings.sweeps import filled, grouped
from analysis.table.configurations import SHAPE, Configurations

FACTORS = (*SHAPE, "params", "n_tokens")
HELD: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "n_layer": (("n_embd", "n_head"),),
    "n_embd": (("n_layer", "n_head"), ("n_layer", "head_dim")),
    "n_head": (("n_layer", "n_embd"),),
    "params": (("n_head",), ("head_dim",)),
    "n_tokens": ((SIZE, *SHAPE, "lr"),),
}
"""What lines of a factor hold beside the recipe, each in one way or another."""
RECIPE = ("batch_size", "weight_decay", "dropout", "block_size", "unique_tokens")
SAME_ASPECT = 1.15
"""Aspects within this factor are one: whole layers and heads allow no better."""
LENGTHS = 12
"""Training lengths that are all looked at."""
FEWEST_DOUBLINGS = 0.4
"""Steps shorter than this part of a doubling are passed over: their noise would be blown up to a whole one."""


@dataclass(frozen=True)
class Line:
    """Configurations along one factor, by its value.

    Args:
        values: of the factor, rising.
        members: indices of the configurations.
        place: log2 of what is held, depth and width first.
    """

    values: tuple[float, ...]
    members: tuple[int, ...]
    place: tuple[float, ...]

    def steps(self) -> list[Pair]:
        """Neighbours along the line."""
        return list(pairwise(self.members))

    def doublings(self, pair: Pair) -> float:
        """Doublings of the factor between two members."""
        first, second = (self.values[self.members.index(i)] for i in pair)
        return math.log2(second / first)

    def middle(self, pair: Pair) -> float:
        """log2 of the factor half the way between two members."""
        return math.log2(math.prod(self.values[self.members.index(i)] for i in pair)) / 2

    def away(self, pair: Pair, center: float, place: Sequence[float]) -> float:
        """Doublings from the middle of a pair to a value of the factor and a place of what is held, whichever is more."""
        return max(abs(self.middle(pair) - math.log2(center)), math.dist(self.place[: len(place)], place))

    def apart(self) -> list[Pair]:
        """Pairs of levels that are more than a part of a doubling apart."""
        return [pair for pair in combinations(self.members, 2) if self.doublings(pair) >= FEWEST_DOUBLINGS]

    def around(self, center: float, longest: float, beside: float) -> Pair | None:
        """The widest pair within some doublings whose middle lies near a value: more levels apart, less noise.

        Else the two levels whose middle lies nearest; of those that lie equally near, those nearest to one doubling apart.
        """
        pairs = self.apart()
        near = [pair for pair in pairs if self.doublings(pair) <= longest and self.away(pair, center, self.place) <= beside]
        if near:
            return max(near, key=self.doublings)

        def rank(pair: Pair) -> tuple[float, float]:
            return round(4 * abs(self.middle(pair) - math.log2(center))), abs(self.doublings(pair) - 1)

        return min(pairs, key=rank, default=None)

    def last(self) -> Pair | None:
        """The step to the last level that is nearest to one doubling."""
        ends = [pair for pair in self.apart() if pair[1] == self.members[-1]]
        return min(ends, key=lambda pair: abs(self.doublings(pair) - 1), default=None)


def training_lengths(cells: Configurations) -> list[int]:
    """Training lengths, shortest first; of very many (checkpoints, say) the longest, half of it and so on."""
    found = sorted(int(n) for n in np.unique(cells.columns["n_tokens"]))
    kept = found[-1:]
    for n in reversed(found):
        kept = [n, *kept] if n <= kept[0] / 2 else kept
    return found if len(found) <= LENGTHS else kept


def at_length(cells: Configurations, n_tokens: float) -> list[int]:
    """Configurations of one training length on the freshest text: repeated text is told apart."""
    own = np.flatnonzero(cells.columns["n_tokens"] == n_tokens)
    unique = np.nan_to_num(cells.columns["unique_tokens"][own], nan=-1.0)
    return [int(i) for i in own[unique == unique.max()]] if len(own) else []


def without_head_sweep(cells: Configurations, members: Sequence[int]) -> list[int]:
    """Configurations for a law of depth and width: of a few shapes that vary their heads, those with the heads of the other shapes only.

    Where most shapes vary their heads (`matched`), all stay: what heads do is then part of the law's scatter.
    """
    shapes = list(grouped(members, [cells.columns[name] for name in ("n_layer", "n_embd")]).values())
    varied = [own for own in shapes if len(own) > 1]
    if 2 * len(varied) > len(shapes):
        return list(members)
    single = [own[0] for own in shapes if len(own) == 1]
    usual = [(cells.columns[name], set(cells.columns[name][single].tolist())) for name in ("n_head", "head_dim")]
    beside = {i for own in varied for i in own if not any(values[i] in known for values, known in usual)}
    return [i for i in members if i not in beside]


def lines(cells: Configurations, members: Sequence[int], factor: str, aspect: float = math.nan) -> list[Line]:
    """Lines of a factor among some configurations, those with most levels first; each has two levels or more.

    Args:
        aspect: width over depth of the best shape, which a line of parameters holds.
    """
    by_size = factor == "params"
    values = cells.columns[SIZE if by_size else factor]
    if not np.isfinite(values[list(members)]).all():
        return []
    if by_size:
        members = [i for i in members if abs(math.log(cells.columns["aspect"][i] / aspect)) <= math.log(SAME_ASPECT)]
    recipe = RECIPE[:-1] if factor == "n_tokens" else RECIPE  # longer training on fresh text needs more of it
    found = []
    for held in HELD[factor]:
        groups = grouped(members, [filled(cells, name) for name in (*held, *recipe)])
        for own in groups.values() if by_size else (groups[key] for key in sorted(groups)):
            place = [] if by_size else [float(cells.columns[name][own[0]]) for name in held if name != "lr"]
            at = {float(values[i]): i for i in reversed(own)}  # the first member at each value
            if len(at) > 1:
                found.append(Line(tuple(sorted(at)), tuple(at[v] for v in sorted(at)), tuple(math.log2(v) for v in place if v > 0)))
    unique = {frozenset(line.members): line for line in reversed(found)}
    return sorted(unique.values(), key=lambda line: (-len(line.members), line.place))
