"""Lines of configurations that differ in one thing only: what contrasts between levels of a factor are made from.

A line of depth holds width and heads, one of width holds depth and heads (or head width, where heads follow the width by rule), one of
heads holds depth and width, one of parameters holds the aspect of the best shape, one of text holds the shape. The learning rate may follow
the shape by rule, never the text.

    found = lines(cells, at_length(cells, 768_000), "n_layer"); found[0].steps()     # pairs of configurations
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from analysis.estimate import SIZE
from analysis.findings.contrast import Pair
from analysis.table.configurations import SHAPE, Configurations, Floats

FACTORS = (*SHAPE, "params", "n_tokens")
HELD: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "n_layer": (("n_embd", "n_head"),),
    "n_embd": (("n_layer", "n_head"), ("n_layer", "head_dim")),
    "n_head": (("n_layer", "n_embd"),),
    "n_tokens": ((SIZE, *SHAPE, "lr"),),
}
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
    shapes: dict[tuple[float, ...], list[int]] = {}
    for i in members:
        shapes.setdefault(tuple(float(cells.columns[name][i]) for name in ("n_layer", "n_embd")), []).append(i)
    varied = [own for own in shapes.values() if len(own) > 1]
    if not varied or 2 * len(varied) > len(shapes):
        return list(members)
    single = [own[0] for own in shapes.values() if len(own) == 1]
    usual = {name: {float(cells.columns[name][i]) for i in single} for name in ("n_head", "head_dim")}
    beside = {i for own in varied for i in own if not any(cells.columns[name][i] in usual[name] for name in usual)}
    return [i for i in members if i not in beside]


def lines(cells: Configurations, members: Sequence[int], factor: str, aspect: float | None = None) -> list[Line]:
    """Lines of a factor among some configurations, those with most levels first; each has two levels or more.

    Args:
        aspect: width over depth of the best shape, which a line of parameters holds.
    """
    if factor != "params" and not np.isfinite(cells.columns[factor][list(members)]).all():
        return []
    if factor == "params":
        found = [] if aspect is None else list(_of_aspect(cells, members, aspect))
    else:
        found = [line for held in HELD[factor] for line in _holding(cells, members, factor, held)]
    unique = {frozenset(line.members): line for line in reversed(found)}
    return sorted(unique.values(), key=lambda line: (-len(line.members), line.place))


def _holding(cells: Configurations, members: Sequence[int], factor: str, held: tuple[str, ...]) -> Iterator[Line]:
    recipe = RECIPE[:-1] if factor == "n_tokens" else RECIPE  # longer training on fresh text needs more of it
    columns = [np.nan_to_num(cells.columns[c][list(members)], nan=-1.0) for c in (*held, *recipe)]
    groups = np.unique(np.stack(columns), axis=1, return_inverse=True)[1].ravel() if members else np.array([], dtype=int)
    for group in np.unique(groups):
        own = [i for i, g in zip(members, groups, strict=True) if g == group]
        place = [float(cells.columns[c][own[0]]) for c in held if c != "lr"]
        yield from _line(cells.columns[factor], own, [math.log2(v) for v in place if v > 0])


def _of_aspect(cells: Configurations, members: Sequence[int], aspect: float) -> Iterator[Line]:
    near = [i for i in members if abs(math.log(cells.columns["aspect"][i] / aspect)) <= math.log(SAME_ASPECT)]
    for heads in ("n_head", "head_dim"):
        held = {i: tuple(float(v) for v in np.nan_to_num([cells.columns[c][i] for c in (heads, *RECIPE)], nan=-1.0)) for i in near}
        for group in dict.fromkeys(held.values()):
            yield from _line(cells.columns[SIZE], [i for i in near if held[i] == group], [])


def _line(values: Floats, members: Sequence[int], place: Sequence[float]) -> Iterator[Line]:
    """One line, of the first member at each value."""
    first: dict[float, int] = {}
    for i in members:
        first.setdefault(float(values[i]), i)
    if len(first) > 1:
        ordered = sorted(first)
        yield Line(tuple(ordered), tuple(first[v] for v in ordered), tuple(place))
