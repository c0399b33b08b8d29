"""How much each searched field matters for the loss: PED-ANOVA over the runs of a search.

PED-ANOVA (Watanabe, Bansal and Hutter 2023) compares where the best tenth of the runs lies with where all runs lie, field by field; the
shares sum to one. It needs several fields that vary and some dozen runs, and says nothing about single runs.

    found = of_recipe(table.trials)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.estimate import Code, Refusal

FIELDS = ("lr", "weight_decay", "warmup_steps", "batch_size")
FEWEST_RUNS = 20


def of_recipe(trials: pd.DataFrame) -> dict[str, Any] | None:
    """Importance of the searched fields of the recipe, each shape's runs compared among themselves; None where one field alone varies."""
    present = [f for f in FIELDS if f in trials and (trials[f] > 0).all() and trials[f].nunique() > 1]
    level = trials.groupby(["n_layer", "n_embd", "n_head"])["val_loss"].transform("min")
    return shares(trials, present, (trials["val_loss"] - level).to_numpy(dtype=float)) if len(present) > 1 else None


def shares(trials: pd.DataFrame, names: Sequence[str], loss: Any) -> dict[str, Any]:
    """Share of each field, on logarithmic scales, by PED-ANOVA.

    Args:
        trials: one row per run, with positive columns `names`.
        loss: what is to be low, shape (runs,).
    """
    varying = [name for name in names if trials[name].nunique() > 1]
    if len(varying) < 2:
        return Refusal(Code.NO_VARIATION, "importances need two searched fields, there " + _count(len(varying))).to_dict()
    if len(trials) < FEWEST_RUNS:
        return Refusal(Code.TOO_FEW_DF, f"importances need {FEWEST_RUNS} runs, there are {len(trials)}").to_dict()
    return {"method": "PED-ANOVA", "n_runs": len(trials), "shares": _ped_anova({n: trials[n].to_numpy(float) for n in varying}, loss)}


def _ped_anova(columns: Mapping[str, Any], loss: Any) -> dict[str, float]:
    import optuna
    from optuna.distributions import FloatDistribution
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="minimize")
    space = {name: FloatDistribution(float(np.min(v)), float(np.max(v)), log=True) for name, v in columns.items()}
    for i, value in enumerate(np.asarray(loss, dtype=float)):
        point = {name: float(v[i]) for name, v in columns.items()}
        study.add_trial(optuna.trial.create_trial(params=point, distributions=dict(space), value=float(value)))
    found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), normalize=True)
    return {name: float(found[name]) for name in columns}


def _count(n: int) -> str:
    return "is one" if n == 1 else f"are {n}"
