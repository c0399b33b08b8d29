"""Scaling laws: equations that predict a loss (or a step time) from columns of the results table.

A law is a floor plus a sum of terms, each an amplitude times factors of table columns::

    loss = E + sum_k A_k * prod_j factor_kj(column_j)

The same object predicts, simulates and is fitted (`analysis.fits.fit`). Amplitudes are values *at a reference* (by default the geometric
mean of each column of the data): a bare A of `A * N^-alpha` is an extrapolation to one parameter, moves by orders of magnitude with
alpha, and is never reported without its reference.

    law = POWER_FLOOR
    law.predict({"E": 0.5, "A": 0.2, "alpha": 0.4}, {"params_non_embedding": sizes}, {"params_non_embedding": 1e6})

Reads nothing, writes nothing, imports numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.estimate import SIZE

TOKENS = "n_tokens"
MAX_EXPONENT = 5.0  # beyond this a power law is a step at the smallest size: no data of this kind determine it


# ---- factors: what multiplies an amplitude ----


@dataclass(frozen=True)
class Power:
    """(x / x_ref) ** (sign * exponent), the exponent being fitted within [low, high]."""

    column: str
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


@dataclass(frozen=True)
class Proportional:
    """x / x_ref: a column in which the term is known to be proportional (a layer costs what a layer costs)."""

    column: str


@dataclass(frozen=True)
class Cross:
    """exp(-coefficient * ln(x / x_ref) * ln(y / y_ref)): the exponent of each column moves with the logarithm of the other."""

    first: str
    second: str
    coefficient: str


Factor = Power | Bowl | Proportional | Cross


def factor_columns(factor: Factor) -> tuple[str, ...]:
    """Table columns that a factor reads."""
    return (factor.first, factor.second) if isinstance(factor, Cross) else (factor.column,)


@dataclass(frozen=True)
class Term:
    """One amplitude, in the unit of the predicted quantity and at the reference columns, and its factors."""

    amplitude: str
    factors: tuple[Factor, ...]


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

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError(f"law {self.name!r} has no terms; give at least one")
        repeated = sorted({name for name in self.parameters if self.parameters.count(name) > 1})
        if repeated:
            raise ValueError(f"law {self.name!r} uses the parameter names {', '.join(repeated)} twice; give each its own name")

    @property
    def has_floor(self) -> bool:
        """Whether the law has a constant that no column removes."""
        return self.floor is not None

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the fitted parameters, in the order of the equation."""
        names = [self.floor] if self.floor else []
        for term in self.terms:
            names.append(term.amplitude)
            for factor in term.factors:
                if isinstance(factor, Power):
                    names.append(factor.exponent)
                elif isinstance(factor, Cross):
                    names.append(factor.coefficient)
                elif isinstance(factor, Bowl):
                    names += [factor.curvature, factor.optimum]
        return tuple(names)

    @property
    def columns(self) -> tuple[str, ...]:
        """Table columns that the law needs; `aspect` and `head_dim` are derived from the shape where absent (`column_values`)."""
        return tuple(dict.fromkeys(name for term in self.terms for factor in term.factors for name in factor_columns(factor)))

    @property
    def amplitudes(self) -> tuple[str, ...]:
        """Names of the parameters that are values at the reference."""
        return tuple(term.amplitude for term in self.terms)

    def predict(
        self, params: Mapping[str, ArrayLike], columns: Mapping[str, ArrayLike], reference: Mapping[str, float]
    ) -> NDArray[np.float64]:
        """Predict the target (nats for losses, ms for the timing law).

        Args:
            params: a value per name of `parameters`; arrays broadcast against the columns (shape (replicates, 1) gives a row each).
            columns: positive arrays of shape (points,), one for each of `columns`.
            reference: the column values at which the amplitudes hold.

        Returns:
            Array of shape (points,), or broadcast with `params`.
        """
        values = {name: column_values(columns, name) for name in self.columns}
        total: NDArray[np.float64] = np.asarray(params[self.floor] if self.floor else 0.0, dtype=float)
        for term in self.terms:
            product: NDArray[np.float64] = np.asarray(params[term.amplitude], dtype=float)
            for factor in term.factors:
                product = product * _factor_value(factor, params, values, reference)
            total = total + product
        return total

    def simulate(
        self,
        params: Mapping[str, ArrayLike],
        columns: Mapping[str, ArrayLike],
        reference: Mapping[str, float],
        sd_log: float,
        rng: np.random.Generator,
    ) -> NDArray[np.float64]:
        """Predict, then multiply by log-normal noise of standard deviation `sd_log` (dimensionless: noise of the log loss)."""
        mean = self.predict(params, columns, reference)
        return mean * np.exp(sd_log * rng.standard_normal(mean.shape))

    def on(self, **new_columns: str) -> Law:
        """The same law with columns renamed, for example `law.on(params_non_embedding="params_total")` for another way to count N."""

        def renamed(factor: Factor) -> Factor:
            if isinstance(factor, Cross):
                return replace(
                    factor, first=new_columns.get(factor.first, factor.first), second=new_columns.get(factor.second, factor.second)
                )
            return replace(factor, column=new_columns.get(factor.column, factor.column))

        return replace(self, terms=tuple(replace(term, factors=tuple(map(renamed, term.factors))) for term in self.terms))


def _factor_value(
    factor: Factor, params: Mapping[str, ArrayLike], values: Mapping[str, NDArray[np.float64]], reference: Mapping[str, float]
) -> NDArray[np.float64]:
    if isinstance(factor, Bowl):
        offset = np.log(values[factor.column] / np.asarray(params[factor.optimum], dtype=float))
        return np.exp(np.asarray(params[factor.curvature], dtype=float) * offset**2)
    relative = [values[name] / reference[name] for name in factor_columns(factor)]
    if isinstance(factor, Cross):
        return np.exp(-np.asarray(params[factor.coefficient], dtype=float) * np.log(relative[0]) * np.log(relative[1]))
    if isinstance(factor, Proportional):
        return relative[0]
    return relative[0] ** (factor.sign * np.asarray(params[factor.exponent], dtype=float))


def column_values(columns: Mapping[str, ArrayLike], name: str) -> NDArray[np.float64]:
    """A column as floats; `aspect` (n_embd / n_layer), `head_dim` (n_embd / n_head) and `shape_size` (n_layer n_embd^2, a twelfth of the
    blocks' weights) are computed from the shape where absent.

    Raises:
        ValueError: the column is missing, or has a value that is not positive and finite.
    """
    ratio = {"aspect": ("n_embd", "n_layer"), "head_dim": ("n_embd", "n_head")}.get(name)
    if name in columns:
        values = np.asarray(columns[name], dtype=float)
    elif name == "shape_size":
        return column_values(columns, "n_layer") * column_values(columns, "n_embd") ** 2
    elif ratio and all(part in columns for part in ratio):
        return column_values(columns, ratio[0]) / column_values(columns, ratio[1])
    else:
        raise ValueError(f"column {name!r} is missing; the columns found are {', '.join(columns) or 'none'}")
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
    (Term("c", (Power(SIZE, "alpha"),)),),
)
POWER_FLOOR = Law(
    "M1",
    "E + A * N^-alpha",
    "Henighan et al. 2020, eq. 1.1",
    (Term("A", (Power(SIZE, "alpha"),)),),
    floor="E",
)
POWER_FLOOR_DATA = Law(
    "M2",
    "E + A * N^-alpha + B * D^-beta",
    "Hoffmann et al. 2022, eq. 2",
    (Term("A", (Power(SIZE, "alpha"),)), Term("B", (Power(TOKENS, "beta"),))),
    floor="E",
)
POWER_FLOOR_CROSSED = Law(
    "M2X",
    "E + A * N^-alpha + B * D^-(beta + c ln N)",
    "Hoffmann et al. 2022, eq. 2, with an exponent of the data that moves with size",
    (POWER_FLOOR_DATA.terms[0], Term("B", (Power(TOKENS, "beta"), Cross(SIZE, TOKENS, "c")))),
    floor="E",
)
SHAPE = Law(
    "S",
    "E + A * n_layer^-a * n_embd^-b",
    "Kaplan et al. 2020, eq. 1.1, with depth and width as separate factors of the size",
    (Term("A", (Power("n_embd", "b", low=-MAX_EXPONENT), Power("n_layer", "a", low=-MAX_EXPONENT))),),
    floor="E",
)
SHAPE_CROSSED = Law(
    "SX",
    f"{SHAPE.equation} * exp(-c ln(n_layer) ln(n_embd))",
    SHAPE.source,
    (replace(SHAPE.terms[0], factors=(*SHAPE.terms[0].factors, Cross("n_layer", "n_embd", "c"))),),
    floor="E",
)
TIMING = Law(
    "timing",
    "t0 + A * n_layer * n_embd^g + B * n_layer * n_head^h",
    "matrix products and attention maps per layer: Kaplan et al. 2020, table 1; the exponents are fitted because small kernels do not "
    "reach peak throughput",
    (
        Term("A", (Proportional("n_layer"), Power("n_embd", "g", sign=1))),
        Term("B", (Proportional("n_layer"), Power("n_head", "h", sign=1))),
    ),
    floor="t0",
)


def with_aspect(law: Law) -> Law:
    """M3: the law with its first term multiplied by exp(gamma * ln(aspect / aspect_opt)^2), aspect being n_embd / n_layer.

    A multiplier of the first term is a multiplier of N: off the optimum a model acts like one of exp(-gamma/alpha * ln(...)^2) its size.
    """
    bowl = Bowl("aspect", "gamma", "aspect_opt")
    first = replace(law.terms[0], factors=(*law.terms[0].factors, bowl))
    pieces = law.equation.split(" + ")
    pieces[int(law.has_floor)] += " * exp(gamma * ln(aspect/aspect_opt)^2)"
    source = f"{law.source}; Kaplan et al. 2020, fig. 5"
    return replace(law, name=f"M3({law.name})", equation=" + ".join(pieces), source=source, terms=(first, *law.terms[1:]))
