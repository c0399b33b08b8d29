"""What a study's generated texts say: every measure per configuration, with intervals over prompts, and its relation to loss.

Reads an `Evidence`; writes nothing.

    conclude(evidence)["measures"]["type_token_ratio"]["spearman"]   # {'value': -0.1, 'low': -0.7, 'high': 0.6, ...}
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri

from analysis.table.evidence import Evidence
from analysis.text import diversity, scores
from analysis.text.scores import Reference, Sample

LEVEL = 0.95
RESAMPLES = 1000
MOST_TRIALS = 240
"""With more trials, one seed of each configuration is measured."""

Values = Mapping[str, Sequence[float]]
"""Prompt -> one value per text that continues it."""


def conclude(evidence: Evidence, seed: int = 0) -> dict[str, Any]:
    """All measures of the generated text, as they stand under "stories" in fits.json.

    Returns:
        "measures": name -> smallest, largest, spearman, held_out, by_temperature, configurations; or a refusal in its place.
    """
    samples = final_samples(evidence)
    if not samples:
        return _refusal("no_samples", "no generated text was recorded")
    words = [scores.words_of_sample(s) for s in samples]
    length = diversity.common_length(words)
    if not length:
        return _refusal("too_short", "the generated texts do not have 20 words in common; generate longer ones")
    cut = {key: own[:length] for key, own in enumerate(words) if len(own) >= length}
    reference = scores.reference_text(evidence.results)
    builder = _Builder(evidence, samples, np.random.default_rng(seed))
    measures = {name: builder.measure(values) for name, values in scores.score(cut, reference).items()}
    if isinstance(reference, Reference):
        for name, value in scores.baseline(reference, length).items():
            measures[name]["held_out"] = value
    else:
        measures["unseen_words"] = _refusal("no_training_text", reference)
    facts = {"n_words": length, "n_texts": len(cut), "n_too_short": len(samples) - len(cut), "temperature": builder.cold}
    return {"measures": measures, **facts}


def final_samples(evidence: Evidence) -> list[Sample]:
    """Texts of the last step of each used trial; one seed per configuration where there are very many trials."""
    trials = {t["trial_id"]: t for t in evidence.trials}
    if len(trials) > MOST_TRIALS:
        first: dict[str, Any] = {}
        for t in sorted(trials.values(), key=lambda t: (t["config_id"], t["seed"])):
            first.setdefault(t["config_id"], t["trial_id"])
        trials = {trial: trials[trial] for trial in first.values()}
    last: dict[str, int] = {}
    for s in evidence.samples:
        last[s["trial_id"]] = max(last.get(s["trial_id"], 0), s["step"] or 0)
    return [s for s in evidence.samples if s["trial_id"] in trials and (s["step"] or 0) == last[s["trial_id"]]]


def main_temperature(samples: Sequence[Sample]) -> float:
    """The temperature of most texts, the lowest of them where several have as many."""
    counts: dict[float, int] = {}
    for s in samples:
        counts[s["temperature"]] = counts.get(s["temperature"], 0) + 1
    return min(counts, key=lambda t: (-counts[t], t))


# ---- intervals ----


class _Builder:
    """Turns scores of texts into measures per configuration; holds what all measures share."""

    def __init__(self, evidence: Evidence, samples: Sequence[Sample], rng: np.random.Generator) -> None:
        self.trials = {t["trial_id"]: t for t in evidence.trials}
        self.samples, self.rng = samples, rng
        self.groups: dict[tuple[str, float], list[int]] = {}
        for key, s in enumerate(samples):
            self.groups.setdefault((self.trials[s["trial_id"]]["config_id"], s["temperature"]), []).append(key)
        self.temperatures = sorted({t for _, t in self.groups})
        self.cold = main_temperature(samples)

    def measure(self, scores: Mapping[int, float]) -> dict[str, Any]:
        """One measure at the main temperature by configuration, its ends, its relation to loss, and its mean at each temperature."""
        rows = [self._row(config, keys, scores) for (config, t), keys in self.groups.items() if t == self.cold]
        rows = sorted((r for r in rows if r), key=lambda r: (r["params_non_embedding"], r["config_id"]))
        if not rows:
            return _refusal("no_texts", "no text can be judged by this measure")
        relation = spearman([r["value"] for r in rows], [r["val_loss"] for r in rows])
        ends = {"smallest": _cell(rows[0]), "largest": _cell(rows[-1])}
        heat = {
            f"{t:g}": self._mean([k for (_, u), keys in self.groups.items() if u == t for k in keys], scores) for t in self.temperatures
        }
        return {**ends, "spearman": relation, "by_temperature": heat, "configurations": rows}

    def _row(self, config: str, keys: Sequence[int], scores: Mapping[int, float]) -> dict[str, Any]:
        mean = self._mean(keys, scores)
        own = [self.trials[t] for t in sorted({self.samples[key]["trial_id"] for key in keys})]
        facts = {"config_id": config, "params_non_embedding": own[0]["params_non_embedding"]}
        return {} if "refused" in mean else {**facts, "val_loss": float(np.mean([t["val_loss"] for t in own])), **mean}

    def _mean(self, keys: Sequence[int], scores: Mapping[int, float]) -> dict[str, Any]:
        prompts: dict[str, list[float]] = {}
        for key in keys:
            if np.isfinite(scores.get(key, np.nan)):
                prompts.setdefault(self.samples[key]["prompt"], []).append(scores[key])
        return bootstrap_mean(prompts, self.rng)


def bootstrap_mean(values: Values, rng: np.random.Generator, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Mean over prompts of the mean over their texts, with a percentile interval from resampling prompts.

    Prompts are what a reader would vary; texts of one prompt are not independent. With one prompt there is no interval.
    """
    means = np.array([float(np.mean(v)) for v in values.values()])
    if not len(means):
        return _refusal("no_texts", "no text was long enough")
    facts = {"value": float(means.mean()), "level": LEVEL, "method": "bootstrap over prompts", "n_prompts": len(means)}
    if len(means) < 2:
        return {**facts, "low": None, "high": None}
    drawn = means[rng.integers(0, len(means), (resamples, len(means)))].mean(1)
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


def _cell(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("value", "low", "high", "level", "method", "refused") if key in row}


def _refusal(code: str, reason: str) -> dict[str, Any]:
    return {"refused": {"code": code, "reason": reason}}
