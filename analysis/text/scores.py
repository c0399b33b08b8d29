"""Scores of generated texts, one number per text: diversity, copying, and coherence where a text can be checked.

Reads rows of `samples` and, where the data cache holds it, the training text; writes nothing. A sample begins where its prompt broke off
and ends where its length ran out, so half words at both ends are dropped, and a story ends at its end-of-text token.
"""

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.text import copying
from analysis.text import diversity as text

Sample = Mapping[str, Any]
Scores = dict[int, float]
"""Number of a sample in its list -> score."""

TRAINING_CHARS = 6_000_000
"""Characters of training text that copying and unseen words are measured against; a longer text is read up to here."""
MOST_CHECKED = 600
"""Stories checked for coherence at most, evenly spread: one takes about 4 ms."""
END = "<|endoftext|>"


@dataclass(frozen=True)
class Reference:
    """Words that the models were trained on, and words held out from them, story by story."""

    training: Sequence[Sequence[str]]
    held_out: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Measure:
    """What a number about texts is called, and one line on what it can and cannot say."""

    title: str
    says: str


MEASURES = {
    "type_token_ratio": Measure("type-token ratio", "Distinct words per word at equal length; misspelling raises it too."),
    "mattr": Measure("moving-average ratio (25 words)", "Local variety, whatever the length. It says nothing about sense."),
    "distinct_2": Measure("distinct-2", "Distinct word pairs of a text over its pairs. Low in loops; random words score highest."),
    "self_bleu": Measure("self-BLEU", "How alike the texts of one model are, 0 to 100. High where it tells one story again and again."),
    "loops": Measure("repetition loops", "Share of texts in which a phrase stands three times in a row: a failure of decoding."),
    "unseen_words": Measure("words never seen in training", "Misspelled or invented words. A good new name counts too."),
    "copied_mean": Measure("copied run, mean words", "How far a text runs as the training text does; held-out text does so too."),
    "copied_longest": Measure("copied run, longest", "A long run is memorization; a short one proves nothing. At most 64 words."),
    "grammatical": Measure("sentences of this world", "Share of sentences that the story grammar accepts: form, not sense."),
    "consistent": Measure("consistent mentions", "Later mentions of hero, object, animal, place, pronoun that agree."),
    "judge_loss": Measure("loss under the best model", "How surprising texts are to the best model, not its own. Dull ones please it."),
    "facts": Measure("facts of the world right", "Share of stated associations that are true in this world: memory of rare facts."),
}  # fmt: skip

_PER_TEXT: dict[str, Callable[[Sequence[str]], float]] = {
    "type_token_ratio": text.type_token_ratio,
    "mattr": text.mattr,
    "distinct_2": lambda words: text.distinct_n([words], 2),
    "loops": lambda words: float(text.loops(words)),
}


def words_of_sample(sample: Sample) -> list[str]:
    """Words that the model wrote whole, end-of-text tokens left out."""
    body = str(sample["text"])
    begun = str(sample["prompt"])[-1:].isalpha() and body[:1].isalpha()
    words = text.words_of(body.replace(END, "\n"))
    last = body[-1:].isalpha()
    return words[int(begun) : len(words) - int(last)]


def score(samples: Sequence[Sample], cut: Mapping[int, Sequence[str]], reference: Reference | str, stories: bool) -> dict[str, Scores]:
    """Every measure that can be taken: name -> score of each text.

    Args:
        cut: number of a sample -> its words, all of one length.
        reference: training and held-out text, or why there is none.
        stories: the texts should be stories of the embedded corpus, which can be checked.
    """
    scores: dict[str, Scores] = {name: {key: of(words) for key, words in cut.items()} for name, of in _PER_TEXT.items()}
    scores["self_bleu"] = _self_bleu(samples, cut)
    if isinstance(reference, Reference):
        scores |= _against(list(cut.values()), reference, list(cut))
    return scores | (_coherence(samples, list(cut)) if stories else {})


def baseline(reference: Reference, length: int, most: int = 300) -> dict[str, float]:
    """Measures of single texts taken on held-out text of the same length: what real text would score."""
    held = [words[:length] for words in reference.held_out if len(words) >= length][:most]
    if not held:
        return {}
    scores = _against(held, reference, range(len(held))) | {name: dict(enumerate(map(of, held))) for name, of in _PER_TEXT.items()}
    return {name: float(np.mean(list(values.values()))) for name, values in scores.items()}


def judged(samples: Sequence[Sample], judgements: Sequence[Sample]) -> Scores:
    """The judge's loss on each sample that it read; its own texts are left out, they please it most."""

    def key(row: Sample) -> tuple[Any, ...]:
        return row["trial_id"], row["step"], row["prompt"], row["index"], row["temperature"]

    found = {key(row): row["judge_loss"] for row in judgements if row["trial_id"] != row["judge_trial_id"]}
    return {number: found[key(sample)] for number, sample in enumerate(samples) if key(sample) in found}


def _self_bleu(chosen: Sequence[Sample], cut: Mapping[int, Sequence[str]]) -> Scores:
    """Self-BLEU of each text among the texts of its trial at its temperature."""
    groups: dict[tuple[str, float], list[int]] = {}
    for key in cut:
        groups.setdefault((chosen[key]["trial_id"], chosen[key]["temperature"]), []).append(key)
    scores: Scores = {}
    for keys in groups.values():
        scores |= dict(zip(keys, text.self_bleu([" ".join(cut[key]) for key in keys]), strict=True))
    return scores


def _against(texts: Sequence[Sequence[str]], reference: Reference, keys: Sequence[int]) -> dict[str, Scores]:
    """Unseen words and copied runs of texts."""
    known = {word for words in reference.training for word in words}
    ids: dict[str, int] = {}
    training = copying.encode(reference.training, ids)
    query = copying.encode(texts, ids)
    runs = copying.per_text(copying.longest_matches(query, training), query)
    values = {
        "unseen_words": [text.unseen_share(words, known) for words in texts],
        "copied_mean": [float(run.mean()) for run in runs],
        "copied_longest": [float(run.max()) for run in runs],
    }
    return {name: dict(zip(keys, found, strict=True)) for name, found in values.items()}


def _coherence(samples: Sequence[Sample], keys: Sequence[int]) -> dict[str, Scores]:
    """What the checker of the embedded corpus says of the first story of each sample."""
    from study.stories.coherence import check

    scores: dict[str, Scores] = {"grammatical": {}, "consistent": {}, "facts": {}}
    for key in keys[:: -(-len(keys) // MOST_CHECKED) or 1]:
        verdict = check(first_story(samples[key]))
        scores["grammatical"][key] = verdict.grammatical_share
        scores["facts"][key] = verdict.share("association")
        kinds = ("hero", "object", "animal", "place", "pronoun")
        right, wrong = (sum(counts.get(kind, 0) for kind in kinds) for counts in (verdict.right, verdict.wrong))
        scores["consistent"][key] = right / (right + wrong) if right + wrong else float("nan")
    return scores


_FULL_STOP = re.compile(r"(?<!\bMr)(?<!\bMrs)\.\"?(?=\s|$)")


def first_story(sample: Sample) -> str:
    """Prompt and text up to the end of the first story, or to the last full stop.

    A text that breaks off within speech can lose one sentence more; that is equal for all models.
    """
    whole, end, _ = (str(sample["prompt"]) + str(sample["text"])).partition(END)
    if end:
        return whole.strip()
    stops = [match.end() for match in _FULL_STOP.finditer(whole)]
    return whole[: stops[-1]].strip() if stops else whole.strip()


# ---- the text that the models were trained on ----


def reference_text(results: Path) -> Reference | str:
    """Training and held-out text from the data cache, or why there is none. Nothing is made and nothing downloaded."""
    try:
        facts = json.loads((results / "study.json").read_text(encoding="utf-8"))
        config = facts["study"]["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return "study.json does not name the training data"
    from study.data import corpus as data
    from study.spec import DataConfig

    try:
        corpus = data.find(DataConfig(**config))
    except (ValueError, TypeError, OSError) as error:
        return f"the training data cannot be found ({error})"
    if corpus is None:
        return "the training text is not in this machine's data cache"
    if facts.get("data_sha256") not in (None, corpus.sha256):
        return "the training text in this machine's data cache is not the one that the study used"
    return Reference(_stories(corpus, corpus.train, TRAINING_CHARS), _stories(corpus, corpus.val, 1_000_000))


def _stories(corpus: Any, tokens: np.ndarray, most: int) -> list[list[str]]:
    """Words of each story among the first `most` tokens; the characters are looked up in one pass."""
    end = corpus.characters.index("<|endoftext|>") if "<|endoftext|>" in corpus.characters else -1
    lookup = np.array([c if len(c) == 1 else "\n" for c in corpus.characters])
    ids = np.asarray(tokens[:most])
    whole = "".join(lookup[ids].tolist())
    cuts = [-1, *np.flatnonzero(ids == end).tolist(), len(ids)]
    return [words for a, b in itertools.pairwise(cuts) if (words := text.words_of(whole[a + 1 : b]))]
