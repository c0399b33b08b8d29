"""The generated texts: what was measured of them, and one prompt continued by every model, in order of size.

Reads an `Evidence` (samples are untrusted text); writes nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.estimate import is_refused
from analysis.report.document import Cell, Column, Listing, Story, known, listing
from analysis.table.evidence import Evidence
from analysis.text.findings import final_samples, main_temperature
from analysis.wording import shape_name, short_count, visible

SHOWN = 900
"""Characters of a text shown side by side; the rest is in the samples table."""
MODELS = 16
"""Models shown side by side at most: the smallest, the largest, and evenly between."""


def side_by_side(evidence: Evidence) -> tuple[str, list[Story]]:
    """One prompt (the first that most trials continued, at the main temperature), continued by one seed of each configuration."""
    trials = {t["trial_id"]: t for t in evidence.trials}
    rows = final_samples(evidence)
    if not rows:
        return "", []
    main = main_temperature(rows)
    rows = [s for s in rows if s["temperature"] == main]
    counts: dict[str, int] = {}
    for s in rows:
        counts[s["prompt"]] = counts.get(s["prompt"], 0) + 1
    prompt = min(counts, key=lambda p: (-counts[p], p))
    chosen: dict[str, Story] = {}
    by_size = sorted(
        (s for s in rows if s["prompt"] == prompt), key=lambda s: (_size(trials, s), trials[s["trial_id"]]["seed"], s["index"])
    )
    for s in by_size:
        trial = trials[s["trial_id"]]
        if trial["config_id"] not in chosen:
            chosen[trial["config_id"]] = _story(trial, s["text"])
    return visible(prompt), _thin(list(chosen.values()))


def _size(trials: Mapping[str, Any], sample: Mapping[str, Any]) -> tuple[int, str]:
    trial = trials[sample["trial_id"]]
    return trial["params_non_embedding"], trial["config_id"]


def _story(trial: Mapping[str, Any], text: str) -> Story:
    size = f"{short_count(trial['params_non_embedding'])} parameters, loss {trial['val_loss']:.3f}"
    shown = visible(text)
    return Story(shape_name(trial), size, shown if len(shown) <= SHOWN else shown[:SHOWN] + " …")


def _thin(stories: Sequence[Story]) -> list[Story]:
    if len(stories) <= MODELS:
        return list(stories)
    step = (len(stories) - 1) / (MODELS - 1)
    return [stories[round(i * step)] for i in range(MODELS)]


# ---- measures ----

MEASURES = {
    "type_token_ratio": ("type-token ratio", "Distinct words per word at equal length; misspelling raises it too."),
    "mattr": ("moving-average ratio (25 words)", "Local variety, whatever the length. It says nothing about sense."),
    "distinct_2": ("distinct-2", "Distinct word pairs of a text over its pairs. Low in loops; random words score highest."),
    "loops": ("repetition loops", "Share of texts in which a phrase stands three times in a row: a failure of decoding."),
    "unseen_words": ("words never seen in training", "Misspelled or invented words. A good new name counts too."),
}
"""What a measure of the texts is called, and what it can and cannot say."""


def texts_listing(found: Mapping[str, Any]) -> Listing:
    """One row per measure: smallest and largest model, held-out text, relation to loss."""
    measured = {name: m for name, m in (found.get("measures") or {}).items() if not is_refused(m) and name in MEASURES}
    columns = [
        Column("smallest model", "smallest"),
        Column("largest model", "largest"),
        Column("held-out text", "held_out"),
        Column("rank correlation with loss", "spearman", known),
    ]
    made = listing("texts", "Measures of the generated text", measured, "/stories/measures", columns)
    rows = [[Cell(MEASURES[n][0], "", MEASURES[n][1]), *row, Cell(MEASURES[n][1])] for n, row in zip(measured, made.rows, strict=True)]
    return Listing(made.name, made.title, ["measure", *made.columns, "what it says"], rows)
