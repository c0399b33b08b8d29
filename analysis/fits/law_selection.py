"""Which configurations a joint fit may compare, and which law the data support.

A law in N (and D) is fitted to configurations of one recipe: those that differ in shape, training tokens and a learning rate that follows
the size, but not in batch size, dropout and so on. Laws are ranked by AICc with n = distinct configurations (Hurvich and Tsai 1989), never
with n = rows or checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.fits import fit as fits
from analysis.fits.fit import FitResult
from analysis.fits.laws import (
    POWER,
    POWER_FLOOR,
    POWER_FLOOR_CROSSED,
    POWER_FLOOR_DATA,
    SEPARABLE,
    SEPARABLE_DATA,
    Law,
    with_aspect,
    with_head_dim,
)
from analysis.table.configurations import Configurations
from analysis.table.load import ADDED_LATER

RECIPE = ("batch_size", "weight_decay", "dropout", "schedule", "block_size", *ADDED_LATER, "unique_tokens", "data_sha256")
TUNED = ("tuned", "transferred", "at_edge")
SIZE = "params_non_embedding"
RANK_STARTS = 6


# ---- rows ----


def one_recipe(trials: pd.DataFrame) -> NDArray[np.bool_]:
    """Rows of the commonest recipe, at each shape's tuned learning rate where it was tuned; mask of shape (rows,).

    Where a shape was trained at several learning rates and none was tuned, the one with the most rows is taken, and of those the best.
    """
    if trials.empty:
        return np.zeros(0, dtype=bool)
    label = _codes(trials, RECIPE)
    common = label == np.bincount(label).argmax()
    return common & _chosen_rates(trials, common)


def _codes(trials: pd.DataFrame, columns: Sequence[str]) -> NDArray[np.int64]:
    """One whole number per row, equal where all the columns are equal (missing values being equal to each other)."""
    code = np.zeros(len(trials), dtype=np.int64)
    for column in columns:
        own = pd.factorize(trials[column], use_na_sentinel=False)[0]
        code = np.unique(code * (int(own.max()) + 1) + own, return_inverse=True)[1]
    return code


def _chosen_rates(trials: pd.DataFrame, among: NDArray[np.bool_]) -> NDArray[np.bool_]:
    model = pd.Series(_codes(trials, (SIZE, "n_layer", "n_embd", "n_head", "n_tokens")), index=trials.index)
    lr = trials["lr"].astype(float).fillna(-1.0)
    table = pd.DataFrame({"model": model, "lr": lr, "tuned": trials["lr_status"].isin(TUNED), "loss": trials["val_loss"]})[among]
    if table.groupby("model")["lr"].nunique().max() == 1:
        return np.ones(len(trials), dtype=bool)
    ranked = table.groupby(["model", "lr"]).agg(tuned=("tuned", "max"), rows=("loss", "size"), loss=("loss", "mean")).reset_index()
    ranked = ranked.sort_values(["tuned", "rows", "loss"], ascending=[False, False, True]).drop_duplicates("model")
    best = ranked.set_index("model")["lr"]
    return (lr == model.map(best)).to_numpy(dtype=bool)


# ---- laws ----


@dataclass(frozen=True)
class Candidate:
    """A law and how well it does for its number of parameters.

    Args:
        fit_id: name of the fit in fits.json.
        law: the equation.
        result: least-squares fit on log loss.
        aicc: n ln(RSS/n) + 2k + 2k(k+1)/(n-k-1), k counting the variance; infinite where n <= k + 1.
        n: distinct configurations.
        k: parameters, the variance included.
    """

    fit_id: str
    law: Law
    result: FitResult
    aicc: float
    n: int
    k: int


def candidate_laws(cells: Configurations) -> dict[str, Law]:
    """Laws that the configurations could determine at all: a column that does not vary enters none."""
    with_data = varies(cells, "n_tokens", 3)
    size = {"M0": POWER, "M1": POWER_FLOOR} | ({"M2": POWER_FLOOR_DATA, "M2X": POWER_FLOOR_CROSSED} if with_data else {})
    base = POWER_FLOOR_DATA if with_data else POWER_FLOOR
    if varies(cells, "aspect", 3):
        size["M3"] = with_aspect(base)
    if varies(cells, "head_dim", 2):
        size["M1h" if not with_data else "M2h"] = with_head_dim(base)
    if varies(cells, "n_layer", 3) and varies(cells, "n_embd", 3):
        size["M4"] = SEPARABLE_DATA if with_data else SEPARABLE
    return size


def varies(cells: Configurations, column: str, levels: int = 2) -> bool:
    """Whether a column takes at least so many values."""
    values = cells.columns[column]
    return len(np.unique(values[np.isfinite(values)])) >= levels


def rank(cells: Configurations, laws: dict[str, Law]) -> list[Candidate]:
    """Least-squares fits of the laws, best AICc first; laws with as many parameters as configurations are left out."""
    found = []
    for fit_id, law in laws.items():
        try:
            result = fits.fit(law, cells.columns, cells.loss, n_starts=RANK_STARTS)
        except fits.FitError:
            continue
        found.append(Candidate(fit_id, law, result, aicc(result), result.n_points, len(result.params) + 1))
    return sorted(found, key=lambda c: (c.aicc, c.k))


def aicc(result: FitResult) -> float:
    """AICc of a fit for Gaussian log residuals, n = points (here configurations)."""
    n, k = result.n_points, len(result.params) + 1
    if n <= k + 1:
        return float("inf")
    rss = max(float(np.sum(result.residuals**2)), 1e-300)
    return float(n * np.log(rss / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1))


def weights(candidates: Sequence[Candidate]) -> list[float]:
    """Akaike weights: exp(-difference / 2), summing to one; 0 for laws with too few configurations."""
    scores = np.array([c.aicc for c in candidates])
    if not np.isfinite(scores).any():
        return [0.0] * len(candidates)
    likelihood = np.exp(-0.5 * (scores - scores.min()))
    return [float(v) for v in likelihood / likelihood.sum()]
