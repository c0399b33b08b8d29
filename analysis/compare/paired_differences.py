"""Two studies side by side: paired differences of equal shapes and lengths, one verdict over all, and what differs between the recipes.

Reads two tables; writes nothing (`analysis.compare.page` does).

    against(load(Path("results/change")), load(Path("results/base"))).outcome     # Outcome.BETTER
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
import pandas as pd

from analysis.estimate import SIZE, Code, Estimate, Refusal, Verdict, judged, part_of
from analysis.findings.contrast import Family, Pair
from analysis.table.configurations import Configurations, average, t_quantile
from analysis.table.load import Table
from analysis.table.recipe import one_recipe

KEY = ("n_layer", "n_embd", "n_head", "n_tokens")
FEWEST_SHAPES = 3
"""Shapes of one seed each that are needed for an interval over shapes."""
RECIPE = (
    "data_name", "data_sha256", "n_steps", "batch_size", "block_size", "base_width", "base_head_dim", "base_depth", "vocab_size", "lr",
    "weight_decay", "dropout", "schedule", "recipe_version", "precision", "device", "loss_floor", "tokenizer", "module", "extra",
)  # fmt: skip
"""Columns in which two studies can differ apart from shapes and lengths."""


class Outcome(IntEnum):
    """Exit codes of `python -m analysis RESULTS --against BASELINE`: what a loop that keeps or drops a change needs."""

    BETTER = 0
    WITHIN_NOISE = 3
    WORSE = 4
    CANNOT_TELL = 5


@dataclass(frozen=True)
class Paired:
    """Configurations that two studies share.

    Args:
        cells: configurations of both.
        pairs: (of the first study, of the second) for each shape and length in both, smallest first.
        lone: shapes and lengths that only the first and only the second has.
    """

    cells: Configurations
    pairs: tuple[Pair, ...]
    lone: tuple[int, int]

    @staticmethod
    def of(first: pd.DataFrame, second: pd.DataFrame) -> Paired:
        """Match the trials of one recipe each."""
        parts = [own[one_recipe(own)] for own in (first, second)]
        marked = [own.assign(config_id=prefix + own["config_id"].astype(str)) for prefix, own in zip("ab", parts, strict=True)]
        cells = average(pd.concat(marked, ignore_index=True))
        keys = list(zip(*(cells.columns[c].tolist() for c in KEY), strict=True))
        sides = [{key: i for i, key in enumerate(keys) if str(cells.config_id[i])[0] == prefix} for prefix in "ab"]
        common = [key for key in sides[0] if key in sides[1]]
        return Paired(cells, tuple((sides[0][k], sides[1][k]) for k in common), (len(sides[0]) - len(common), len(sides[1]) - len(common)))

    def overall(self) -> Estimate | Refusal:
        """Loss of the first less that of the second, mean over shapes: from seeds, else from the scatter of one-seed shapes."""
        if not self.pairs:
            return Refusal(Code.UNMATCHED, "the studies have no shape of equal length in common, so no difference can be paired")
        found = Family.of(self.cells, self.pairs).contrast(self.pairs)
        if found.low is not None:
            return found
        if len(self.pairs) < FEWEST_SHAPES:
            reason = f"with one seed a difference needs {FEWEST_SHAPES} shapes in common, these are {len(self.pairs)}; add seeds or shapes"
            return Refusal(Code.ONE_SEED, reason)
        gaps = [float(self.cells.loss[i] - self.cells.loss[j]) for i, j in self.pairs]
        half = t_quantile(len(gaps) - 1) * float(np.std(gaps, ddof=1)) / len(gaps) ** 0.5
        low, high = found.value - half, found.value + half
        return replace(found, low=low, high=high, method="paired t over shapes", verdict=judged(low, high, Verdict.WITHIN_NOISE))


@dataclass(frozen=True)
class Judgement:
    """Whether one study is better than another: gain in nats (positive: lower loss than the baseline), or why it cannot be told."""

    gain: Estimate | Refusal
    n_shapes: int = 0

    @property
    def outcome(self) -> Outcome:
        """The verdict on the gain."""
        if isinstance(self.gain, Refusal):
            return Outcome.CANNOT_TELL
        return {Verdict.GAIN: Outcome.BETTER, Verdict.LOSS: Outcome.WORSE}.get(self.gain.verdict, Outcome.WITHIN_NOISE)


def against(results: Table, baseline: Table) -> Judgement:
    """Judge a study by another one, over the shapes and lengths that both trained."""
    for table in (results, baseline):
        if table.trials.empty:
            return Judgement(Refusal(Code.NO_TRIALS, f"{table.path} holds no usable trial"))
    texts = [set(table.trials["data_sha256"].dropna()) for table in (results, baseline)]
    if texts[0] != texts[1]:
        reason = "the studies were scored on different texts, so a difference of loss says nothing about the change"
        return Judgement(Refusal(Code.UNMATCHED, reason))
    paired = Paired.of(baseline.trials, results.trials)
    return Judgement(paired.overall(), len(paired.pairs))


def compare(first: Table, second: Table, fits: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {})) -> dict[str, Any]:
    """Paired differences (second less first) by shape and over all, and what else differs; JSON-ready.

    Losses are in nats per token, or in bits per byte where the studies split their text into different tokens.
    """
    trials = [first.trials, second.trials]
    if in_bits := _same(first.trials, second.trials, "tokenizer") is False and all(own["val_bpb"].notna().all() for own in trials):
        trials = [own.assign(val_loss=own["val_bpb"]) for own in trials]
    paired = Paired.of(*trials)
    family = Family.of(paired.cells, paired.pairs)
    overall = paired.overall()
    return {
        "studies": names(first, second),
        "pairs": [_row(paired.cells, family, pair) for pair in paired.pairs],
        "overall": (overall if isinstance(overall, Refusal) else turned(overall)).to_dict(),
        "same_text": _same(first.trials, second.trials, "data_sha256"),
        "unit": "bits per byte" if in_bits else "nats",
        "laws": [_law(name, own) for name, own in zip(names(first, second), fits, strict=True)],
        "recipe": _recipe(first.trials, second.trials),
        "unpaired": list(paired.lone),
    }


def _same(first: pd.DataFrame, second: pd.DataFrame, column: str) -> bool | None:
    """Whether both have the same values in a column; None where one has none."""
    values = [set(own[column].dropna()) if column in own else set() for own in (first, second)]
    return values[0] == values[1] if all(values) else None


def names(first: Table, second: Table) -> list[str]:
    """Names of both studies, with their folders where these are equal."""
    own = [table.name for table in (first, second)]
    return own if own[0] != own[1] else [f"{table.name} ({table.path.name})" for table in (first, second)]


def turned(found: Estimate) -> Estimate:
    """A gain as a difference of losses."""
    low, high = (None if end is None else -end for end in (found.high, found.low))
    return replace(found, value=-found.value, low=low, high=high)


def _row(cells: Configurations, family: Family, pair: Pair) -> dict[str, Any]:
    found, (first, second) = turned(family.contrast([pair])), pair
    shape = {name: int(cells.columns[name][first]) for name in (*KEY, SIZE)}
    losses = {"first": float(cells.loss[first]), "second": float(cells.loss[second])}
    ends = {"n_pairs": found.n, "difference": found.value, "low": found.low, "high": found.high, "verdict": str(found.verdict)}
    return shape | losses | ends


def _law(name: str, fits: Mapping[str, Any]) -> dict[str, Any]:
    fit = part_of(fits.get("fits"), str(fits.get("primary_fit"))) or {}
    alpha = (fit.get("parameters") or {}).get("alpha")
    return {"study": name, "law": fit.get("law"), "alpha": alpha, "slope": fit.get("slope"), "n": fit.get("n_configurations")}


def _recipe(first: pd.DataFrame, second: pd.DataFrame) -> list[dict[str, Any]]:
    """Columns whose values differ between the studies."""
    rows = []
    for column in RECIPE:
        values = [sorted({str(v) for v in trials[column].dropna().unique()}) for trials in (first, second)]
        if values[0] != values[1]:
            rows.append({"column": column, "first": ", ".join(values[0][:6]), "second": ", ".join(values[1][:6])})
    return rows
