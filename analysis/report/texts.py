"""The generated texts: what was measured of them, and one prompt continued by every model, in order of size.

Reads an `Evidence` (samples are untrusted text); writes nothing.
"""

from collections import Counter

from analysis.estimate import Fits, is_refused
from analysis.report.document import Cell, Column, Listing, Story, known, listing
from analysis.table.evidence import Evidence
from analysis.text.findings import final_samples, main_temperature
from analysis.wording import at_most, shape_name, short_count, visible

SHOWN = 900
"""Characters of a text shown side by side; the rest is in the samples table."""
MODELS = 16
"""Models shown side by side at most: the smallest, the largest, and evenly between."""


def side_by_side(evidence: Evidence) -> tuple[str, list[Story]]:
    """One prompt (the first that most trials continued, at the main temperature), continued by one seed of each configuration."""
    trials, rows = {t["trial_id"]: t for t in evidence.trials}, final_samples(evidence)
    if not rows:
        return "", []
    main = main_temperature(rows)
    counts = Counter(s["prompt"] for s in rows if s["temperature"] == main)
    prompt = min(counts, key=lambda p: (-counts[p], p))
    own = [(trials[s["trial_id"]], s) for s in rows if s["temperature"] == main and s["prompt"] == prompt]
    own.sort(key=lambda pair: (*(pair[0][name] for name in ("params_non_embedding", "config_id", "seed")), pair[1]["index"]))
    chosen: dict[str, Story] = {}
    for trial, sample in own:
        size = f"{short_count(trial['params_non_embedding'])} parameters, loss {trial['val_loss']:.3f}"
        text = visible(sample["text"])
        story = Story(shape_name(trial), size, text if len(text) <= SHOWN else text[:SHOWN] + " …")
        chosen.setdefault(trial["config_id"], story)
    return visible(prompt), at_most(list(chosen.values()), MODELS)


# ---- measures ----

MEASURES = {
    "type_token_ratio": ("type-token ratio", "Distinct words per word at equal length; misspelling raises it too."),
    "mattr": ("moving-average ratio (25 words)", "Local variety, whatever the length. It says nothing about sense."),
    "distinct_2": ("distinct-2", "Distinct word pairs of a text over its pairs. Low in loops; random words score highest."),
    "loops": ("repetition loops", "Share of texts in which a phrase stands three times in a row: a failure of decoding."),
    "unseen_words": ("words never seen in training", "Misspelled or invented words. A good new name counts too."),
}
"""What a measure of the texts is called, and what it can and cannot say."""


def texts_listing(fits: Fits) -> Listing:
    """One row per measure: smallest and largest model, held-out text, relation to loss."""
    columns: list[Column] = [
        ("measure", None, lambda name: Cell(MEASURES[name][0], "", MEASURES[name][1])),
        ("smallest model", "smallest"),
        ("largest model", "largest"),
        ("held-out text", "held_out"),
        ("rank correlation with loss", "spearman", known),
        ("what it says", None, lambda name: Cell(MEASURES[name][1])),
    ]
    return listing(
        fits, "/stories/measures", "texts", "Measures of the generated text", columns, keep=lambda measure: not is_refused(measure)
    )
