"""What a study's generated texts say: every measure per configuration, with intervals over prompts, and its relation to loss.

Reads an `Evidence` and, where the data cache holds it, the training text; writes nothing. A sample begins where its prompt broke off and
ends where its length ran out, so half words at both ends are dropped.

    conclude(evidence)["measures"]["type_token_ratio"]["spearman"]   # {'value': -0.1, 'low': -0.7, 'high': 0.6, ...}
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri

from analysis.estimate import LEVEL
from analysis.table.evidence import Evidence
from analysis.text import diversity
from study.data import corpus as data
from study.spec import DataConfig

RESAMPLES = 1000
MOST_TRIALS = 240
"""With more trials, one seed of each configuration is measured."""
TRAINING_CHARS, HELD_OUT_CHARS = 6_000_000, 1_000_000
"""Characters of either text that are read at most."""
MOST_HELD_OUT = 300
"""Held-out texts that are measured at most."""
END = "<|endoftext|>"

Sample = Mapping[str, Any]
Scores = dict[int, float]
"""Number of a text in its list -> score."""

PER_TEXT: dict[str, Callable[[Sequence[str]], float]] = {
    "type_token_ratio": diversity.type_token_ratio,
    "mattr": diversity.mattr,
    "distinct_2": diversity.distinct_2,
    "loops": diversity.loops,
}


def conclude(evidence: Evidence, seed: int = 0) -> dict[str, Any]:
    """All measures of the generated text, as they stand under "stories" in fits.json.

    Returns:
        "measures": name -> smallest, largest, spearman, held_out, by_temperature, configurations; or a refusal in its place.
    """
    samples = final_samples(evidence)
    if not samples:
        return _refusal("no_samples", "no generated text was recorded")
    words = [words_of_sample(s) for s in samples]
    length = diversity.common_length(words)
    if not length:
        return _refusal("too_short", "the generated texts do not have 20 words in common; generate longer ones")
    cut = {key: own[:length] for key, own in enumerate(words) if len(own) >= length}
    trials = {t["trial_id"]: t for t in evidence.trials}
    texts = pd.DataFrame(samples)[["trial_id", "temperature", "prompt"]]
    texts["config_id"] = [trials[trial]["config_id"] for trial in texts["trial_id"]]
    reference, cold, rng = reference_text(evidence.results), main_temperature(samples), np.random.default_rng(seed)
    measures = {
        name: _measure(texts.assign(value=pd.Series(values, dtype=float)), trials, cold, rng)
        for name, values in score(cut, reference).items()
    }
    if isinstance(reference, Reference):
        held = dict(enumerate([own[:length] for own in reference.held_out if len(own) >= length][:MOST_HELD_OUT]))
        for name, values in score(held, reference).items() if held else ():
            measures[name]["held_out"] = float(np.mean(list(values.values())))
    else:
        measures["unseen_words"] = _refusal("no_training_text", reference)
    return {"measures": measures, "n_words": length, "n_texts": len(cut), "n_too_short": len(samples) - len(cut), "temperature": cold}


def final_samples(evidence: Evidence) -> list[Sample]:
    """Texts of the last step of each used trial; one seed per configuration where there are very many trials."""
    used = {t["trial_id"] for t in evidence.trials}
    if len(used) > MOST_TRIALS:
        ordered = sorted(evidence.trials, key=lambda t: (t["config_id"], t["seed"]), reverse=True)
        used = set({t["config_id"]: t["trial_id"] for t in ordered}.values())
    last: dict[str, int] = {}
    for s in evidence.samples:
        last[s["trial_id"]] = max(last.get(s["trial_id"], 0), s["step"] or 0)
    return [s for s in evidence.samples if s["trial_id"] in used and (s["step"] or 0) == last[s["trial_id"]]]


def main_temperature(samples: Sequence[Sample]) -> float:
    """The temperature of most texts, the lowest of them where several have as many."""
    counts = Counter(float(s["temperature"]) for s in samples)
    return min(counts, key=lambda t: (-counts[t], t))


# ---- scores of texts ----


@dataclass(frozen=True)
class Reference:
    """The words that the models were trained on, and those of texts held out from them, text by text."""

    known: frozenset[str]
    held_out: Sequence[Sequence[str]]


def words_of_sample(sample: Sample) -> list[str]:
    """Words that the model wrote whole, end-of-text tokens left out."""
    body = str(sample["text"])
    begun = str(sample["prompt"])[-1:].isalpha() and body[:1].isalpha()
    words = diversity.words_of(body.replace(END, "\n"))
    return words[int(begun) : len(words) - int(body[-1:].isalpha())]


def score(cut: Mapping[int, Sequence[str]], reference: Reference | str) -> dict[str, Scores]:
    """Every measure that can be taken: name -> score of each text.

    Args:
        cut: number of a text -> its words, all of one length.
        reference: training and held-out text, or why there is none.
    """
    scores = {name: {key: of(words) for key, words in cut.items()} for name, of in PER_TEXT.items()}
    if isinstance(reference, Reference):
        scores["unseen_words"] = {key: diversity.unseen_share(words, reference.known) for key, words in cut.items()}
    return scores


def reference_text(results: Path) -> Reference | str:
    """Training and held-out text from the data cache, or why there is none. Nothing is made and nothing downloaded."""
    try:
        facts = json.loads((results / "study.json").read_text(encoding="utf-8"))
        config = facts["study"]["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return "study.json does not name the training data"
    try:
        corpus = data.find(DataConfig(**config))
    except (ValueError, TypeError, OSError) as error:
        return f"the training data cannot be found ({error})"
    if corpus is None:
        return "the training text is not in this machine's data cache"
    if facts.get("data_sha256") not in (None, corpus.sha256):
        return "the training text in this machine's data cache is not the one that the study used"
    if corpus.tokenizer is None:
        return "the training data are token ids without a tokenizer"
    parts = corpus.train[:TRAINING_CHARS], corpus.val[:HELD_OUT_CHARS]
    train, held_out = (corpus.tokenizer.decode(tokens.tolist()) for tokens in parts)
    return Reference(frozenset(diversity.words_of(train)), [own for text in held_out.split(END) if (own := diversity.words_of(text))])


# ---- intervals ----


def _measure(texts: pd.DataFrame, trials: Mapping[str, Any], cold: float, rng: np.random.Generator) -> dict[str, Any]:
    """One measure at the main temperature by configuration, its ends, its relation to loss, and its mean at each temperature."""
    rows = []
    for config, own in texts[texts["temperature"] == cold].groupby("config_id", sort=False):
        mean, of = bootstrap_mean(_by_prompt(own), rng), [trials[t] for t in sorted(own["trial_id"].unique())]
        if "refused" not in mean:
            facts = {"config_id": config, "params_non_embedding": of[0]["params_non_embedding"]}
            rows.append({**facts, "val_loss": float(np.mean([t["val_loss"] for t in of])), **mean})
    if not rows:
        return _refusal("no_texts", "no text can be judged by this measure")
    rows.sort(key=lambda row: (row["params_non_embedding"], row["config_id"]))
    smallest, largest = ({key: row[key] for key in ("value", "low", "high", "level", "method")} for row in (rows[0], rows[-1]))
    relation = spearman([row["value"] for row in rows], [row["val_loss"] for row in rows])
    heat = {f"{t:g}": bootstrap_mean(_by_prompt(own), rng) for t, own in texts.groupby("temperature")}
    return {"smallest": smallest, "largest": largest, "spearman": relation, "by_temperature": heat, "configurations": rows}


def _by_prompt(texts: pd.DataFrame) -> list[float]:
    """Mean over the texts of each prompt that can be judged."""
    prompts: dict[str, list[float]] = {}
    for prompt, value in zip(texts["prompt"], texts["value"], strict=True):
        if np.isfinite(value):
            prompts.setdefault(prompt, []).append(value)
    return [float(np.mean(own)) for own in prompts.values()]


def bootstrap_mean(values: Sequence[float], rng: np.random.Generator) -> dict[str, Any]:
    """Mean over prompts, of one value each, with a percentile interval from resampling them; with one prompt there is no interval.

    Prompts are what a reader would vary; texts of one prompt are not independent.
    """
    means = np.array(values)
    if not len(means):
        return _refusal("no_texts", "no text was long enough")
    facts = {"value": float(means.mean()), "level": LEVEL, "method": "bootstrap over prompts", "n_prompts": len(means)}
    if len(means) < 2:
        return {**facts, "low": None, "high": None}
    drawn = means[rng.integers(0, len(means), (RESAMPLES, len(means)))].mean(1)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {**facts, "low": float(low), "high": float(high)}


def spearman(x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """Rank correlation with the interval of Bonett and Wright 2000 (Fisher z, variance (1 + r^2 / 2) / (n - 3)); n = configurations."""
    if len(x) < 5:
        return _refusal("too_few_configurations", f"a rank correlation needs at least 5 configurations, these are {len(x)}")
    ranks = pd.DataFrame([x, y]).T.rank().to_numpy()
    if np.any(ranks.std(0) == 0):
        return _refusal("constant", "every configuration has the same value")
    r = float(np.corrcoef(ranks.T)[0, 1])
    z, width = np.arctanh(np.clip(r, -0.9999, 0.9999)), float(ndtri((1 + LEVEL) / 2)) * np.sqrt((1 + r * r / 2) / (len(x) - 3))
    facts = {"level": LEVEL, "method": "Fisher z, Bonett and Wright 2000", "n": len(x)}
    return {"value": r, "low": float(np.tanh(z - width)), "high": float(np.tanh(z + width)), **facts}


def _refusal(code: str, reason: str) -> dict[str, Any]:
    return {"refused": {"code": code, "reason": reason}}
