"""How much of a text is copied: for each word, the longest run from there on that the training text also holds, word for word.

Pure functions of arrays; reads and writes nothing. A match of n+1 words begins with a match of n words, on both sides, so each round looks
only at places that matched in the round before: the cost is a few passes over the training text, whatever the longest match.

    lengths = longest_matches(query_ids, training_ids)
"""

from collections.abc import Sequence

import numpy as np

SEPARATOR = -1
"""Word id that matches nothing: stands between texts."""


def encode(texts: Sequence[Sequence[str]], ids: dict[str, int]) -> np.ndarray:
    """Texts as one array of word ids with separators between; new words get new ids (`ids` grows)."""
    out: list[int] = []
    for words in texts:
        out += [ids.setdefault(word, len(ids)) for word in words]
        out.append(SEPARATOR)
    return np.asarray(out, np.int64)


def longest_matches(query: np.ndarray, training: np.ndarray, cap: int = 64) -> np.ndarray:
    """Longest match with `training` that begins at each place of `query`, in words, at most `cap`.

    Args:
        query: word ids, shape (n,), SEPARATOR between texts.
        training: word ids, shape (m,).

    Returns:
        Lengths, shape (n,). Equality is by 64-bit hashes of random word codes: a false match has a chance below n m / 2^63.
    """
    codes = _codes(int(max(query.max(initial=0), training.max(initial=0))) + 1)
    lengths = np.zeros(len(query), np.int64)
    # Places whose n-gram is still alive, and the running hash of that n-gram.
    q_at, t_at = np.flatnonzero(query != SEPARATOR), np.flatnonzero(training != SEPARATOR)
    q_hash, t_hash = np.zeros(len(q_at), np.uint64), np.zeros(len(t_at), np.uint64)
    for n in range(1, cap + 1):
        q_at, q_hash = _extend(query, q_at, q_hash, n, codes)
        t_at, t_hash = _extend(training, t_at, t_hash, n, codes)
        shared = np.unique(q_hash)
        alive = _among(t_hash, shared)
        t_at, t_hash = t_at[alive], t_hash[alive]
        found = _among(q_hash, np.unique(t_hash))
        q_at, q_hash = q_at[found], q_hash[found]
        if not len(q_at):
            break
        lengths[q_at] = n
    return lengths


def _codes(size: int) -> np.ndarray:
    """A fixed random 64-bit code for each word id."""
    return np.random.default_rng(0).integers(1, 2**63, size=size, dtype=np.uint64) | np.uint64(1)


def _extend(ids: np.ndarray, at: np.ndarray, hashes: np.ndarray, n: int, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add the n-th word to each n-gram; those that would pass a separator or the end fall away."""
    inside = at + n - 1 < len(ids)
    at, hashes = at[inside], hashes[inside]
    word = ids[at + n - 1]
    whole = word != SEPARATOR
    at, hashes, word = at[whole], hashes[whole], word[whole]
    mixed = (hashes * np.uint64(0x9E3779B97F4A7C15)) ^ (hashes >> np.uint64(29))
    return at, mixed + codes[word]


def _among(values: np.ndarray, sorted_unique: np.ndarray) -> np.ndarray:
    """Which values are in a sorted array."""
    if not len(sorted_unique):
        return np.zeros(len(values), bool)
    place = np.minimum(np.searchsorted(sorted_unique, values), len(sorted_unique) - 1)
    return sorted_unique[place] == values


def per_text(lengths: np.ndarray, query: np.ndarray) -> list[np.ndarray]:
    """The lengths of each text, in order, without the separators."""
    ends = np.flatnonzero(query == SEPARATOR)
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1])[: len(ends)]
    return [lengths[a:b] for a, b in zip(starts, ends, strict=True)]
