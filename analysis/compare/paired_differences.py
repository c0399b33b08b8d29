"""Two studies side by side: paired differences of equal shapes and seeds, the laws, and what differs between the recipes.

Reads two `Evidence`s; writes nothing (`analysis.compare.page` does).

    compare(load(Path("results/a")), load(Path("results/b")))["overall"]   # {'value': -0.02, 'low': -0.03, 'high': -0.01, ...}
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from analysis.estimate import part_of
from analysis.report import document as content
from analysis.table.evidence import Evidence

LEVEL = 0.95
RECIPE = (
    "data_name",
    "data_sha256",
    "n_tokens",
    "n_steps",
    "batch_size",
    "block_size",
    "base_width",
    "base_head_dim",
    "vocab_size",
    "lr",
    "weight_decay",
    "dropout",
    "schedule",
)
RECIPE_MORE = ("recipe_version", "precision", "device", "loss_floor")
"""Columns in which two studies can differ apart from the shapes."""


def compare(first: Evidence, second: Evidence) -> dict[str, Any]:
    """Paired differences (second less first) by shape and over all, and what else differs; JSON-ready.

    Pairs are trials of one shape and one seed in both studies. The interval over all shapes treats shapes as the independent units
    (Student's t on the shapes' mean differences); a shape's own interval pools the spread of its pairs over shapes.
    """
    names = study_names(first, second)
    pairs = _pairs(first.trials, second.trials)
    same_text = {t.get("data_sha256") for t in first.trials} == {t.get("data_sha256") for t in second.trials}
    caution = (
        "" if same_text else "The studies were scored on different texts, so a difference of loss mixes the text with everything else."
    )
    overall = _overall([row["difference"] for row in pairs])
    return {
        "studies": names,
        "pairs": pairs,
        "overall": overall,
        "sentence": _sentence(names, pairs, overall, caution),
        "caution": caution,
        "laws": [_law(name, study.fits) for name, study in zip(names, (first, second), strict=True)],
        "recipe": _recipe(first.trials, second.trials),
        "unpaired": [_unpaired(first, second), _unpaired(second, first)],
    }


def study_names(first: Evidence, second: Evidence) -> list[str]:
    names = [content.visible(str(study.fits.get("study") or study.results.name)) for study in (first, second)]
    return names if names[0] != names[1] else [f"{name} ({study.results.name})" for name, study in zip(names, (first, second), strict=True)]


def _shape(trial: Mapping[str, Any]) -> tuple[int, int, int]:
    return trial["n_layer"], trial["n_embd"], trial["n_head"]


def _pairs(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per shape that both studies hold with common seeds, small sizes first."""
    other = {(_shape(t), t["seed"]): t for t in second}
    shapes: dict[tuple[int, int, int], list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
    for t in first:
        if (_shape(t), t["seed"]) in other:
            shapes.setdefault(_shape(t), []).append((t, other[_shape(t), t["seed"]]))
    gaps = {shape: np.array([b["val_loss"] - a["val_loss"] for a, b in found]) for shape, found in shapes.items()}
    df = sum(len(g) - 1 for g in gaps.values())
    spread = np.sqrt(sum(float(((g - g.mean()) ** 2).sum()) for g in gaps.values()) / df) if df else None
    rows = []
    for shape, found in shapes.items():
        gap = gaps[shape]
        half = float(student.ppf((1 + LEVEL) / 2, df) * spread / np.sqrt(len(gap))) if spread is not None else None
        mean = float(gap.mean())
        rows.append({
            "n_layer": shape[0], "n_embd": shape[1], "n_head": shape[2], "params_non_embedding": found[0][0]["params_non_embedding"],
            "first": float(np.mean([a["val_loss"] for a, _ in found])), "second": float(np.mean([b["val_loss"] for _, b in found])),
            "n_pairs": len(found), "difference": mean,
            "low": None if half is None else mean - half, "high": None if half is None else mean + half,
            "verdict": "one pair each: no interval" if half is None else "larger than noise" if abs(mean) > half else "within noise",
        })  # fmt: skip
    return sorted(rows, key=lambda r: (r["params_non_embedding"], r["n_layer"], r["n_head"]))


def _overall(gaps: Sequence[float]) -> dict[str, Any]:
    if len(gaps) < 3:
        return {"refused": {"code": "too_few_pairs", "reason": f"an average difference needs 3 shapes in common, these are {len(gaps)}"}}
    mean, half = float(np.mean(gaps)), float(student.ppf((1 + LEVEL) / 2, len(gaps) - 1) * np.std(gaps, ddof=1) / np.sqrt(len(gaps)))
    return {"value": mean, "low": mean - half, "high": mean + half, "level": LEVEL, "method": "paired t over shapes", "n": len(gaps)}


def _sentence(names: Sequence[str], pairs: Sequence[Mapping[str, Any]], overall: Mapping[str, Any], caution: str) -> str:
    if not pairs:
        return f"{names[0]} and {names[1]} have no shape and seed in common, so no difference can be paired."
    if "refused" in overall:
        return f"{len(pairs)} shapes are in both studies; {overall['refused']['reason']}."
    verdict = "higher" if overall["low"] > 0 else "lower" if overall["high"] < 0 else "not distinguishable"
    numbers = content.spanned(overall["value"], overall["low"], overall["high"])
    claim = f"The loss of {names[1]} is {verdict} {'from' if verdict.startswith('not') else 'than'} that of {names[0]}"
    return f"{claim}: {numbers} nats on average over {overall['n']} shapes, paired by seed. {caution}".strip()


def _law(name: str, fits: Mapping[str, Any]) -> dict[str, Any]:
    fit = part_of(fits.get("fits"), str(fits.get("primary_fit"))) or {}
    return {
        "study": name,
        "law": fit.get("law"),
        "alpha": (fit.get("parameters") or {}).get("alpha"),
        "slope": fit.get("slope"),
        "n": fit.get("n_configurations"),
    }


def _recipe(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Columns whose values differ between the studies."""
    rows = []
    for column in (*RECIPE, *RECIPE_MORE):
        values = [sorted({str(t.get(column)) for t in trials if t.get(column) is not None}) for trials in (first, second)]
        if values[0] != values[1]:
            rows.append({"column": column, "first": ", ".join(values[0][:6]), "second": ", ".join(values[1][:6])})
    return rows


def _unpaired(one: Evidence, other: Evidence) -> int:
    return len({_shape(t) for t in one.trials} - {_shape(t) for t in other.trials})
