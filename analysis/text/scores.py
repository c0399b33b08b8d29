"""Scores of generated texts, one number per text: diversity, repetition, and words that the training text does not hold.

Reads rows of `samples` and, where the data cache holds it, the training text; writes nothing. A sample begins where its prompt broke off
and ends where its length ran out, so half words at both ends are dropped.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.text import diversity
from study.data import corpus as data
from study.spec import DataConfig

Sample = Mapping[str, Any]
Scores = dict[int, float]
"""Number of a sample in its list -> score."""

TRAINING_CHARS, HELD_OUT_CHARS = 6_000_000, 1_000_000
"""Characters of either text that are read at most."""
END = "<|endoftext|>"

PER_TEXT: dict[str, Callable[[Sequence[str]], float]] = {
    "type_token_ratio": diversity.type_token_ratio,
    "mattr": diversity.mattr,
    "distinct_2": lambda words: diversity.distinct_n([words], 2),
    "loops": lambda words: float(diversity.loops(words)),
}


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
    last = body[-1:].isalpha()
    return words[int(begun) : len(words) - int(last)]


def score(cut: Mapping[int, Sequence[str]], reference: Reference | str) -> dict[str, Scores]:
    """Every measure that can be taken: name -> score of each text.

    Args:
        cut: number of a sample -> its words, all of one length.
        reference: training and held-out text, or why there is none.
    """
    scores = {name: {key: of(words) for key, words in cut.items()} for name, of in PER_TEXT.items()}
    if isinstance(reference, Reference):
        scores["unseen_words"] = {key: diversity.unseen_share(words, reference.known) for key, words in cut.items()}
    return scores


def baseline(reference: Reference, length: int, most: int = 300) -> dict[str, float]:
    """The same measures of held-out text of the same length: what real text would score."""
    held = dict(enumerate([words[:length] for words in reference.held_out if len(words) >= length][:most]))
    return {name: float(np.mean(list(values.values()))) for name, values in score(held, reference).items()} if held else {}


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
    known = frozenset(diversity.words_of(_text(corpus, corpus.train[:TRAINING_CHARS])))
    held_out = _text(corpus, corpus.val[:HELD_OUT_CHARS]).split(END)
    return Reference(known, [words for text in held_out if (words := diversity.words_of(text))])


def _text(corpus: Any, tokens: np.ndarray) -> str:
    """Token ids as text."""
    return str(corpus.tokenizer.decode(tokens.tolist()))
