"""Bootstrap weights of a study: resample configurations, then the seeds of each (Efron and Tibshirani 1993, section 8.6: two-level data).

Seeds of a configuration share its deviation from the curve, so resampling rows as if independent would give intervals that are too short.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from analysis.fits.coordinates import Array

RESAMPLE_ELEMENTS = 4_000_000  # drawn at a time: 32 MB an array, so that large studies resample in bounded memory


def resample(group: NDArray[np.intp], n: int, rng: np.random.Generator) -> Array:
    """Bootstrap weights (n, rows): configurations with replacement, then as many seeds of each with replacement; a configuration
    drawn once weighs 1 in total, however many seeds it has."""
    count = np.bincount(group)
    block = max(1, RESAMPLE_ELEMENTS // (len(count) * int(count.max())))
    parts = [_resample_block(group, count, min(block, n - done), rng) for done in range(0, n, block)]
    return np.concatenate(parts) if parts else np.zeros((0, len(group)))


def _resample_block(group: NDArray[np.intp], count: NDArray[np.intp], n: int, rng: np.random.Generator) -> Array:
    order = np.argsort(group, kind="stable")
    first = np.concatenate([[0], np.cumsum(count)[:-1]])
    drawn = rng.integers(len(count), size=(n, len(count)))
    seeds = rng.random((n, len(count), int(count.max())))
    size = count[drawn][:, :, None]
    rows = order[first[drawn][:, :, None] + np.minimum((seeds * size).astype(np.intp), size - 1)]
    weight = np.where(np.arange(seeds.shape[2]) < size, 1.0 / size, 0.0)
    flat = (np.arange(n)[:, None, None] * len(group) + rows).reshape(-1)
    total: Array = np.bincount(flat, weights=weight.reshape(-1), minlength=n * len(group)).astype(float)
    return total.reshape(n, len(group))


def distinct_points(columns: Mapping[str, Array], weights: Array) -> NDArray[np.intp]:
    """Distinct design points with weight, per replicate."""
    _, point = np.unique(np.stack(list(columns.values()), axis=1), axis=0, return_inverse=True)
    order = np.argsort(point.reshape(-1), kind="stable")
    first = np.flatnonzero(np.diff(point.reshape(-1)[order], prepend=-1))
    return (np.add.reduceat(weights[:, order], first, axis=1) > 0).sum(axis=1)
