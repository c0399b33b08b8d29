"""Simulated studies, and profile intervals of many of them at once: what coverage is counted with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from analysis.fits.coordinates import Array
from analysis.fits.laws import Law
from analysis.fits.profile_likelihood import SeedNoise, fit_means, profile_ends
from analysis.fits.quantities import Quantity, read
from analysis.table.configurations import Configurations


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
