"""Profile intervals of many simulated studies at once: what coverage is counted with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from analysis.fits.coordinates import Array
from analysis.fits.laws import Law
from analysis.fits.profile_likelihood import SeedNoise, fit_means, profile_ends
from analysis.fits.quantities import Quantity, read


def profile_batch(
    law: Law, columns: Mapping[str, ArrayLike], means: ArrayLike, quantity: Quantity, noise: SeedNoise | None = None, new_run: bool = False
) -> dict[str, Array]:
    """95 % intervals of a quantity, means being (studies, configurations); without `noise` every configuration weighs the same.

    Returns:
        Arrays (studies,) under "low", "high" and "point"; an end that the data leave open is infinite.
    """
    batch = fit_means(law, columns, np.asarray(means, dtype=float), None, noise)
    reading = read(quantity, batch.design)
    ends = profile_ends(batch.data, batch.theta, reading, batch.df, 0.95, new_run=new_run)
    low = np.where(ends.low_open, -np.inf, reading.report(ends.low))
    return {"low": low, "high": np.where(ends.high_open, np.inf, reading.report(ends.high)), "point": reading.report(ends.point)}
