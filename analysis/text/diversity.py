"""Measures of generated text: diversity at equal length, self-similarity, repetition, words never seen in training.

Pure functions of words; reads and writes nothing. A ratio of distinct words falls with the length of a text, so every measure here is
taken at a common length; without that a longer text looks less diverse only because it is longer.

    words = words_of("The cat saw the dog."); type_token_ratio(words)   # 0.8
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from math import exp, log

import numpy as np

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")


def words_of(text: str) -> list[str]:
    """Lower-case words: runs of letters, with apostrophes inside; digits and punctuation separate."""
    return _WORD.findall(text.lower())


def common_length(texts: Sequence[Sequence[str]], share: float = 0.9, least: int = 20) -> int:
    """The largest number of words that at least `share` of the texts have; 0 where that is fewer than `least`."""
    lengths = sorted((len(words) for words in texts), reverse=True)
    if not lengths:
        return 0
    length = lengths[min(len(lengths) - 1, int(np.ceil(share * len(lengths))) - 1)]
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


# ---- self-BLEU ----

_ALWAYS_APART = re.compile("([" + re.escape("".join(sign for sign in string.punctuation if sign not in "',-.")) + "])")
_BEFORE_MARK, _AFTER_MARK = re.compile(r"([^0-9])([.,])"), re.compile(r"([.,])([^0-9])")
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))


def bleu_tokens(text: str) -> list[str]:
    """Tokens as the "13a" rule of machine-translation scoring makes them, sacreBLEU's default.

    Signs stand apart; a point or a comma does unless digits are on both sides; a hyphen does after a digit; an apostrophe never does.
    """
    line = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, sign in _ENTITIES:
        line = line.replace(entity, sign)
    line = _ALWAYS_APART.sub(r" \1 ", f" {line} ")
    line = _AFTER_MARK.sub(r" \1 \2", _BEFORE_MARK.sub(r"\1 \2 ", line))
    return re.sub(r"(?<=[0-9])-", " - ", line).split()


def self_bleu(texts: Sequence[str], order: int = 4) -> list[float]:
    """BLEU of each text with all others as its references, in [0, 100]: high where a model tells the same story again and again.

    Zhu et al. 2018 ("Texygen"), with BLEU as sacreBLEU's `sentence_bleu` defines it: exponential smoothing, effective order, closest
    reference length. For each n-gram only the two largest counts over texts are kept, so the cost is linear in the number of texts.

    Returns:
        One score per text; NaN with fewer than two texts.
    """
    tokens = [bleu_tokens(text) for text in texts]
    if len(tokens) < 2:
        return [float("nan")] * len(tokens)
    counts = [[Counter(ngrams(words, n)) for n in range(1, order + 1)] for words in tokens]
    tops = [_two_largest([c[n] for c in counts]) for n in range(order)]
    lengths = [len(words) for words in tokens]
    return [_bleu(counts[i], tops, i, lengths) for i in range(len(tokens))]


def _two_largest(counters: Sequence[Counter]) -> dict[tuple[str, ...], tuple[int, int, int]]:
    """n-gram -> (largest count, text that has it, second largest count)."""
    top: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for i, counter in enumerate(counters):
        for gram, count in counter.items():
            first, owner, second = top.get(gram, (0, -1, 0))
            top[gram] = (count, i, first) if count > first else (first, owner, max(second, count))
    return top


def _bleu(own: Sequence[Counter], tops: Sequence[dict], i: int, lengths: Sequence[int]) -> float:
    """sacreBLEU's sentence score of text i against all others."""
    length = lengths[i]
    precisions, smooth = [], 1.0
    for counter, top in zip(own, tops, strict=True):
        total = sum(counter.values())
        if not total:
            break  # effective order: a short text is scored on the orders that it has
        correct = sum(min(c, top[g][2] if top[g][1] == i else top[g][0]) for g, c in counter.items())
        if correct:
            precisions.append(correct / total)
        elif not precisions:
            return 0.0  # nothing in common: sacreBLEU gives 0 where no single word matches
        else:
            smooth *= 2
            precisions.append(1 / (smooth * total))
    if not precisions:
        return 0.0
    reference = min((n for j, n in enumerate(lengths) if j != i), key=lambda n: (abs(n - length), n))
    brevity = 1.0 if length >= reference else exp(1 - reference / length)
    return 100 * brevity * exp(sum(map(log, precisions)) / len(precisions))


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


def unseen_share(words: Sequence[str], known: set[str]) -> float:
    """Share of words that the training text does not hold: misspelled or invented."""
    return sum(word not in known for word in words) / len(words) if words else float("nan")
