"""What the answer needs beside the levers: the best model, which shape wins at equal size, whether shape matters, how far to trust it.

Shape is called from kappa, the exponent of shape at equal size, never from how many comparisons are clear: configurations scatter around
any smooth law, and of many comparisons some are clear by that scatter alone. At equal size two configurations are compared, and only those.

    found = shape(study); found["verdict"]     # wide, deep, size_only, optimum or not_told
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.estimate import PER_DOUBLING, SIZE, Code, Estimate, Refusal, Verdict, judged
from analysis.findings.contrast import Family
from analysis.findings.levers import Lever, Study, best
from analysis.findings.lines import at_length
from analysis.findings.sweeps import ends, mean_ends, shape_of
from analysis.fits.shape_law import ShapeFit
from analysis.table.configurations import Configurations, Noise, t_quantile
from analysis.table.load import SAME_SIZE, Table
from analysis.table.recipe import TUNED
from study import records

NEARLY = 0.15
"""Relative step of N up to which sizes are nearly equal, where none are equal within SAME_SIZE."""
WORTH_AT_MOST = 30.0
"""A difference worth more than this factor in parameters is beyond what the sizes of a study can tell."""
FAST = 3.0
"""Noise floors per doubling of text from which a loss still falls fast."""


@dataclass(frozen=True)
class EqualSize:
    """The best shape of the largest size that was trained in several shapes, against the one least like it."""

    winner: dict[str, Any]
    loser: dict[str, Any]
    n_tokens: int
    difference: Estimate
    noise_ratio: float | None
    worth_in_parameters: Estimate | Refusal


# ---- the best model ----


def named(cells: Configurations, i: int) -> dict[str, Any]:
    """A configuration as the answer names it."""
    return {"config_id": str(cells.config_id[i]), **shape_of(cells, i)}


def best_model(study: Study) -> dict[str, Any]:
    """The configuration of lowest mean loss among all, with the interval of its mean."""
    cells = study.cells
    i = best(cells, range(len(cells)))
    loss = float(cells.loss[i])
    known = {"n_tokens": int(cells.columns["n_tokens"][i]), "val_loss": loss, **mean_ends(loss, int(cells.n_seeds[i]), study.noise)}
    return named(cells, i) | known


# ---- shape ----


def shape(study: Study, levers: Sequence[Lever]) -> dict[str, Any]:
    """The law, the verdict and the comparison at equal size of the longest length that has them, and of each length by itself."""
    rows: list[dict[str, Any]] = [
        {"n_tokens": n, "law": study.laws[n], "verdict": verdict(study.laws[n], study, n), "equal_size": equal_size(study, n, levers)}
        for n in study.lengths()
        if study.shared()
    ]
    if not rows:
        reason = "every configuration has a training length of its own, so shapes were not compared; train several shapes at equal length"
        refused = Refusal(Code.UNMATCHED, reason)
        return {"law": refused, "verdict": "not_told", "equal_size": refused, "by_length": []}
    # a shorter length's verdict says nothing of the longest
    told, compared = ([row for row in rows if not isinstance(row[key], Refusal)] or rows for key in ("law", "equal_size"))
    return told[-1] | {"equal_size": compared[-1]["equal_size"], "by_length": rows}


def verdict(law: ShapeFit | Refusal, study: Study, n_tokens: int) -> str:
    """What kappa says of shape at equal size; size_only only where all that its interval allows is within the noise."""
    if isinstance(law, Refusal):
        return "not_told"
    if isinstance(law.optimum, Estimate):
        return "optimum"
    if isinstance(law.optimum, Refusal):
        return {"wider": "wide", "deeper": "deep"}.get(str((law.optimum.bound or {}).get("beyond")), "not_told")
    if isinstance(law.kappa, Estimate):
        return _of_kappa(law.kappa, law, study, n_tokens)
    if isinstance(law.a, Refusal) or isinstance(law.b, Refusal):
        return "not_told"
    low, high = _ends(law.b)  # local exponents, where they move with each other
    a_low, a_high = _ends(law.a)
    return "wide" if low > 2 * a_high else "deep" if high < 2 * a_low else "not_told"


def _ends(own: Estimate) -> tuple[float, float]:
    """The interval, infinite where it is open."""
    return -math.inf if own.low is None else own.low, math.inf if own.high is None else own.high


def _of_kappa(kappa: Estimate, law: ShapeFit, study: Study, n_tokens: int) -> str:
    low, high = _ends(kappa)
    if low > 0 or high < 0:
        return "wide" if low > 0 else "deep"
    members = at_length(study.cells, n_tokens)
    span = float(np.ptp(np.log(study.cells.columns["aspect"][members])))
    floor = law.E.value if isinstance(law.E, Estimate) else 0.0
    most = max(-low, high) / 3 * span * (float(np.median(study.cells.loss[members])) - floor)
    return "size_only" if isinstance(study.noise, Noise) and most <= study.noise.detectable else "not_told"


# ---- equal size ----


def equal_size(study: Study, n_tokens: int, levers: Sequence[Lever]) -> EqualSize | Refusal:
    """The comparison of one length: chosen by design (the largest size, the shapes least alike), so that luck does not choose it."""
    cells = study.cells
    members = at_length(cells, n_tokens)
    if not np.isfinite(cells.columns["aspect"][members]).any():
        return Refusal(Code.MISSING, "the runs have no n_layer and n_embd, so no shapes were compared at equal size; give the columns")
    size, logs = cells.columns[SIZE], np.log(cells.columns["aspect"])
    falling = sorted(members, key=lambda i: -float(size[i]))
    groups = ([i for i in members if size[top] / (1 + near) <= size[i] <= size[top]] for near in (SAME_SIZE, NEARLY) for top in falling)
    group = next((group for group in groups if len(np.unique(logs[group])) > 1), None)
    if not group:
        return Refusal(Code.UNMATCHED, "no two shapes of nearly equal size were trained; `matched` trains several shapes of each size")
    winner = best(cells, group)
    loser = max(group, key=lambda i: abs(float(logs[i] - logs[winner])))
    pairs = [(i, winner) for i in group if i != winner]
    if len(pairs) == 1:  # alone its seeds say little: its scatter is that of all neighbours in size at this length
        pairs = list(pairwise(sorted(members, key=lambda i: float(size[i]))))
    difference = Family.of(cells, pairs).contrast([(loser, winner)])
    ratio = None if isinstance(study.noise, Refusal) else abs(difference.value) / study.noise.detectable
    worth = _worth(difference, _doubling(study, loser, n_tokens, levers, difference.value))
    return EqualSize(named(cells, winner), named(cells, loser), n_tokens, difference, ratio, worth)


def _doubling(study: Study, i: int, n_tokens: int, levers: Sequence[Lever], difference: float) -> Estimate | Refusal:
    """What a doubling of parameters buys from a configuration on: by the law half the way that the difference needs, else by the levers."""
    law = study.laws.get(n_tokens)
    if not isinstance(law, ShapeFit):
        rows = [row.gain for row in levers if row.factor == "params" and row.n_tokens == n_tokens]
        return rows[-1] if rows else Refusal(Code.MISSING, "what a doubling of parameters buys is not known")
    depth, width = (float(study.cells.columns[name][i]) for name in ("n_layer", "n_embd"))
    here = law.gain("params", depth, width)
    if isinstance(here, Refusal) or here.value <= 0:
        return here
    ahead = 2 ** min(difference / here.value / 6, 1.0)  # a doubling of parameters is a third of one in depth and in width each
    return law.gain("params", depth * ahead, width * ahead)


def _worth(difference: Estimate, doubling: Estimate | Refusal) -> Estimate | Refusal:
    """Factor of parameters that buys as much as a difference; the interval joins the worst ends of both."""
    if isinstance(doubling, Refusal) or not doubling.low or not doubling.high or doubling.low <= 0:
        return Refusal(Code.MISSING, "what a doubling of parameters buys is not known, so the difference has no worth in parameters")
    if difference.low is None or difference.high is None or difference.low <= 0:
        return Refusal(Code.WIDE_INTERVAL, "a difference that is not clear of noise has no worth in parameters")
    low, value, high = difference.low / doubling.high, difference.value / doubling.value, difference.high / doubling.low
    if 2**high > WORTH_AT_MOST:
        reason = f"the difference may be worth more than {WORTH_AT_MOST:.0f} times the parameters, beyond the sizes that were trained"
        return Refusal(Code.EXTRAPOLATION, reason)
    return Estimate(2**value, 2**low, 2**high, "times the parameters", difference.n, f"difference over {doubling.method}")


# ---- trust ----


def trust(table: Table, trials: pd.DataFrame, study: Study, levers: Sequence[Lever], misfit: float | None) -> dict[str, Any]:
    """Seeds, learning-rate rule, epochs, how steeply losses still fall, misfit, noise, and what lies far from everything else.

    Args:
        trials: rows of the one recipe.
        misfit: relative scatter around the size law, used where the law in depth and width is refused.
    """
    cells, laws = study.cells, [law for _, law in sorted(study.laws.items()) if isinstance(law, ShapeFit)]
    noise = study.noise if isinstance(study.noise, Noise) else None
    epochs = cells.columns["epochs"]
    falling = still_falling(table, trials, levers)
    by_law = any(row.source == "law" and isinstance(row.gain, Estimate) for row in levers)
    return {
        "seeds": int(np.median(cells.n_seeds)),
        "lr_rule": lr_rule(trials),
        "lr_status": sorted({str(status) for status in trials["lr_status"].dropna()}),
        "epochs": float(np.nanmax(epochs)) if np.isfinite(epochs).any() else None,
        "still_falling": falling,
        # the ranking may change with longer training where a doubling of text buys several times what can be told from noise
        "falls_fast": falling.value > FAST * noise.detectable if noise and isinstance(falling, Estimate) else None,
        "misfit": laws[-1].residual_sd if laws else misfit if by_law else None,
        "noise_sd": noise and noise.seed_sd,
        "detectable": noise and noise.detectable,
        "outliers": [outlier for law in laws for outlier in law.outliers],
    }


def lr_rule(trials: pd.DataFrame) -> str:
    """one, by_size, mup, completep, or searched (any shape has a rate that a search found)."""
    if trials["lr_status"].isin(TUNED).any():
        return "searched"
    for column, rule in (("base_depth", "completep"), ("base_width", "mup")):
        if column in trials and (trials[column].fillna(0) > 0).any():
            return rule
    return "one" if trials["lr"].nunique() <= 1 else "by_size"


def still_falling(table: Table, trials: pd.DataFrame, levers: Sequence[Lever]) -> Estimate | Refusal:
    """Nats per doubling of text: between the two longest lengths where shapes share them, else over the last half of each curve.

    Over one curve the learning rate falls as well, so that its last half promises more than longer training will keep.
    """
    gains = [row.gain for row in levers if row.factor == "n_tokens" and row.at == "centre" and isinstance(row.gain, Estimate)]
    if gains:
        return replace(gains[-1], method="lengths")
    falls = _falls(table, trials)
    if not falls:
        return Refusal(Code.MISSING, "no validation curves and one training length, so how steeply losses still fall is not known")
    value, n = float(np.mean(falls)), len(falls)
    own = ends(value, t_quantile(n - 1) * float(np.std(falls, ddof=1)) / math.sqrt(n) if n > 1 else None)
    return Estimate(value, **own, unit=PER_DOUBLING, n=n, method="curves", verdict=judged(own["low"], own["high"], Verdict.NOT_TOLD))


def _falls(table: Table, trials: pd.DataFrame) -> list[float]:
    """Loss at half the steps less the last one, mean over the seeds of each configuration of the longest length."""
    longest = trials[trials["n_tokens"] == trials["n_tokens"].max()]
    curves = table.curves
    known = curves[curves["trial_id"].isin(set(longest["trial_id"])) & curves["val_loss"].notna() & (curves["step"] > 0)]
    config: Mapping[Any, Any] = dict(zip(longest["trial_id"], longest["config_id"], strict=True))
    found: dict[Any, list[float]] = {}
    for trial, curve in known.groupby("trial_id"):
        steps, loss = (curve.sort_values("step")[c].to_numpy(dtype=float) for c in ("step", "val_loss"))
        if steps[0] <= steps[-1] / 2:
            middle = float(np.interp(math.log(steps[-1] / 2), np.log(steps), loss))
            found.setdefault(config[trial], []).append(middle - float(loss[-1]))
    return [float(np.mean(own)) for own in found.values()]


# ---- what to do next ----


def next_step(table: Table, study: Study, found: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """The next command and why: seeds, then shapes of equal size, then length, then size.

    Args:
        found: the block `shape`.
        told: the block `trust`.
    """
    name, results, unmatched = table.name, table.path, isinstance(found["equal_size"], Refusal)
    why, command = "next_size", f"python -m analysis {results} --next-size"
    presets = {path.stem for path in (Path(records.__file__).parent / "presets").glob("*.yaml")}
    if isinstance(study.noise, Refusal):
        why, command = "seeds", f"python -m study.run {name} --seeds 1,2,3"
    elif unmatched:
        why, command = "equal_size", "python -m study.run matched"
    elif told["falls_fast"] and name != "horizon" and results.is_dir():
        why, command = "longer", "python -m study.run horizon"
    known = results.is_dir() and (why != "seeds" or name in presets)  # runs of elsewhere have no command of ours
    return {"command": command if known else None, "why": why, "seconds": None}
