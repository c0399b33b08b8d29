"""Our fits against two PyPI packages for scaling laws, in an environment that holds them.

    python -m venv /tmp/peers && /tmp/peers/bin/pip install simple-scaling-laws chinchilla
    /tmp/peers/bin/python -m benchmarks.fit_peers

They are no dependency of this project (simple-scaling-laws needs Python 3.12 or newer); one that is not installed is skipped, and said so.
All times are processor seconds of one thread, on the 240 points of `benchmarks.fits`. The packages make other choices (simple-scaling-laws
also selects and warns; chinchilla minimizes an asymmetric error in extended precision from each start of a grid), so the ratios say what
a person waits, not which algorithm is better. Results go to `benchmarks/results/fit_peers.csv`; rows of a skipped package are kept.
"""

from __future__ import annotations

import csv
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version

from benchmarks.fits import DELTA, RESULTS, published_points, seconds, versions  # first: it sets one thread

import numpy as np  # isort: skip

from analysis.fits.fit import fit, fit_batch
from analysis.fits.laws import POWER_FLOOR_DATA, SIZE, TOKENS

OUTPUT = RESULTS.with_name("fit_peers.csv")
FIELDS = ["what", "ours_s", "theirs_s", "ratio", "package", "machine"]


def ours() -> tuple[float, float]:
    """Seconds of one fit, and of one bootstrap replicate of 4,000."""
    columns, loss = published_points()
    start = fit(POWER_FLOOR_DATA, columns, loss, delta=DELTA)
    weights = np.random.default_rng(1).multinomial(240, np.full(240, 1 / 240), size=4000)
    replicate = seconds(lambda: fit_batch(start, columns, loss, weights), repeat=3) / 4000
    return seconds(lambda: fit(POWER_FLOOR_DATA, columns, loss, delta=DELTA), repeat=15), replicate


def simple_scaling_laws(point: float, replicate: float) -> Iterator[dict[str, object]]:
    """`fit` with its separable power law; the cost of a draw is the slope between 20 and 200 draws."""
    import polars
    from simple_scaling_laws import fit as their_fit

    columns, loss = published_points()
    names = [f"run_{i:03d}" for i in range(len(loss))]
    frame = polars.DataFrame(
        {
            "training_run_id": names,
            "train_set_id": names,
            "test_set_id": ["test"] * len(loss),
            "optimizer_seed": [0] * len(loss),
            "model_size__n_params": columns[SIZE],
            "dataset_size__n_subjects": columns[TOKENS],
            "test_loss__cross_entropy": loss,
        }
    )

    def work(n_draws: int) -> Callable[[], object]:
        return lambda: their_fit(frame, law="separable-power", n_draws=n_draws, seed=0)

    few, many = seconds(work(20), repeat=3), seconds(work(200), repeat=3)
    draw = (many - few) / 180
    yield {"what": "point fit (its fit without draws)", "ours_s": point, "theirs_s": few - 20 * draw}
    yield {"what": "bootstrap replicate", "ours_s": replicate, "theirs_s": draw}


def chinchilla(point: float, replicate: float) -> Iterator[dict[str, object]]:
    """`Chinchilla.fit` from 32 starts; its documentation uses grids of thousands."""
    from chinchilla import Chinchilla

    columns, loss = published_points()
    ranges = {"E": (1.1, 2.5), "A": (100, 1000), "B": (100, 1000), "alpha": (0.1, 0.7), "beta": (0.1, 0.7)}
    with tempfile.TemporaryDirectory() as folder:
        peer = Chinchilla(folder, param_grid={name: np.linspace(*ends, 2) for name, ends in ranges.items()}, log_level=40)
        for size, tokens, value in zip(columns[SIZE], columns[TOKENS], loss, strict=True):
            peer.database.append(N=size, D=tokens, C=6 * size * tokens, loss=value)
        begin = time.process_time()
        peer.fit(parallel=False)
        yield {"what": "point fit (32 starts)", "ours_s": point, "theirs_s": time.process_time() - begin}


def main() -> None:
    """Time whatever is installed, print it, and keep the rows of packages that are not."""
    packages = {"simple-scaling-laws": simple_scaling_laws, "chinchilla": chinchilla}
    kept = list(csv.DictReader(OUTPUT.open())) if OUTPUT.exists() else []
    rows: list[dict[str, object]] = []
    point, replicate = ours()
    for name, bench in packages.items():
        if importlib.util.find_spec(name.replace("-", "_")) is None:
            print(f"{name} is not installed here: skipped")
            rows += [row for row in kept if row["package"].startswith(name)]
            continue
        for row in bench(point, replicate):
            ratio = float(str(row["theirs_s"])) / float(str(row["ours_s"]))
            rows.append({**row, "ratio": ratio, "package": f"{name} {version(name)}", "machine": versions()})
            print(f"{name:<20} {row['what']:<36} ours {row['ours_s']:.3g} s, theirs {row['theirs_s']:.3g} s: {ratio:,.0f}x")
    with OUTPUT.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
