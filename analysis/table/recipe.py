"""Which rows a joint fit may compare: configurations of one recipe, at each shape's tuned learning rate where it was tuned.

A law in N (and D) is fitted to configurations that differ in shape, training tokens and a learning rate that follows the size, but not in
batch size, dropout and so on.

    cells = average(table.trials[one_recipe(table.trials)])
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.table.load import ADDED_LATER

RECIPE = ("batch_size", "weight_decay", "dropout", "schedule", "block_size", *ADDED_LATER, "unique_tokens", "data_sha256")
TUNED = ("tuned", "transferred", "at_edge")
MODEL = ("params_non_embedding", "n_layer", "n_embd", "n_head", "n_tokens")


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
    model = pd.Series(_codes(trials, MODEL), index=trials.index)
    lr = trials["lr"].astype(float).fillna(-1.0)
    table = pd.DataFrame({"model": model, "lr": lr, "tuned": trials["lr_status"].isin(TUNED), "loss": trials["val_loss"]})[among]
    if table.groupby("model")["lr"].nunique().max() == 1:
        return np.ones(len(trials), dtype=bool)
    ranked = table.groupby(["model", "lr"]).agg(tuned=("tuned", "max"), rows=("loss", "size"), loss=("loss", "mean")).reset_index()
    ranked = ranked.sort_values(["tuned", "rows", "loss"], ascending=[False, False, True]).drop_duplicates("model")
    best = ranked.set_index("model")["lr"]
    return (lr == model.map(best)).to_numpy(dtype=bool)
