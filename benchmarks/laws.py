"""Which law forecasts runs that it has not seen, and whether intervals hold what they promise: `make bench-laws`.

For each table of runs every law is fitted to all sizes below one and asked for that size, rolling upward; the table gives the median
relative error, the error of the largest size alone, the residuals in sample and AICc; the longest training length is asked for from all
shorter ones (there "largest error" is that of the worst shape). Written to `benchmarks/results/laws.csv`.
`--simulate N` adds the coverage of the shape law's intervals over N studies with planted exponents, and how often "depth or width matters
in some comparison at equal size" is said where only size matters (family-wise error, by the scatter of configurations).

Tables: the two studies of matched shapes in `benchmarks/results`, and published runs where their folder is present (`REFERENCE=DIR`).
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.estimate import SIZE, Estimate
from analysis.findings.training_length import Longer, longer
from analysis.fits import fit as fits
from analysis.fits import forecast_law, length_law, shape_law
from analysis.fits.coordinates import Array
from analysis.fits.laws import (
    POWER,
    POWER_FLOOR,
    POWER_FLOOR_ASPECT,
    POWER_FLOOR_CROSSED,
    POWER_FLOOR_DATA,
    SHAPE,
    SHAPE_CROSSED,
    TOKENS,
    Law,
    Power,
    Term,
)
from analysis.fits.profile_likelihood import SeedNoise, fit_means, profile_ends
from analysis.fits.quantities import Quantity, read
from analysis.table.configurations import SHAPE as SHAPE_COLUMNS
from analysis.table.configurations import Configurations, Floats, average, t_quantile
from analysis.table.load import size_labels

RESULTS = Path(__file__).parent / "results"
REFERENCE = Path(os.environ.get("REFERENCE", "../shared/reference"))
SEPARABLE = Law(
    "M4",
    "E + A * n_layer^-a + B * n_embd^-b",
    "additive form of Hoffmann et al. 2022, eq. 2, in depth and width instead of N and D",
    (Term("A", (Power(("n_layer",), "a"),)), Term("B", (Power(("n_embd",), "b"),))),
    floor="E",
)
SENSITIVITY = ((0.6, 0.6, 0.34), (1.0, 1.0, 0.25), (1.0, 1.0, 0.5))
"""Exponents of depth, width and N that a reader may believe in, beside those of the forecasting law."""
SHAPE_LAWS = (POWER, POWER_FLOOR, POWER_FLOOR_ASPECT, SEPARABLE, SHAPE, SHAPE_CROSSED)
TOKEN_LAWS = (POWER_FLOOR_DATA, POWER_FLOOR_CROSSED)
Predict = Callable[[dict[str, Floats]], Floats]


def aicc(result: fits.FitResult) -> float:
    """n ln(RSS/n) + 2k + 2k(k+1)/(n-k-1) of log residuals, k counting the variance (Hurvich and Tsai 1989); n = configurations."""
    n, k = len(result.residuals), len(result.params) + 1
    if n <= k + 1:
        return float("inf")
    rss = max(float(np.sum(result.residuals**2)), 1e-300)
    return float(n * np.log(rss / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1))


# ---- tables ----


def tables() -> Iterator[tuple[str, Configurations, tuple[Law, ...]]]:
    """(name, configurations, laws) of every table that is here."""
    for name in ("study_matched", "study_matched_tinystories"):
        yield name, average(pd.read_parquet(RESULTS / f"{name}.parquet")), SHAPE_LAWS
    data = pd.read_parquet(RESULTS / "study_data.parquet")
    yield "study_data, text seen once", average(data[data["epochs"] <= 1]), TOKEN_LAWS
    if (path := REFERENCE / "inf3600_runs.csv").exists():
        runs = pd.read_csv(path)
        columns = {name: runs[name].to_numpy(float) for name in ("n_layer", "n_embd", "n_head")} | {
            SIZE: runs["params_blocks"].to_numpy(float)
        }
        yield "published 12 runs", configurations(columns, runs[["val_loss"]].to_numpy(float)), SHAPE_LAWS
    if (path := REFERENCE / "chinchilla_epoch.csv").exists():
        runs = pd.read_csv(path).nsmallest(240, "loss")
        size = runs["Model Size"].to_numpy(float)
        columns = {SIZE: size, TOKENS: runs["Training FLOP"].to_numpy(float) / (6 * size)}
        yield "published 240 runs", configurations(columns, runs[["loss"]].to_numpy(float)), TOKEN_LAWS


# ---- laws ----


def fitted(law: Law, cells: Configurations) -> Predict | None:
    """A least-squares fit as a function of columns; None where it has too few points."""
    try:
        result = fits.fit(law, cells.columns, cells.loss)
    except fits.FitError:
        return None
    return result.predict


def forecast(exponents: tuple[float, float, float], cells: Configurations) -> Predict:
    """The law of fixed exponents, its floor at the known entropy where the rows have one."""
    known = cells.columns["loss_floor"]
    return forecast_law.solve(cells, float(min(known[np.isfinite(known)], default=0.0)), exponents).predict


def rows_of(name: str, cells: Configurations, laws: tuple[Law, ...]) -> Iterator[dict[str, object]]:
    """One row per law: how it fits, and how it forecasts the sizes it has not seen."""
    makers: list[tuple[str, Callable[[Configurations], Predict | None], float]] = []
    for law in laws:
        score = aicc(fits.fit(law, cells.columns, cells.loss))
        makers.append((f"{law.name}: {law.equation}", partial(fitted, law), score))
    if laws is SHAPE_LAWS:
        for exponents in (forecast_law.EXPONENTS, *SENSITIVITY):
            label = "E + A/l^{:g} + B/w^{:g} + C N^-{:g}, exponents fixed".format(*exponents)
            makers.append((label, partial(forecast, exponents), float("nan")))
    labels = size_labels(cells.columns[SIZE])
    first = max(int(labels.max()) - 4, 2) if laws is SHAPE_LAWS else max(int(labels.max()) - 4, 4)
    for label, make, score in makers:
        errors = [
            (size, _errors(make(cells.take(labels < size)), cells.take(labels == size))) for size in range(first, int(labels.max()) + 1)
        ]
        seen = [(size, error) for size, error in errors if error is not None]
        whole = make(cells)
        inside = _errors(whole, cells)
        yield {
            "table": name,
            "law": label,
            "residual_percent": None if inside is None else 100 * float(np.sqrt(np.mean(inside**2))),
            "aicc": score,
            "median_error_percent": 100 * float(np.median(np.concatenate([e for _, e in seen]))) if seen else None,
            "largest_error_percent": 100 * float(np.median(seen[-1][1])) if seen else None,
            "forecast": sum(len(e) for _, e in seen),
        }


def _errors(predict: Predict | None, cells: Configurations) -> Floats | None:
    return None if predict is None else np.abs(predict(cells.columns) / cells.loss - 1)


def lengths() -> Iterator[dict[str, object]]:
    """One row per law of text: the longest length of each table forecast from all shorter ones."""
    for name in ("study_horizon", "study_horizon_completep"):
        cells = average(pd.read_parquet(RESULTS / f"{name}.parquet"))
        longest = cells.columns[TOKENS].max()
        early, late = (cells.take(mask) for mask in (cells.columns[TOKENS] < longest, cells.columns[TOKENS] == longest))
        known = longer(early)
        assert isinstance(known, Longer)
        shapes = np.stack([late.columns[column] for column in SHAPE_COLUMNS], axis=1)
        found = [known.find([float(v) for v in shape]) for shape in shapes]
        told = np.array([np.nan if shape is None else known.law.predict(shape, longest).value for shape in found])
        for law in (*TOKEN_LAWS, None):
            result = fits.fit(law, early.columns, early.loss) if law else None
            error = np.abs((result.predict(late.columns) if result else told) / late.loss - 1)
            inside = known.law.residual_sd if result is None else float(np.sqrt(np.mean(np.expm1(result.residuals) ** 2)))
            yield {
                "table": f"{name}, longest length",
                "law": f"{law.name}: {law.equation}" if law else f"D: {length_law.EQUATION}",
                "residual_percent": 100 * inside,
                "median_error_percent": 100 * float(np.median(error)),
                "largest_error_percent": 100 * float(error.max()),
                "forecast": len(late),
            }


# ---- simulation ----


def simulate(
    law: Law, params: Mapping[str, float], columns: Mapping[str, ArrayLike], reference: Mapping[str, float], sd: float, study: int
) -> Array:
    """Losses of a law with log-normal noise of this standard deviation, (points,); `study` seeds it."""
    mean = law.predict(params, columns, reference)
    return mean * np.exp(sd * np.random.default_rng(study).standard_normal(mean.shape))


def configurations(columns: Mapping[str, Array], losses: Array) -> Configurations:
    """Configurations from columns (k,) and losses (k, seeds); a million tokens each where they are not given."""
    k, seeds = losses.shape
    shape = {name: columns.get(name, np.ones(k)) for name in ("n_layer", "n_embd", "n_head")}
    derived = {"aspect": shape["n_embd"] / shape["n_layer"], "head_dim": shape["n_embd"] / shape["n_head"]}
    return Configurations(
        config_id=np.array([f"c{i}" for i in range(k)], dtype=object),
        columns={"n_tokens": np.full(k, 1e6), "loss_floor": np.full(k, np.nan), **derived, **columns},
        loss=losses.mean(axis=1),
        n_seeds=np.full(k, seeds),
        sweeps=((),) * k,
        cell_config=np.repeat(np.arange(k), seeds),
        cell_seed=np.tile(np.arange(seeds), k),
        cell_loss=losses.ravel(),
    )


def profile_batch(
    law: Law, columns: Mapping[str, ArrayLike], means: Array, quantity: Quantity, noise: SeedNoise | None = None, new_run: bool = False
) -> dict[str, Array]:
    """95 % intervals of a quantity, means being (studies, configurations); without `noise` every configuration weighs the same.

    Returns:
        Arrays (studies,) under "low", "high" and "point"; an end that the data leave open is infinite.
    """
    batch = fit_means(law, columns, means, noise=noise)
    reading = read(quantity, batch.design)
    point, low, high = profile_ends(batch, reading, new_run=new_run)
    return {"low": np.where(low <= reading.lowest, -np.inf, low), "high": high, "point": point}


LAYERS, EMBD = 4.6, 53.0
"""Where the planted amplitude holds."""


def designs() -> dict[str, tuple[Floats, Floats]]:
    """Depths and widths of simulated studies."""
    matched = average(pd.read_parquet(RESULTS / "study_matched.parquet")).columns
    depth, width = np.array(list(itertools.product((1, 2, 4, 8), (24, 48, 96, 192))), dtype=float).T
    return {"matched": (matched["n_layer"], matched["n_embd"]), "grid 4x4": (depth, width)}


def planted(depth: Floats, width: Floats, a: float, b: float, floor: float, scatter: float, study: int) -> Configurations:
    """A study of three seeds whose losses follow the shape law, with that scatter of configurations and 1.5 % of seeds."""
    rng = np.random.default_rng(study)
    noise = scatter * rng.standard_normal((len(depth), 1)) + 0.015 * rng.standard_normal((len(depth), 3))
    loss = floor + 0.4756 * (depth / LAYERS) ** -a * (width / EMBD) ** -b
    return configurations({"n_layer": depth, "n_embd": width}, loss[:, None] * np.exp(noise))


def truths(a: float, b: float, floor: float) -> dict[str, float]:
    """What the shape law's answers should be."""
    doublings = {"n_layer": a, "n_embd": b, "params": (a + b) / 3}
    gains = {f"gain by {name}": 0.4756 * (2 ** (exponent / 2) - 2 ** (-exponent / 2)) for name, exponent in doublings.items()}
    return {"E": floor, "a": a, "b": b, "alpha": (a + b) / 3, "kappa": b - 2 * a} | gains


def holds(got: Estimate, value: float) -> bool:
    """Whether a value lies within an interval; a side without an end holds everything."""
    return (got.low is None or got.low <= value) and (got.high is None or value <= got.high)


def coverage(n: int) -> Iterator[dict[str, object]]:
    """Share of simulated studies whose interval holds the planted value; a refusal of E counts by its upper bound."""
    for (name, shapes), (a, b, floor) in itertools.product(designs().items(), ((0.033, 0.587, 1.12), (0.2, 0.4, 0.8))):
        wanted = truths(a, b, floor)
        held: dict[str, list[bool]] = {key: [] for key in wanted}
        for study in range(n):
            found = shape_law.fit_shape_law(planted(*shapes, a, b, floor, 0.015, study))
            if not isinstance(found, shape_law.ShapeFit):
                continue
            for key, value in wanted.items():
                got = found.gain(key[8:], LAYERS, EMBD) if key.startswith("gain") else getattr(found, key)
                if isinstance(got, Estimate):
                    held[key].append(holds(got, value))
                elif key == "E":
                    held[key].append(value <= (got.bound or {}).get("upper", np.inf))
        for key, inside in held.items():
            row = {"table": f"coverage, {name}, a={a:g}, b={b:g}", "law": key}
            yield row | {"coverage_percent": 100 * float(np.mean(inside)), "forecast": len(inside)}


def family_wise(n: int) -> Iterator[dict[str, object]]:
    """How often a study in which only size matters says that shape does: from any pair of equal size, and from kappa."""
    depth, width = designs()["matched"]
    labels = size_labels(depth * width**2)
    pairs = [(i, j) for i, j in itertools.combinations(range(len(depth)), 2) if labels[i] == labels[j]]
    for scatter in (0.0, 0.005, 0.01, 0.02):
        any_pair, by_kappa = [], []
        for study in range(n):
            cells = planted(depth, width, 0.2, 0.4, 0.8, scatter, study)
            half = t_quantile(2 * len(cells)) * 0.015 * np.sqrt(2 / 3)
            ratio = np.log(cells.loss)
            any_pair.append(any(abs(ratio[i] - ratio[j]) > half for i, j in pairs))
            found = shape_law.fit_shape_law(cells)
            kappa = found.kappa if isinstance(found, shape_law.ShapeFit) else found
            by_kappa.append(isinstance(kappa, Estimate) and not holds(kappa, 0.0))
        for how, said in (("any pair by seed noise", any_pair), ("kappa", by_kappa)):
            yield {
                "table": f"only size matters, scatter {100 * scatter:g} %",
                "law": how,
                "said_percent": 100 * float(np.mean(said)),
                "forecast": n,
            }


def main() -> None:
    """Print the table and write it."""
    line = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    line.add_argument("--simulate", type=int, default=0, metavar="N", help="also simulate N studies of each design (200: ten minutes)")
    given = line.parse_args()
    rows = [row for name, cells, laws in tables() for row in rows_of(name, cells, laws)]
    rows += lengths()
    rows += [*coverage(given.simulate), *family_wise(given.simulate)] if given.simulate else []
    table = pd.DataFrame(rows)
    print(table.round(2).to_string(index=False))
    if not given.simulate and (path := RESULTS / "laws.csv").exists():  # a simulation stays beside the tables until it is run again
        kept = pd.read_csv(path)
        table = pd.concat([table, kept[kept["table"].str.startswith(("coverage", "only size"))]])
    table.to_csv(RESULTS / "laws.csv", index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
