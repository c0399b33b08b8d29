"""Windows of a split: the batches of training, a function of seed and step, and the fixed ones of evaluation. No torch.

x, y = window(corpus.train, seed=0, step=7, batch_size=8, block_size=64)
"""

import hashlib

import numpy as np


def first_tokens(tokens: np.ndarray, unique_tokens: int) -> np.ndarray:
    """The first `unique_tokens` tokens of a split, for studies of repetition; 0 means all."""
    if not 0 <= unique_tokens <= len(tokens):
        raise ValueError(f"unique_tokens={unique_tokens:,} must be 0 (all) or at most the {len(tokens):,} training tokens there are.")
    return tokens[:unique_tokens] if unique_tokens else tokens


def check_lengths(train: np.ndarray, val: np.ndarray, block_size: int, unique_tokens: int) -> None:
    """Raise ValueError where a split has no whole window, or the training text fewer tokens than are to be repeated."""
    for tokens in (first_tokens(train, unique_tokens), val):
        _count_starts(tokens, block_size)


def window(tokens: np.ndarray, seed: int, step: int, batch_size: int, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """One training batch, a pure function of (seed, step): the same on every machine, whatever was drawn before.

    The starts come from the counter-based generator Philox (Salmon et al. 2011) keyed by (seed, step), neither negative, read as raw
    64-bit words, because the higher-level methods of NumPy's generators may change between its versions.

    Returns:
        (B, T) int64 inputs and (B, T) int64 targets, the inputs moved on by one token; B = batch_size, T = block_size.
    """
    return _cut(tokens, window_starts(tokens, seed, step, batch_size, block_size), block_size)


def window_starts(tokens: np.ndarray, seed: int, step: int, batch_size: int, block_size: int) -> np.ndarray:
    """Where the windows of a training batch begin, (B,) int64: all that is random about `window`, whose arguments these are."""
    n_starts = _count_starts(tokens, block_size)
    raw = np.random.Philox(key=np.array([seed, step], dtype=np.uint64)).random_raw(batch_size)
    starts: np.ndarray = ((raw >> np.uint64(11)) * 2.0**-53 * n_starts).astype(np.int64)  # 53 random bits to [0, n_starts)
    return starts


def evaluation_windows(tokens: np.ndarray, n_windows: int, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The fixed windows on which every trial is evaluated: evenly spaced over the split, never overlapping.

    Returns:
        (n, T) int64 inputs and targets, n = `n_windows` or, in a short split, as many as fit side by side.
    """
    n_starts = _count_starts(tokens, block_size)
    n = min(n_windows, (len(tokens) - 1) // block_size)
    if n < 1:
        raise ValueError(f"evaluation needs at least one window; n_windows={n_windows} was given.")
    starts = np.arange(n, dtype=np.int64) * (n_starts - 1) // max(n - 1, 1)
    return _cut(tokens, starts, block_size)


def eval_sha256(x: np.ndarray, y: np.ndarray) -> str:
    """Hash of evaluation windows: two losses are comparable where it is equal."""
    return hashlib.sha256(np.stack([x, y]).astype("<i8").tobytes()).hexdigest()


def _count_starts(tokens: np.ndarray, block_size: int) -> int:
    n_starts = len(tokens) - block_size
    if n_starts < 1:
        raise ValueError(
            f"the text is too short for block_size={block_size}: a split has {len(tokens):,} characters and needs {block_size + 1:,}; "
            "give more text or a smaller block_size."
        )
    return n_starts


def _cut(tokens: np.ndarray, starts: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    windows = np.asarray(tokens)[starts[:, None] + np.arange(block_size + 1)].astype(np.int64)  # (B, T + 1)
    return windows[:, :-1], windows[:, 1:]
