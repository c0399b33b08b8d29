"""Whether a win at equal size holds at the next size: the trials that tell, and what they cost.

made = next_size(table.load(results)); suggest.write(results / "report", made)  # python -m study.run --from-suggestion RESULTS trains them
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.estimate import Refusal
from analysis.findings.levers import Study as Asked
from analysis.findings.verdict import EqualSize, equal_size
from analysis.next_trials.candidates import Clock
from analysis.next_trials.suggest import suggestion
from analysis.table import configurations as replicates
from analysis.table.load import Table
from study.plan.suggestion import study_of
from study.spec import Study, changed
from study.sweeps import nearest_shape

SWEEP = "next_size"
LEAST, MOST = 2.0, 4.0
"""Factor from the largest size compared to the next: as between the study's own sizes, within these."""


def next_size(table: Table) -> dict[str, Any]:
    """Winner and loser at equal size, each at its aspect and head width, at the next size, with the study's seeds; for suggestion.json.

    Raises:
        ValueError: the results are not of a study that can be continued, or no shapes of equal size were compared.
    """
    if not table.study.get("study") or table.trials.empty:
        raise ValueError(f"{table.path} holds no study with usable trials that could be continued; give the folder of a run")
    study = study_of(table.study["study"], table.path / "study.json")
    cells = replicates.average(table.trials)
    asked = Asked(cells, replicates.measure_noise(cells))
    compared = [equal_size(asked, n, []) for n in reversed(asked.lengths())]  # the longest length that has a comparison
    found = next((own for own in compared if isinstance(own, EqualSize)), compared[0])
    if isinstance(found, Refusal):
        raise ValueError(found.reason)
    sizes = np.unique(cells.columns["params_non_embedding"])
    below = sizes[sizes < 0.9 * found.winner["params_non_embedding"]]
    factor = float(np.clip(found.winner["params_non_embedding"] / below[-1] if len(below) else LEAST, LEAST, MOST))
    clock = Clock.of(table)
    trials = [_trial(study, clock, found, shape, factor, seed) for shape in (found.winner, found.loser) for seed in study.seeds]
    return suggestion(table, study, trials, device_hours=sum(trial["device_hours"] for trial in trials))


def _trial(study: Study, clock: Clock, found: EqualSize, shape: Mapping[str, Any], factor: float, seed: int) -> dict[str, Any]:
    """One trial as suggestion.json holds it."""
    target = factor * found.winner["params_non_embedding"]
    near, error = nearest_shape(target, shape["n_embd"] / shape["n_layer"], shape["n_embd"] // shape["n_head"])
    if not near:
        raise ValueError(f"no shape of {target:,.0f} parameters has the aspect of {shape['n_layer']}x{shape['n_embd']}")
    change = {**near, "n_tokens": found.n_tokens}
    made, train = changed(study, change, SWEEP)
    return {
        "change": change,
        "seed": seed,
        "sweeps": [SWEEP],
        "label": f"{made.n_layer}x{made.n_embd}h{made.n_head}",
        "params_non_embedding": made.params_non_embedding,
        "size_error": error,
        "device_hours": clock.hours(made, train),
    }
