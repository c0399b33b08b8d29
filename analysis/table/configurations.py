"""Configuration means and the noise floor: what one more seed would change.

The unit of every fit is the configuration, never the checkpoint and never the seed as if it were independent. Rows of one
configuration and one seed (a repeated run) are averaged first: they measure the device's non-determinism, not seed noise.

    cells = replicates.average(table.trials); noise = replicates.measure_noise(cells)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from analysis.estimate import LEVEL, NATS, Code, Refusal
from analysis.table.runs_file import CHECKPOINTS

SHAPE = ("n_layer", "n_embd", "n_head")
EQUAL = 1e-12
"""Relative differences of loss below this are rounding."""
NUMERIC = (
    "n_layer", "n_embd", "n_head", "params_total", "params_non_embedding", "params_blocks", "n_tokens", "unique_tokens", "epochs", "lr",
    "batch_size", "weight_decay", "dropout", "block_size", "val_loss_se", "train_loss", "ms_per_step", "tokens_per_s", "flops",
    "peak_memory_bytes", "loss_floor", "wall_s", "vocab_size", "ms_exclusive", "is_branch",
)  # fmt: skip

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Configurations:
    """Configuration means, and the seeds behind them.

    Args:
        config_id: shape (k,), sorted by size.
        columns: numeric columns by name, each of shape (k,): means over the configuration's rows; NaN where absent. Holds `aspect` and
            `head_dim` as well.
        loss: mean validation loss over seeds, nats, shape (k,).
        n_seeds: distinct seeds, shape (k,).
        sweeps: names of the sweeps that hold each configuration.
        cell_config: index into the configurations of each (configuration, seed) cell, shape (m,).
        cell_seed: its seed, shape (m,).
        cell_loss: its loss in nats, shape (m,).
        repeat_sd: standard deviation between runs of equal configuration and seed, nats; None without such runs.
    """

    config_id: NDArray[Any]
    columns: dict[str, Floats]
    loss: Floats
    n_seeds: Ints
    sweeps: tuple[tuple[str, ...], ...]
    cell_config: Ints
    cell_seed: Ints
    cell_loss: Floats
    repeat_sd: float | None = None

    def __len__(self) -> int:
        return len(self.config_id)

    def losses(self, index: int) -> list[float]:
        """Losses of one configuration, one per seed in the order of the seeds."""
        return [float(x) for x in self.cell_loss[self.cell_config == index]]

    def log_means(self) -> Floats:
        """Mean log loss of each configuration, (k,)."""
        return np.bincount(self.cell_config, weights=np.log(self.cell_loss)) / self.n_seeds

    def log_deviations(self) -> Floats:
        """Log loss of each cell less that mean, (m,)."""
        return np.log(self.cell_loss) - self.log_means()[self.cell_config]

    def take(self, indices: Any) -> Configurations:
        """The chosen configurations (indices or mask), with their cells."""
        chosen = np.arange(len(self))[indices]
        place = np.full(len(self), -1)
        place[chosen] = np.arange(len(chosen))
        cells = place[self.cell_config] >= 0
        return Configurations(
            self.config_id[chosen], {k: v[chosen] for k, v in self.columns.items()}, self.loss[chosen], self.n_seeds[chosen],
            tuple(self.sweeps[i] for i in chosen), place[self.cell_config[cells]], self.cell_seed[cells], self.cell_loss[cells],
            self.repeat_sd,
        )  # fmt: skip


def average(trials: pd.DataFrame) -> Configurations:
    """Average repeats within a seed, then seeds within a configuration; configurations sorted by size, then id."""
    alone = trials["ms_per_step"].astype(float).where(trials["exclusive_timing"].fillna(False).astype(bool))
    # Warm-up, stable, decay: the decay branches of one stable phase are trials of several n_tokens that share most of their run.
    # Runs of elsewhere may be checkpoints, which share even more.
    branch = trials["schedule"].isin(("wsd", CHECKPOINTS)).astype(float)
    keyed = trials.assign(config_id=trials["config_id"].astype(str), ms_exclusive=alone, is_branch=branch)
    cells = keyed.groupby(["config_id", "seed"], sort=True)["val_loss"].agg(["mean", "count", "var"]).reset_index()
    rows = keyed.groupby("config_id", sort=True)[list(NUMERIC)]
    low = rows.min()
    numeric = rows.mean().where(low != rows.max(), low).astype(float)  # three times .1 has a mean of its own, and would be another recipe
    ids = numeric.index.to_numpy(dtype=object)
    order = np.lexsort((np.arange(len(ids)), numeric["n_tokens"], numeric["params_total"], numeric["params_non_embedding"]))
    rank = np.empty(len(ids), dtype=np.int64)
    rank[order] = np.arange(len(ids))
    cell_config = rank[np.searchsorted(ids.astype(str), cells["config_id"].to_numpy(dtype=str))]
    by_config = np.argsort(cell_config, kind="stable")
    cell_config, cell_loss = cell_config[by_config], cells["mean"].to_numpy(dtype=float)[by_config]
    n_seeds = np.bincount(cell_config, minlength=len(ids))
    columns = {name: numeric[name].to_numpy()[order] for name in NUMERIC}
    columns["aspect"] = columns["n_embd"] / columns["n_layer"]
    columns["head_dim"] = columns["n_embd"] / columns["n_head"]
    loss = np.bincount(cell_config, weights=cell_loss, minlength=len(ids)) / np.maximum(n_seeds, 1)
    seeds = cells["seed"].to_numpy(dtype=np.int64)[by_config]
    sweeps = _sweep_names(keyed, ids[order])
    return Configurations(ids[order], columns, loss, n_seeds, sweeps, cell_config, seeds, cell_loss, _repeat_sd(cells))


def _repeat_sd(cells: pd.DataFrame) -> float | None:
    repeated = cells[cells["count"] > 1]
    if repeated.empty:
        return None
    weight = repeated["count"] - 1
    return float(np.sqrt((repeated["var"] * weight).sum() / weight.sum()))


def _sweep_names(trials: pd.DataFrame, ids: NDArray[Any]) -> tuple[tuple[str, ...], ...]:
    """Sweeps of each configuration: the union over its rows."""
    named = trials[["config_id", "sweeps"]].dropna(subset=["sweeps"]).explode("sweeps").dropna().drop_duplicates()
    found: dict[str, list[str]] = {}
    for config, sweep in zip(named["config_id"], named["sweeps"], strict=True):
        found.setdefault(str(config), []).append(str(sweep))
    return tuple(tuple(found.get(str(config), ())) for config in ids)


def whole(value: float) -> int | None:
    """A column's value as a whole number, or None where the runs do not have it."""
    return int(value) if np.isfinite(value) else None


# ---- noise ----


@dataclass(frozen=True)
class Noise:
    """The noise floor, all in nats.

    Args:
        seed_sd: standard deviation of one trial between seeds, pooled within configurations.
        df: its degrees of freedom.
        low, high: its chi-square interval.
        difference_sd: standard deviation of one trial in comparisons of configurations: without what a seed does to all configurations
            alike where every configuration ran the same seeds (two-way additive model), else `seed_sd`.
        difference_df: its degrees of freedom.
        paired: whether `difference_sd` removes common seed effects.
        n_seeds: seeds of the typical (median) configuration.
        detectable: smallest difference between the means of two configurations with `n_seeds` seeds that is larger than noise at LEVEL.
        evaluation_se: median standard error of a val_loss over the validation windows, shared by all trials, or None.
        repeat_sd: standard deviation of runs with equal configuration and seed, or None.
    """

    seed_sd: float
    df: int
    low: float
    high: float
    difference_sd: float
    difference_df: int
    paired: bool
    n_seeds: int
    detectable: float
    evaluation_se: float | None
    repeat_sd: float | None

    def half_width(self, *n_seeds: float) -> float:
        """Half width of the LEVEL interval of a contrast of independent means with so many seeds each (nats)."""
        return t_quantile(self.difference_df) * self.standard_error(*n_seeds)

    def standard_error(self, *n_seeds: float) -> float:
        """Standard error of a contrast with coefficients +-1 of means over so many seeds (nats)."""
        return float(self.difference_sd * np.sqrt(sum(1 / n for n in n_seeds)))

    def p_value(self, difference: float, *n_seeds: float) -> float:
        """Two-sided p of a difference of zero (Student t)."""
        return t_p_value(difference / self.standard_error(*n_seeds), self.difference_df)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**self.__dict__, "level": LEVEL, "unit": NATS}


def measure_noise(cells: Configurations) -> Noise | Refusal:
    """Pool the variance between seeds within configurations; refused where no configuration has two seeds."""
    within = cells.cell_loss - cells.loss[cells.cell_config]
    df = int(np.sum(cells.n_seeds - 1)) if len(cells) else 0
    evaluation = cells.columns["val_loss_se"] if len(cells) else np.array([])
    evaluation_se = float(np.nanmedian(evaluation)) if np.isfinite(evaluation).any() else None
    sd, reason = float(np.sqrt(np.sum(within**2) / max(df, 1))), ""
    if df < 1:
        reason = "every configuration was trained with one seed, so the noise between seeds is not measured; run at least two seeds of some"
    elif sd <= EQUAL * float(np.mean(cells.loss)):
        reason = (
            "all seeds of a configuration have the same loss, so the noise between seeds is not measured; "
            "see that the column seed names the seed each trial was really trained with"
        )
    if reason:
        known = {"evaluation_se": evaluation_se, "repeat_sd": cells.repeat_sd}
        return Refusal(Code.ONE_SEED, reason, {k: v for k, v in known.items() if v is not None})
    low, high = (sd * np.sqrt(df / special.chdtri(df, tail)) for tail in ((1 - LEVEL) / 2, 1 - (1 - LEVEL) / 2))
    paired = _paired_noise(cells)
    difference_sd, difference_df = paired or (sd, df)
    n_seeds = int(np.median(cells.n_seeds[cells.n_seeds > 1]))
    detectable = t_quantile(difference_df) * difference_sd * np.sqrt(2 / n_seeds)
    return Noise(
        sd, df, float(low), float(high), difference_sd, difference_df, paired is not None, n_seeds, float(detectable), evaluation_se,
        cells.repeat_sd,
    )  # fmt: skip


def _paired_noise(cells: Configurations) -> tuple[float, int] | None:
    """Residual sd and df of loss = configuration + seed, over configurations that ran every seed; None where that is not the design."""
    seeds = np.unique(cells.cell_seed)
    complete = cells.n_seeds == len(seeds)
    if len(seeds) < 2 or complete.sum() < 3 or complete.mean() < 0.8:
        return None
    block = np.array(cells.cell_loss[complete[cells.cell_config]]).reshape(-1, len(seeds))
    residual = block - block.mean(1, keepdims=True) - block.mean(0, keepdims=True) + block.mean()
    df = (block.shape[0] - 1) * (block.shape[1] - 1)
    paired_sd = float(np.sqrt(np.sum(residual**2) / df))
    return (paired_sd, df) if paired_sd > EQUAL * float(np.mean(cells.loss)) else None


# ---- quantiles (scipy.special: importing scipy.stats takes a second) ----


def t_quantile(df: float, level: float = LEVEL) -> float:
    """Two-sided Student t quantile: 1.96 for many degrees of freedom at 95 %."""
    return float(special.stdtrit(df, 0.5 + level / 2))


def t_p_value(t: float, df: float) -> float:
    """Two-sided p of Student's t."""
    return float(2 * special.stdtr(df, -abs(t)))


def f_p_value(f: float, df_model: float, df_error: float) -> float:
    """Upper tail of the F distribution."""
    return float(special.fdtrc(df_model, df_error, f))
