"""How fast and how exact the fits are, against code that anyone can install: `python -m benchmarks.fits`.

Prints one table (what, ours, theirs, ratio, bar) and writes it to `benchmarks/results/fits.csv` with machine and versions. All times are
processor seconds of one thread in this one run. The comparisons are SciPy optimizers driven as published fits drive them; they are
written out below. `--coverage` adds simulated coverage of the intervals (minutes); `--full` runs all 4,500 published starts instead of a
sample of them.

Data are simulated from the published surface (Hoffmann et al. 2022, eq. 10), on 240 points like those of Besiroglu et al.
2024 (arXiv 2404.10102), so that no file is needed.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import curve_fit, minimize

from analysis.estimate import SIZE
from analysis.fits.coordinates import Array
from analysis.fits.fit import fit, fit_batch
from analysis.fits.intervals import Observations, bootstrap, profiles
from analysis.fits.laws import POWER, POWER_FLOOR, POWER_FLOOR_ASPECT, POWER_FLOOR_DATA, TOKENS
from analysis.fits.quantities import Loss, Parameter, Quantity, Slope
from benchmarks.laws import configurations, profile_batch, simulate
from benchmarks.machine import describe, write_csv

RESULTS = Path(__file__).parent / "results" / "fits.csv"
DELTA = 1e-3
SURFACE = {"E": 1.69, "A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28}
# Besiroglu et al. 2024: alpha, beta, e, a, b of the 4,500 published starts
GRID = [(0, 0.5, 1, 1.5, 2), (0, 0.5, 1, 1.5, 2), (-1, -0.5, 0, 0.5, 1), (0, 5, 10, 15, 20, 25), (0, 5, 10, 15, 20, 25)]
SAMPLED_STARTS, SAMPLED_REPLICATES = 150, 40


@dataclass(frozen=True)
class Line:
    """One row of the table; times in processor seconds. `bar` is the smallest ratio, or the longest time, that passes."""

    what: str
    ours: float
    theirs: float | None
    bar: float
    note: str

    @property
    def ratio(self) -> float | None:
        return None if self.theirs is None else self.theirs / self.ours

    def row(self) -> dict[str, object]:
        """As the table holds it."""
        passes = self.ours <= self.bar if self.ratio is None else self.ratio >= self.bar
        bar = f"<= {self.bar:g} s" if self.theirs is None else f">= {self.bar:,.0f}x"
        times = {"ours_s": self.ours, "theirs_s": self.theirs, "ratio": self.ratio}
        return {"what": self.what, **times, "bar": bar, "passes": passes, "note": self.note}


def seconds(work: Callable[[], object], repeat: int = 5) -> float:
    """Median processor seconds over repeats, after one call to warm up."""
    work()
    times = []
    for _ in range(repeat):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return float(np.median(times))


# ---- the code compared with ----


def published_points() -> tuple[dict[str, Array], Array]:
    """240 points: sizes from 44 million to 16 billion parameters, compute over three decades, noise 0.5 % of loss with outliers."""
    rng = np.random.default_rng(0)
    size = np.exp(rng.uniform(np.log(44e6), np.log(16e9), 240))
    columns = {SIZE: size, TOKENS: np.exp(rng.uniform(np.log(6e18), np.log(3e21), 240)) / (6 * size)}
    loss = POWER_FLOOR_DATA.predict(SURFACE, columns, {SIZE: 1.0, TOKENS: 1.0})
    return columns, loss * np.exp(0.005 * rng.standard_t(4, 240))


def huber_sum(params: Array, log_size: Array, log_tokens: Array, log_loss: Array) -> float:
    """The published objective: Huber (1e-3) summed over residuals of a log-sum-exp; params a, b, e, alpha, beta."""
    a, b, e, alpha, beta = params
    terms = np.stack([a - alpha * log_size, b - beta * log_tokens, np.full_like(log_size, e)])
    top = terms.max(axis=0)
    residual = np.abs(log_loss - top - np.log(np.exp(terms - top).sum(axis=0)))
    return float(np.where(residual <= DELTA, 0.5 * residual**2, DELTA * (residual - 0.5 * DELTA)).sum())


def huber_gradient(params: Array, log_size: Array, log_tokens: Array, log_loss: Array) -> tuple[float, Array]:
    """The same with its gradient."""
    a, b, e, alpha, beta = params
    terms = np.stack([a - alpha * log_size, b - beta * log_tokens, np.full_like(log_size, e)])
    top = terms.max(axis=0)
    powers = np.exp(terms - top)
    total = powers.sum(axis=0)
    residual = log_loss - top - np.log(total)
    clipped = np.clip(residual, -DELTA, DELTA)
    share = powers / total * clipped
    gradient = -np.array([share[0].sum(), share[1].sum(), share[2].sum(), -(share[0] @ log_size), -(share[1] @ log_tokens)])
    return float((clipped * (residual - 0.5 * clipped)).sum()), gradient


# ---- comparisons ----


def point_fit(full: bool) -> Line:
    """One Huber fit against L-BFGS-B from the published grid of starts."""
    columns, loss = published_points()
    logs = np.log(columns[SIZE]), np.log(columns[TOKENS]), np.log(loss)
    ours = seconds(lambda: fit(POWER_FLOOR_DATA, columns, loss, delta=DELTA), repeat=15)
    starts = [np.array([a, b, e, alpha, beta]) for alpha, beta, e, a, b in itertools.product(*GRID)]
    order = np.random.default_rng(0).permutation(len(starts))
    used = order if full else order[:SAMPLED_STARTS]
    begin = time.process_time()
    best = min(minimize(huber_sum, starts[i], args=logs, method="L-BFGS-B").fun for i in used)
    theirs = (time.process_time() - begin) * len(starts) / len(used)
    mine = fit(POWER_FLOOR_DATA, columns, loss, delta=DELTA).objective_value
    note = f"{len(used)} of {len(starts)} starts timed; objective ours/theirs - 1 = {mine / best - 1:.1e}"
    return Line("point fit, 240 points, against L-BFGS-B from the 4,500-start grid", ours, theirs, 5000, note)


def bootstraps() -> Iterator[Line]:
    """4,000 replicates of that fit against one BFGS run for each."""
    columns, loss = published_points()
    start = fit(POWER_FLOOR_DATA, columns, loss, delta=DELTA)
    rng = np.random.default_rng(1)
    drawn = rng.integers(240, size=(4000, 240))
    weights = np.stack([np.bincount(row, minlength=240) for row in drawn]).astype(float)
    ours = seconds(lambda: fit_batch(start, columns, loss, weights), repeat=3) / 4000
    batch = fit_batch(start, columns, loss, weights)
    exponents = start.params["alpha"], start.params["beta"]
    amplitudes = [np.log(start.params[k]) + p * np.log(start.reference[c]) for k, p, c in zip("AB", exponents, (SIZE, TOKENS), strict=True)]
    origin = np.array([*amplitudes, np.log(start.params["E"]), *exponents])
    for name, function, gradient, bar in (("numeric", huber_sum, None, 150), ("analytic", huber_gradient, True, 30)):
        begin, found = time.process_time(), []
        for rows in drawn[:SAMPLED_REPLICATES]:
            logs = np.log(columns[SIZE][rows]), np.log(columns[TOKENS][rows]), np.log(loss[rows])
            found.append(minimize(function, origin, args=logs, method="BFGS", jac=gradient).fun)
        theirs = (time.process_time() - begin) / SAMPLED_REPLICATES
        worse = np.max(batch.objective_value[:SAMPLED_REPLICATES] / np.array(found) - 1)
        note = (
            f"{SAMPLED_REPLICATES} replicates timed; largest ours/theirs - 1 = {worse:.1e}; converged {batch.converged.mean():.4f} of 4,000"
        )
        yield Line(f"bootstrap replicate, 240 points, against BFGS with {name} gradient", ours, theirs, bar, note)


def one_dimensional() -> Line:
    """A replicate of E + A N^-alpha over 24 points against scipy.optimize.curve_fit."""
    columns = {SIZE: np.geomspace(1e5, 1e8, 24)}
    loss = simulate(POWER_FLOOR, {"E": 0.5, "A": 0.2, "alpha": 0.4}, columns, {SIZE: 1e6}, 0.005, 0)
    start = fit(POWER_FLOOR, columns, loss)
    drawn = np.random.default_rng(1).integers(24, size=(4000, 24))
    weights = np.stack([np.bincount(row, minlength=24) for row in drawn]).astype(float)
    ours = seconds(lambda: fit_batch(start, columns, loss, weights), repeat=3) / 4000
    relative = columns[SIZE] / 1e6

    def log_law(x: Array, floor: float, amplitude: float, alpha: float) -> Array:
        return np.log(floor + amplitude * x**-alpha)

    begin = time.process_time()
    for rows in drawn[:200]:
        curve_fit(log_law, relative[rows], np.log(loss[rows]), p0=[0.5, 0.2, 0.4], bounds=([1e-6, 1e-6, 0], [5, 5, 5]))
    theirs = (time.process_time() - begin) / 200
    return Line("1-D replicate, 24 points, against curve_fit", ours, theirs, 50, "200 replicates timed; both bounded to E, A, alpha >= 0")


def small_study() -> Line:
    """The fits, profiles and 4,000-replicate bootstrap of a 12-run study."""
    depth = np.array([2, 4, 8, 12, 6, 6, 6, 6, 6, 6, 6, 6], dtype=float)
    width = np.array([256, 256, 256, 256, 128, 192, 256, 384, 256, 256, 256, 256], dtype=float)
    columns = {"n_layer": depth, "n_embd": width, SIZE: 12 * depth * width**2}
    loss = simulate(POWER_FLOOR, {"E": 0.5, "A": 0.1, "alpha": 0.4}, columns, {SIZE: 5e6}, 0.004, 0)
    slope, ahead = Slope({SIZE: 5e6}), Loss({SIZE: 2e7})
    asked: dict[str, Quantity] = {"alpha": Parameter("alpha"), "E": Parameter("E"), "slope": slope, "loss": ahead}

    def analyze() -> None:
        seen = Observations(POWER_FLOOR, configurations(columns, loss[:, None]))
        fitted = [fit(law, columns, loss) for law in (POWER, POWER_FLOOR, POWER_FLOOR_ASPECT)]
        profiles(seen, asked)
        bootstrap(seen, fitted[1], asked, np.random.default_rng(0), 4000)

    what = "fits M0, M1, M3, four profiles, 4,000 bootstraps of a 12-run study"
    return Line(what, seconds(analyze, repeat=3), None, 1.0, "without tables and report")


# ---- coverage ----


def coverage(n_studies: int) -> Iterator[tuple[str, float]]:
    """Share of simulated studies whose nominal 95 % profile interval holds the truth."""
    truth, reference = {"E": 0.5, "A": 0.2, "alpha": 0.4}, {SIZE: 1e6}
    for n_sizes, lack_of_fit in itertools.product((5, 8, 16), (0.0, 0.004)):
        rng = np.random.default_rng([n_sizes, int(1e4 * lack_of_fit)])
        columns = {SIZE: np.geomspace(1e5, 10**7.2, n_sizes)}
        target = {SIZE: 4 * columns[SIZE][-1]}
        noise = lack_of_fit * rng.standard_normal((n_studies, n_sizes)) + 0.003 / np.sqrt(3) * rng.standard_normal((n_studies, n_sizes))
        means = POWER_FLOOR.predict(truth, columns, reference) * np.exp(noise)
        extrapolated = float(POWER_FLOOR.predict(truth, {SIZE: np.array(target[SIZE])}, reference))
        asked: list[tuple[str, Quantity, float]] = [
            ("alpha", Parameter("alpha"), 0.4),
            ("E", Parameter("E"), 0.5),
            ("slope", Slope(reference), -0.4 * 0.2 / 0.7),
            ("L at 4x", Loss(target), extrapolated),
        ]
        for name, quantity, value in asked:
            found = profile_batch(POWER_FLOOR, columns, means, quantity)
            label = f"{name}, {n_sizes} sizes, lack of fit {lack_of_fit:g}"
            yield label, float(np.mean((found["low"] <= value) & (value <= found["high"])))


# ---- output ----


def main() -> None:
    """Run everything, print and save the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--full", action="store_true", help="time all 4,500 published starts (about two minutes)")
    parser.add_argument("--coverage", type=int, default=0, metavar="STUDIES", help="also simulate the coverage of the intervals")
    arguments = parser.parse_args()
    print(f"{describe()}; processor seconds of one thread")
    rows: list[dict[str, object]] = []
    for line in (point_fit(arguments.full), *bootstraps(), one_dimensional(), small_study()):
        rows.append(line.row())
        print("  ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in rows[-1].values()), flush=True)
    for label, share in coverage(arguments.coverage) if arguments.coverage else ():
        print(f"coverage of nominal 95 %: {label:<40} {100 * share:.1f} % of {arguments.coverage} studies", flush=True)
        facts = {"bar": "0.93 to 0.97", "passes": 0.93 <= share <= 0.97, "note": f"{arguments.coverage} studies"}
        rows.append({"what": f"coverage: {label}", "ratio": share, **facts})
    write_csv(RESULTS, rows)


if __name__ == "__main__":
    main()
