"""Scaling laws: equations that predict a loss (or a step time) from columns of the results table.

A law is a floor plus a sum of terms, each an amplitude times factors of table columns::

    loss = E + sum_k A_k * prod_j factor_kj(column_j)

The same object predicts and is fitted (`analysis.fits.fit`). Amplitudes are values *at a reference* (by default the geometric
mean of each column of the data): a bare A of `A * N^-alpha` is an extrapolation to one parameter, moves by orders of magnitude with
alpha, and is never reported without its reference.

    law = POWER_FLOOR
    law.predict({"E": 0.5, "A": 0.2, "alpha": 0.4}, {"params_non_embedding": sizes}, {"params_non_embedding": 1e6})

Reads nothing, writes nothing, imports numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.estimate import SIZE

TOKENS = "n_tokens"
MAX_EXPONENT = 5.0  # beyond this a power law is a step at the smallest size: no data of this kind determine it


# ---- what multiplies an amplitude ----


@dataclass(frozen=True)
class Power:
    """exp(sign * exponent * product of ln(x / x_ref) over the columns), the exponent being fitted within [low, high].

    Of one column that is (x / x_ref) ** (sign * exponent). Of two the exponent of each moves with the logarithm of the other.
    """

    columns: tuple[str, ...]
    exponent: str
    sign: int = -1
    low: float = 0.0
    high: float = MAX_EXPONENT


@dataclass(frozen=True)
class Bowl:
    """exp(curvature * ln(x / optimum)^2): a penalty that is quadratic in ln x around a fitted optimum."""

    column: str
    curvature: str
    optimum: str

    @property
    def powers(self) -> tuple[Power, Power]:
        """The same as powers of x / x_ref, linear and quadratic in its logarithm; the first stands for the optimum."""
        names = {self.optimum: (self.column,), self.curvature: (self.column, self.column)}
        linear, quadratic = (Power(columns, name, sign=1, low=-np.inf, high=np.inf) for name, columns in names.items())
        return linear, quadratic


@dataclass(frozen=True)
class Term:
    """One amplitude, in the unit of the predicted quantity and at the reference columns, and what multiplies it.

    Args:
        proportional: columns in which the term is known to be proportional (a layer costs what a layer costs).
    """

    amplitude: str
    factors: tuple[Power, ...]
    proportional: tuple[str, ...] = ()
    bowl: Bowl | None = None

    @property
    def powers(self) -> tuple[Power, ...]:
        """Its fitted factors, those of the bowl last, in the order of their coordinates."""
        return (*self.factors, *self.bowl.powers) if self.bowl else self.factors

    @property
    def columns(self) -> tuple[str, ...]:
        """Table columns that it reads, repeated where several factors read one."""
        return (*self.proportional, *(name for power in self.powers for name in power.columns))


# ---- the law ----


@dataclass(frozen=True)
class Law:
    """A named equation over table columns.

    Args:
        name: short name for tables and fit cards (M0 ... M4, S, timing).
        equation: plain text, with the parameter names that fits report.
        source: where the form was published.
        terms: the additive terms.
        floor: name of the constant (irreducible loss, fixed overhead), or None.
    """

    name: str
    equation: str
    source: str
    terms: tuple[Term, ...]
    floor: str | None = None

    @property
    def has_floor(self) -> bool:
        """Whether the law has a constant that no column removes."""
        return self.floor is not None

    @cached_property
    def powers(self) -> dict[str, Power]:
        """Its exponents and coefficients by name, with what each is an exponent of."""
        return {power.exponent: power for term in self.terms for power in term.powers}

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names of the fitted parameters, in the order of their coordinates."""
        named = [name for term in self.terms for name in (term.amplitude, *(power.exponent for power in term.powers))]
        return (self.floor, *named) if self.floor else tuple(named)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Table columns that the law needs; `aspect` and `head_dim` are derived from the shape where absent (`column_values`)."""
        return tuple(dict.fromkeys(name for term in self.terms for name in term.columns))

    @property
    def amplitudes(self) -> tuple[str, ...]:
        """Names of the parameters that are values at the reference."""
        return tuple(term.amplitude for term in self.terms)

    def predict(self, params: Mapping[str, float], columns: Mapping[str, ArrayLike], reference: Mapping[str, float]) -> NDArray[np.float64]:
        """Predict the target (nats for losses, ms for the timing law).

        Args:
            params: a value per name of `parameters`.
            columns: positive arrays of shape (points,), one for each of `columns`.
            reference: the column values at which the amplitudes hold.

        Returns:
            Array of shape (points,).
        """
        logs = {name: np.log(column_values(columns, name) / reference[name]) for name in self.columns}
        total: NDArray[np.float64] = np.asarray(params[self.floor] if self.floor else 0.0)
        for term in self.terms:
            exponent = sum((logs[name] for name in term.proportional), start=np.zeros(()))
            for power in term.factors:
                exponent = exponent + np.asarray(power.sign * params[power.exponent] * math.prod(logs[name] for name in power.columns))
            if bowl := term.bowl:
                offset = logs[bowl.column] + np.log(reference[bowl.column] / params[bowl.optimum])
                exponent = exponent + params[bowl.curvature] * offset**2
            total = total + params[term.amplitude] * np.exp(exponent)
        return total

    def on(self, **new_columns: str) -> Law:
        """The same law with columns renamed, for example `law.on(params_non_embedding="params_total")` for another way to count N."""

        def renamed(term: Term) -> Term:
            factors = (replace(p, columns=tuple(new_columns.get(name, name) for name in p.columns)) for p in term.factors)
            return replace(term, factors=tuple(factors))

        return replace(self, terms=tuple(map(renamed, self.terms)))


def column_values(columns: Mapping[str, ArrayLike], name: str) -> NDArray[np.float64]:
    """A column as floats; `aspect` (n_embd / n_layer), `head_dim` (n_embd / n_head) and `shape_size` (n_layer n_embd^2, a twelfth of the
    blocks' weights) are computed from the shape where absent.

    Raises:
        ValueError: the column is missing, or has a value that is not positive and finite.
    """
    if name not in columns:
        known = {"aspect": ("n_embd", "n_layer"), "head_dim": ("n_embd", "n_head"), "shape_size": ("n_layer", "n_embd")}.get(name, ())
        if not known or not set(known) <= set(columns):
            raise ValueError(f"column {name!r} is missing; the columns found are {', '.join(columns) or 'none'}")
        first, second = (column_values(columns, part) for part in known)
        return first * second**2 if name == "shape_size" else first / second
    values = np.asarray(columns[name], dtype=float)
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        raise ValueError(
            f"column {name!r} holds {np.atleast_1d(values)[np.atleast_1d(bad)][0]} (in {int(bad.sum())} of {values.size} rows); "
            "a power law needs positive finite values: remove or correct those rows"
        )
    return values


# ---- the laws of the report ----

POWER = Law(
    "M0",
    "c * N^-alpha",
    "Kaplan et al. 2020, eq. 1.1",
    (Term("c", (Power((SIZE,), "alpha"),)),),
)
POWER_FLOOR = Law(
    "M1",
    "E + A * N^-alpha",
    "Henighan et al. 2020, eq. 1.1",
    (Term("A", (Power((SIZE,), "alpha"),)),),
    floor="E",
)
POWER_FLOOR_ASPECT = Law(
    "M3(M1)",
    f"{POWER_FLOOR.equation} * exp(gamma * ln(aspect/aspect_opt)^2)",
    f"{POWER_FLOOR.source}; Kaplan et al. 2020, fig. 5",
    (replace(POWER_FLOOR.terms[0], bowl=Bowl("aspect", "gamma", "aspect_opt")),),
    floor="E",
)
"""aspect = n_embd / n_layer. Off its optimum a model acts like one of exp(-gamma / alpha * ln(aspect/aspect_opt)^2) its size."""
POWER_FLOOR_DATA = Law(
    "M2",
    "E + A * N^-alpha + B * D^-beta",
    "Hoffmann et al. 2022, eq. 2",
    (Term("A", (Power((SIZE,), "alpha"),)), Term("B", (Power((TOKENS,), "beta"),))),
    floor="E",
)
POWER_FLOOR_CROSSED = Law(
    "M2X",
    "E + A * N^-alpha + B * D^-(beta + c ln N)",
    "Hoffmann et al. 2022, eq. 2, with an exponent of the data that moves with size",
    (POWER_FLOOR_DATA.terms[0], Term("B", (Power((TOKENS,), "beta"), Power((SIZE, TOKENS), "c", low=-np.inf, high=np.inf)))),
    floor="E",
)
SHAPE = Law(
    "S",
    "E + A * n_layer^-a * n_embd^-b",
    "Kaplan et al. 2020, eq. 1.1, with depth and width as separate factors of the size",
    (Term("A", (Power(("n_embd",), "b", low=-MAX_EXPONENT), Power(("n_layer",), "a", low=-MAX_EXPONENT))),),
    floor="E",
)
SHAPE_CROSSED = Law(
    "SX",
    f"{SHAPE.equation} * exp(-c ln(n_layer) ln(n_embd))",
    SHAPE.source,
    (replace(SHAPE.terms[0], factors=(*SHAPE.terms[0].factors, Power(("n_layer", "n_embd"), "c", low=-np.inf, high=np.inf))),),
    floor="E",
)
TIMING = Law(
    "timing",
    "t0 + A * n_layer * n_embd^g + B * n_layer * n_head^h",
    "matrix products and attention maps per layer: Kaplan et al. 2020, table 1; the exponents are fitted because small kernels do not "
    "reach peak throughput",
    (
        Term("A", (Power(("n_embd",), "g", sign=1),), proportional=("n_layer",)),
        Term("B", (Power(("n_head",), "h", sign=1),), proportional=("n_layer",)),
    ),
    floor="t0",
)
