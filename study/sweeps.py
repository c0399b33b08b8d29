"""Named ways to list configurations: one factor at a time, a grid, or matched shapes of equal size.

A sweep is written as one line, `NAME:key=value,value:key=value`, the same in a YAML study and on the command line.

    parse_sweep("depth:n_layer=2,4,8").changes()   # [{'n_layer': 2}, {'n_layer': 4}, {'n_layer': 8}]
"""

import itertools
import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from study.search.settings import SearchSettings, ShapeSettings, read_settings, read_shape_settings

KINDS = ("one_factor", "grid", "matched", "search")
MATCH_TOLERANCE = 0.02
"""Largest |N - target| / target of a matched shape."""
ASPECT_SLACK = 2.0
"""A shape stands for an aspect when it is within this factor of it: small depths are whole numbers, so aspects are coarse. Half the way (in
logarithm) between aspects a factor of 4 apart, so that no shape stands for two of them."""


@dataclass(frozen=True)
class Sweep:
    """Changes to a study's centre."""

    name: str
    kind: str = "one_factor"
    """one_factor: each field alone, around the centre; grid: every combination; matched: shapes of equal size; search: the best values"""
    factors: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """values of a field of model or train, or of n_tokens (training length), tokens_per_step, tokens_per_evaluation, extra.NAME"""
    params: tuple[float, ...] = ()
    """matched: targets of params_non_embedding, met within 2 %"""
    aspects: tuple[float, ...] = ()
    """matched: small ones are deep, large ones wide"""
    head_dims: tuple[int, ...] = ()
    """matched: width of one head, so that n_head follows from n_embd"""
    search: SearchSettings | ShapeSettings | None = None
    """search: what is searched at each size; `factors` then spans the sizes"""

    def changes(self) -> list[dict[str, Any]]:
        """The configurations of this sweep as changes to the centre, in order; of matched ones those that are reachable.

        Raises:
            ValueError: nothing is.
        """
        if self.kind == "one_factor":
            return [{name: value} for name, values in self.factors.items() for value in values] or [{}]
        extra = [dict(zip(self.factors, values, strict=True)) for values in itertools.product(*self.factors.values())]
        if self.kind in ("grid", "search"):
            return extra
        reachable = [shape for *_, shape, error in self._nearest() if abs(error) <= MATCH_TOLERANCE]
        if not reachable:
            raise ValueError(
                f"sweep {self.name!r}: no shape lies within {MATCH_TOLERANCE:.0%} of params={list(self.params)} "
                f"with aspects={list(self.aspects)} and head_dims={list(self.head_dims)}; choose larger targets or smaller head_dims"
            )
        return [{**shape, **more} for shape in reachable for more in extra]

    def unreachable(self) -> list[str]:
        """Sentences naming the combinations of a matched sweep that no integer shape reaches."""
        return [
            f"{target:,.0f} parameters at aspect {aspect:g} and head_dim {head_dim}: nearest shape is {error:+.1%} off"
            for target, aspect, head_dim, _, error in self._nearest()
            if abs(error) > MATCH_TOLERANCE
        ]

    def _nearest(self) -> Iterator[tuple[float, float, int, dict[str, int], float]]:
        for target, aspect, head_dim in itertools.product(self.params, self.aspects, self.head_dims):
            shape, error = nearest_shape(target, aspect, head_dim)
            yield target, aspect, head_dim, shape, error


def nearest_shape(target: float, aspect: float, head_dim: int) -> tuple[dict[str, int], float]:
    """The integer shape whose params_non_embedding is nearest to `target` with n_embd / n_layer within a factor `ASPECT_SLACK` of `aspect`.

    N = L (12 d^2 + 2 d) + d, so every depth fixes one best width; widths are multiples of head_dim.

    Returns:
        ({n_layer, n_embd, n_head}, signed relative error); ({}, inf) where no depth has an aspect within the slack.
    """
    found: list[tuple[tuple[float, float], dict[str, int], float]] = []
    centre_depth = (target / (12 * aspect**2)) ** (1 / 3)
    for n_layer in range(max(1, math.floor(centre_depth / 2)), math.ceil(centre_depth * 2) + 2):
        width = math.sqrt(target / (12 * n_layer))
        for n_head in {max(1, math.floor(width / head_dim)), math.ceil(width / head_dim)}:
            n_embd = n_head * head_dim
            off_aspect = abs(math.log(n_embd / n_layer / aspect))
            if off_aspect <= math.log(ASPECT_SLACK) + 1e-9:
                error = (n_layer * (12 * n_embd**2 + 2 * n_embd) + n_embd) / target - 1
                # Within tolerance every size is equally good: take the aspect nearest to the one asked for.
                rank = max(abs(error), MATCH_TOLERANCE), off_aspect
                found.append((rank, {"n_layer": n_layer, "n_embd": n_embd, "n_head": n_head}, error))
    _, shape, error = min(found, key=lambda candidate: candidate[0], default=((), {}, math.inf))
    return shape, error


def parse_sweep(text: str) -> Sweep:
    """A sweep from its one-line form; ValueError, which shows one, where it has another."""
    name, *parts = text.split(":")
    example = "for example depth:n_layer=2,4,8 or shape:kind=matched:params=1e5,3e5:aspects=16,32:head_dims=16"
    if not name or any("=" not in part for part in parts):
        raise ValueError(f"sweep {text!r} is not NAME:FIELD=VALUE,VALUE; write it as {example}")
    if not _is_name(name):
        raise ValueError(f"sweep {name!r} has a name that cannot be used; give letters, digits, spaces and . , + ( ) - _, 60 at most")
    given = {key: tuple(number(v) for v in values.split(",") if v != "") for key, _, values in (part.partition("=") for part in parts)}
    kind = ",".join(map(str, given.pop("kind", ("one_factor",))))
    if kind not in KINDS:
        raise ValueError(f"sweep {name!r} has kind={kind!r}; allowed are {', '.join(KINDS)}")
    empty = [key for key, values in given.items() if not values]
    if empty or not given:
        raise ValueError(f"sweep {name!r} lists no values for {', '.join(empty) or 'any field'}; write it as {example}")
    if kind == "search":
        if "against" in given:
            return Sweep(name, kind, search=read_shape_settings(name, given))
        settings, sizes = read_settings(name, given)
        return Sweep(name, kind, sizes, search=settings)
    special = {key: given.pop(key) for key in ("params", "aspects", "head_dims") if kind == "matched" and key in given}
    if kind == "matched" and len(special) < 3:
        raise ValueError(f"sweep {name!r} is matched and needs params, aspects and head_dims; {example}")
    for key, values in special.items():
        wrong = [v for v in values if not isinstance(v, (int, float)) or not (v > 0 and math.isfinite(v)) or (key == "head_dims" and v % 1)]
        if wrong:
            kind_of = "positive whole" if key == "head_dims" else "positive"
            raise ValueError(f"sweep {name!r} has {key}={wrong[0]}; give {kind_of} numbers, {example}")
    params, aspects, head_dims = (special.get(key, ()) for key in ("params", "aspects", "head_dims"))
    return Sweep(name, kind, given, params, aspects, head_dims)


def _is_name(text: str) -> bool:
    """Whether a text is a name: it also names figures, so that no path may hide in it and no control character either."""
    kinds = [unicodedata.category(c)[0] for c in text]
    return kinds[0] in "LN" and len(text) <= 60 and all(kind in "LMN" or c in "_ .,+()-" for c, kind in zip(text, kinds, strict=True))


def number(text: str) -> Any:
    """A whole number, a decimal number or the text itself: `64`, `1e-3` and `4M` are numbers, `wsd` is not."""
    scale = {"K": 10**3, "M": 10**6, "B": 10**9}.get(text[-1:].upper() if text[:1].isdigit() else "", 1)
    body = text[:-1] if scale > 1 else text
    try:
        return int(body) * scale
    except ValueError:
        pass
    try:
        value = float(body) * scale
    except ValueError:
        return text
    return int(value) if value.is_integer() and abs(value) < 2**53 and abs(value) >= 1 else value


def format_sweep(name: str, body: dict[str, Any]) -> str:
    """The one-line form of a sweep given as a mapping (as a YAML study has it); a mapping inside is written with dots."""
    flat = {
        key if inner is None else f"{key}.{inner}": item
        for key, value in body.items()
        for inner, item in (value.items() if isinstance(value, dict) else [(None, value)])
    }
    return ":".join(
        [name, *(f"{key}={','.join(str(v) for v in (value if isinstance(value, list) else [value]))}" for key, value in flat.items())]
    )
