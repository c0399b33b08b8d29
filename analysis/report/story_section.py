"""The stories section: what the text measures say, and one prompt continued by every model, in order of size.

Reads an `Evidence` (samples are untrusted text); writes nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.estimate import is_refused, reason_of
from analysis.figures.style import short_count
from analysis.report import document as content
from analysis.report.document import Cell, Section, Story
from analysis.table.evidence import Evidence
from analysis.text.findings import final_samples, main_temperature

SHOWN = 900
"""Characters of a story shown side by side; the rest is in the samples table."""
MODELS = 16
"""Models shown side by side at most: the smallest, the largest, and evenly between."""
MEASURES = {
    "type_token_ratio": ("type-token ratio", "Distinct words per word at equal length; misspelling raises it too."),
    "mattr": ("moving-average ratio (25 words)", "Local variety, whatever the length. It says nothing about sense."),
    "distinct_2": ("distinct-2", "Distinct word pairs of a text over its pairs. Low in loops; random words score highest."),
    "loops": ("repetition loops", "Share of texts in which a phrase stands three times in a row: a failure of decoding."),
    "unseen_words": ("words never seen in training", "Misspelled or invented words. A good new name counts too."),
}
"""What a measure of the texts is called, and what it can and cannot say."""


def stories_section(evidence: Evidence) -> Section:
    """Text measures with their relation to loss, and stories side by side."""
    found = evidence.fits.get("stories")
    prompt, stories = side_by_side(evidence)
    if not stories and (is_refused(found) or not found):
        return Section("stories", "Stories", [Cell(content.sentence(reason_of(found)) or "No generated text was recorded.", "/stories")])
    refused = [Cell(reason_of(found), "/stories")] if reason_of(found) else refused_measures(found)
    prose, listings = measures(found) if isinstance(found, Mapping) and not is_refused(found) else ([], [])
    return Section("stories", "Stories", prose, (), listings, refused, prompt, stories)


def measures(found: Mapping[str, Any]) -> tuple[list[Cell], list[content.Listing]]:
    """The verdict on diversity and one row per measure: smallest and largest model, relation to loss, what it can and cannot say."""
    prose: list[Cell] = []
    known = {name: m for name, m in (found.get("measures") or {}).items() if not is_refused(m) and name in MEASURES}
    rows, heat, words = [], [], []
    for name, m in known.items():
        here = f"/stories/measures/{content.escape_pointer(name)}"
        title = Cell(MEASURES[name][0], here, MEASURES[name][1])
        rows.append([title, *[content.number(m.get(end), f"{here}/{end}") for end in ("smallest", "largest", "held_out", "spearman")]])
        heat.append([title, *[content.number(v, f"{here}/by_temperature/{t}") for t, v in m.get("by_temperature", {}).items()]])
        words.append([title, Cell(MEASURES[name][1])])
    if not rows:
        return prose, []
    columns = ["measure", "smallest model", "largest model", "held-out text", "Spearman with loss"]
    listings = [content.Listing("stories", "Measures of the generated text", columns, rows)]
    listings.append(content.Listing("stories_meaning", "What they can and cannot say", ["measure", ""], words))
    if len(heat[0]) > 2:
        heads = ["mean over all models", *[f"temperature {t}" for t in next(iter(known.values()))["by_temperature"]]]
        listings.append(content.Listing("temperature", "Sampling temperature as a factor", heads, heat))
    return prose, listings


def refused_measures(found: Any) -> list[Cell]:
    """Measures that could not be taken, one line for each reason."""
    reasons: dict[str, list[str]] = {}
    if isinstance(found, Mapping):
        for name, m in (found.get("measures") or {}).items():
            if is_refused(m):
                reasons.setdefault(reason_of(m), []).append(MEASURES.get(name, (name, ""))[0])
    lines = [content.visible(f"{', '.join(titles)}: {reason}.") for reason, titles in reasons.items()]
    return [Cell(line[:1].upper() + line[1:], "/stories/measures") for line in lines]


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
    return content.visible(prompt), _thin(list(chosen.values()))


def _size(trials: Mapping[str, Any], sample: Mapping[str, Any]) -> tuple[int, str]:
    trial = trials[sample["trial_id"]]
    return trial["params_non_embedding"], trial["config_id"]


def _story(trial: Mapping[str, Any], text: str) -> Story:
    size = f"{short_count(trial['params_non_embedding'])} parameters, loss {trial['val_loss']:.3f}"
    shown = content.visible(text)
    return Story(content.shape_name(trial), size, shown if len(shown) <= SHOWN else shown[:SHOWN] + " …")


def _thin(stories: Sequence[Story]) -> list[Story]:
    if len(stories) <= MODELS:
        return list(stories)
    step = (len(stories) - 1) / (MODELS - 1)
    return [stories[round(i * step)] for i in range(MODELS)]
