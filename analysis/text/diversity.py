"""Measures of generated text: diversity at equal length, repetition, words never seen in training.

Pure functions of words; reads and writes nothing. A ratio of distinct words falls with the length of a text, so every measure here is
taken at a common length; without that a longer text looks less diverse only because it is longer.

    words = words_of("The cat saw the dog."); type_token_ratio(words)   # 0.8
"""

import re
from collections.abc import Sequence, Set
from itertools import pairwise

import numpy as np

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")


def words_of(text: str) -> list[str]:
    """Lower-case words: runs of letters, with apostrophes inside; digits and punctuation separate."""
    return _WORD.findall(text.lower())


def common_length(texts: Sequence[Sequence[str]]) -> int:
    """The largest number of words that nine texts in ten have; 0 where that is fewer than 20."""
    lengths = sorted((len(words) for words in texts), reverse=True)
    length = lengths[int(np.ceil(0.9 * len(lengths))) - 1]
    return length if length >= 20 else 0


# ---- diversity ----


def type_token_ratio(words: Sequence[str]) -> float:
    """Distinct words over words. Comparable only between texts of one length."""
    return len(set(words)) / len(words) if words else float("nan")


def mattr(words: Sequence[str], window: int = 25) -> float:
    """Moving-average type-token ratio: the mean ratio over all windows of so many words (Covington and McFall 2010)."""
    if len(words) <= window:
        return type_token_ratio(words)
    distinct = [len(set(words[i : i + window])) for i in range(len(words) - window + 1)]
    return sum(distinct) / len(distinct) / window


def distinct_2(words: Sequence[str]) -> float:
    """Distinct pairs of neighbours over pairs (Li et al. 2016)."""
    pairs = list(pairwise(words))
    return len(set(pairs)) / len(pairs) if pairs else float("nan")


# ---- repetition and unknown words ----


def loops(words: Sequence[str]) -> bool:
    """Whether some phrase of up to 20 words stands three times in a row, over at least six words."""
    order: dict[str, int] = {}
    ids = np.array([order.setdefault(word, len(order)) for word in words], np.int64)
    for period in range(1, min(20, len(ids) // 3) + 1):
        same, needed = ids[period:] == ids[:-period], max(2 * period, 6 - period)
        if np.count_nonzero(same) >= needed:
            edges = np.flatnonzero(np.diff(np.concatenate([[0], same, [0]])))
            if (edges[1::2] - edges[::2]).max() >= needed:
                return True
    return False


def unseen_share(words: Sequence[str], known: Set[str]) -> float:
    """Share of words that the training text does not hold: misspelled or invented."""
    return sum(word not in known for word in words) / len(words) if words else float("nan")
