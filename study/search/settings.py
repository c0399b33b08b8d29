"""The settings of a sweep of kind `search`: learning rates of given sizes, or shapes under two objectives; how long, within which limits.

Pure values, read from a sweep's fields and checked once; knows nothing of studies, Ray or Optuna.

    settings, sizes = read_settings("lr", {"lr": (1e-3, 3e-2), "n_embd": (16, 32, 64), "max_trials": (8,)})
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RATES = ("lr", "weight_decay")
"""Fields of the recipe that a search over shapes may search, too."""
SHAPES = ("n_layer", "n_embd")
COSTS = ("params", "flops", "memory", "ms_per_token")
"""What a shape may be weighed against: non-embedding parameters, training FLOPs, bytes of its process, measured milliseconds per token."""
SHAPE_EXAMPLE = "arch:kind=search:against=params:n_layer=1,6:n_embd=16,96:n_head=2,4:max_trials=20"
EXAMPLE = "lr:kind=search:lr=1e-3,3e-2:n_embd=16,32,64:max_trials=8"
FEWEST_TRIALS = 3
"""An optimum has a lower and a higher neighbor: fewer trials can never bracket it."""


@dataclass(frozen=True)
class SearchSettings:
    """How the learning rate of each size is searched.

    Args:
        low, high: the range, on a logarithmic scale; it grows where the best lies at an end.
        over: sweeps of the study whose shapes are the sizes.
        max_trials: most runs of one size.
        grace: share of its steps that a run is given before it may be stopped; 1 never stops one.
        reduction: of the runs that reach this point, a new one must be among the best 1/reduction to go on.
    """

    low: float
    high: float
    over: tuple[str, ...] = ()
    max_trials: int = 10
    grace: float = 0.5
    reduction: float = 3.0


@dataclass(frozen=True)
class ShapeSettings:
    """How shapes are searched.

    Args:
        against: the second objective beside val_loss, one of `COSTS`.
        ranges: field -> (low, high).
        heads: numbers of heads to choose from; widths become multiples of them.
        limits: cost -> largest value allowed.
        max_trials: runs.
    """

    against: str
    ranges: Mapping[str, tuple[float, float]]
    heads: tuple[int, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict)
    max_trials: int = 20


def read_shape_settings(name: str, given: Mapping[str, tuple[Any, ...]]) -> ShapeSettings:
    """The settings of a search over shapes.

    Raises:
        ValueError: an unknown objective or field, an empty search space, or a range or limit that is none.
    """
    rest = dict(given)
    against = str(rest.pop("against")[0])
    if against not in COSTS:
        raise ValueError(f"sweep {name!r} has against={against}; allowed are {', '.join(COSTS)}")
    max_trials = _max_trials(name, rest, 20, "a front of two objectives")
    limits = {cost: rest.pop(f"max_{cost}") for cost in COSTS if f"max_{cost}" in rest}
    for cost, values in limits.items():
        if len(values) != 1 or not isinstance(values[0], (int, float)) or not values[0] > 0:
            raise ValueError(f"sweep {name!r}: max_{cost}={_shown(values)} should be one number above 0, for example max_params=200K")
    heads = rest.pop("n_head", ())
    if any(not isinstance(v, int) or v < 1 for v in heads):
        raise ValueError(f"sweep {name!r}: n_head={_shown(heads)} must be whole numbers to choose from, for example n_head=2,4,8")
    ranges = {key: _range(name, key, rest.pop(key)) for key in (*SHAPES, *RATES) if key in rest}
    if rest:
        raise ValueError(f"sweep {name!r} cannot search {', '.join(rest)}; over shapes it searches {', '.join((*SHAPES, 'n_head', 'lr'))}")
    if not set(ranges) & set(SHAPES):
        raise ValueError(f"sweep {name!r} has an empty search space: give a range of depth or width, for example {SHAPE_EXAMPLE}")
    return ShapeSettings(against, ranges, tuple(heads), {cost: float(value) for cost, (value,) in limits.items()}, max_trials)


def read_settings(name: str, given: Mapping[str, tuple[Any, ...]]) -> tuple[SearchSettings, dict[str, tuple[Any, ...]]]:
    """Settings, and the remaining fields with their values, whose product are the sizes.

    Raises:
        ValueError: nothing to search, a range that is none, or too few trials.
    """
    rest = dict(given)
    over = tuple(str(value) for value in rest.pop("over", ()))
    if "lr" not in rest:
        raise ValueError(f"sweep {name!r} has an empty search space: give the range of the learning rate, for example {EXAMPLE}")
    low, high = _range(name, "lr", rest.pop("lr"))
    max_trials = _max_trials(name, rest, 10, "an optimum between two worse neighbors")
    grace, reduction = _one(name, rest, "grace", 0.5), _one(name, rest, "reduction", 3.0)
    if not 0 < grace <= 1:
        raise ValueError(f"sweep {name!r} has grace={grace:g}; give a share of the steps above 0, or 1 to stop no run early")
    if not reduction > 1:
        raise ValueError(f"sweep {name!r} has reduction={reduction:g}; give a number above 1: of so many runs one goes on")
    return SearchSettings(low, high, over, max_trials, grace, reduction), rest


def _max_trials(name: str, rest: dict[str, tuple[Any, ...]], default: int, what: str) -> int:
    if (most := int(_one(name, rest, "max_trials", default, whole=True))) < FEWEST_TRIALS:
        raise ValueError(f"sweep {name!r} has max_trials={most}; {what} takes {FEWEST_TRIALS} or more")
    return most


def _range(name: str, key: str, values: tuple[Any, ...]) -> tuple[float, float]:
    if len(values) != 2 or not all(isinstance(v, (int, float)) for v in values):
        raise ValueError(f"sweep {name!r}: {key}={_shown(values)} is no range; give its low and its high end, for example lr=1e-3,3e-2")
    low, high = float(values[0]), float(values[1])
    if not (low > 0 and math.isfinite(high)):
        raise ValueError(f"sweep {name!r}: {key}={_shown(values)} must lie above 0: it is searched on a logarithmic scale")
    if low >= high:
        raise ValueError(f"sweep {name!r}: {key}={_shown(values)} is reversed or empty; give the low end first, then the high one")
    if key in SHAPES and any(v % 1 for v in (low, high)):
        raise ValueError(f"sweep {name!r}: {key}={_shown(values)} must be whole numbers")
    return low, high


def _one(name: str, rest: dict[str, tuple[Any, ...]], key: str, default: float, whole: bool = False) -> float:
    """A setting with a single number."""
    values = rest.pop(key, (default,))
    value = values[0] if len(values) == 1 else None
    if not isinstance(value, (int, float)) or not math.isfinite(value) or (whole and value % 1):
        raise ValueError(f"sweep {name!r}: {key}={_shown(values)} should be one {'whole ' if whole else ''}number, for example {default:g}")
    return float(value)


def _shown(values: tuple[Any, ...]) -> str:
    return ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
