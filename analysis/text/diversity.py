"""Measures of generated text: diversity at equal length, repetition, words never seen in training.

Pure functions of words; reads and writes nothing. A ratio of distinct words falls with the length of a text, so every measure here is
taken at a common length; without that a longer text looks less diverse only because it is longer.

    words = words_of("The cat saw the dog."); type_token_ratio(words)   # 0.8
"""

import re
from collections import Counter
from collections.abc import Sequence, Set

import numpy as np

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")


def words_of(text: str) -> list[str]:
    """Lower-case words: runs of letters, with apostrophes inside; digits and punctuation separate."""
    return _WORD.findall(text.lower())


def common_length(texts: Sequence[Sequence[str]], share: float = 0.9, least: int = 20) -> int:
    """The largest number of words that at least `share` of the texts have; 0 where that is fewer than `least`."""
    lengths = sorted((len(words) for words in texts), reverse=True)
    length = lengths[int(np.ceil(share * len(lengths))) - 1]
    return length if length >= least else 0


# ---- diversity ----


def type_token_ratio(words: Sequence[str]) -> float:
    """Distinct words over words. Comparable only between texts of one length."""
    return len(set(words)) / len(words) if words else float("nan")


def mattr(words: Sequence[str], window: int = 25) -> float:
    """Moving-average type-token ratio: the mean ratio over all windows of so many words (Covington and McFall 2010)."""
    if not words:
        return float("nan")
    if len(words) <= window:
        return type_token_ratio(words)
    counts, ratios = Counter(words[:window]), [len(set(words[:window]))]
    for old, new in zip(words, words[window:], strict=False):
        counts[new] += 1
        counts[old] -= 1
        if not counts[old]:
            del counts[old]
        ratios.append(len(counts))
    return sum(ratios) / len(ratios) / window


def distinct_n(texts: Sequence[Sequence[str]], n: int) -> float:
    """Distinct n-grams over n-grams of a set of texts (Li et al. 2016, "distinct-1" and "distinct-2")."""
    grams = [gram for words in texts for gram in ngrams(words, n)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Every run of n words, in order."""
    return list(zip(*[words[i:] for i in range(n)], strict=False))


# ---- repetition and unknown words ----


def loops(words: Sequence[str], longest_period: int = 20, times: int = 3) -> bool:
    """Whether some phrase of up to `longest_period` words stands `times` times in a row, over at least six words."""
    order: dict[str, int] = {}
    ids = np.array([order.setdefault(word, len(order)) for word in words], np.int64)
    for period in range(1, min(longest_period, len(ids) // times) + 1):
        same, needed = ids[period:] == ids[:-period], max((times - 1) * period, 6 - period)
        if np.count_nonzero(same) >= needed:
            edges = np.flatnonzero(np.diff(np.concatenate([[0], same, [0]])))
            if (edges[1::2] - edges[::2]).max() >= needed:
                return True
    return False


def unseen_share(words: Sequence[str], known: Set[str]) -> float:
    """Share of words that the training text does not hold: misspelled or invented."""
    return sum(word not in known for word in words) / len(words) if words else float("nan")
