"""What is measured at an evaluation: losses of fixed windows, and the texts that a trial generates.

Texts have the same prompts, the same noise and the same lengths for every model of a study; prompts are openings of validation documents
(or, in a text without separators, of evenly spaced passages).

    losses = window_losses(model, tokens, targets, batch_size).mean(1)   # (K,)
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.generate import generate
from models.tokenizer import Tokenizer
from models.transformer import Network
from study.spec import TrainConfig

EVAL_TOKENS = 16_384
"""Tokens per evaluation batch (on a CPU it makes no difference from 1,024 up). A GPU takes those of a training batch, if they are more:
larger batches pay there, and what fits for training fits for this."""
PROMPT_TOKENS = 24
SAMPLE_SEED = 20_231


@torch.inference_mode()
def window_losses(model: Network, tokens: Tensor, targets: Tensor, batch_size: int) -> Tensor:
    """Mean loss of every window under every replica, (K, windows) in float64 on the CPU.

    Args:
        tokens, targets: (windows, T) on the model's device.
        batch_size: windows of a training batch.
    """
    model.eval()
    size = max(1, EVAL_TOKENS // (tokens.shape[1] * model.replicas))
    if tokens.device.type != "cpu":
        size = max(size, batch_size)
    parts = []
    for x, y in zip(tokens.split(size), targets.split(size), strict=True):
        shape = (model.replicas, *x.shape)
        parts.append(model.token_losses(x.expand(shape), y.expand(shape)).double().mean(-1))
    return torch.cat(parts, dim=1).cpu()


# ---- texts ----


def prompts_from(val_tokens: np.ndarray, n_prompts: int, length: int, end_id: int | None) -> np.ndarray:
    """Openings of validation documents, spread evenly over them, (n_prompts, length) token ids without separators."""
    ends = np.flatnonzero(np.asarray(val_tokens[:4_000_000]) == (-1 if end_id is None else end_id))
    starts = ends[:-1] + 1
    whole = starts[np.diff(ends) > length]
    if len(whole) < n_prompts:
        whole = np.arange(n_prompts) * max(0, len(val_tokens) - length) // max(1, n_prompts)
    chosen = whole[np.arange(n_prompts) * len(whole) // n_prompts]
    return np.stack([np.asarray(val_tokens[start : start + length]) for start in chosen]).astype(np.int64)


def sample_steps(recipe: TrainConfig) -> set[int]:
    """The evaluations nearest to an eighth, a quarter and half of a run, where short texts are drawn."""
    every, last = recipe.eval_interval, (recipe.n_steps - 1) // recipe.eval_interval
    marks = {recipe.n_steps // 8, recipe.n_steps // 4, recipe.n_steps // 2} - {0}
    return {every * min(last, (2 * mark + every - 1) // (2 * every)) for mark in marks}  # of two as near, the earlier


def draw_samples(
    model: Network,
    val_tokens: np.ndarray,
    tokenizer: Tokenizer,
    n_prompts: int = 8,
    n_tokens: int = 256,
    temperatures: tuple[float, ...] = (0.7, 1.0),
    repeats: int = 2,
) -> list[list[dict[str, Any]]]:
    """Texts of every replica as `samples` rows without trial_id and step: n_prompts x temperatures x repeats, n_tokens each.

    The end-of-text token may appear inside a text: it shows where the model ends a story.
    """
    length = min(PROMPT_TOKENS, model.config.block_size)
    prompts = prompts_from(val_tokens, n_prompts, length, tokenizer.end_id)
    plan = [(p, t, i) for p in range(n_prompts) for t in temperatures for i in range(repeats)]
    batch = torch.from_numpy(prompts[[p for p, _, _ in plan]]).to(model.flat.device)  # (B, P)
    warmth = torch.tensor([t for _, t, _ in plan])
    forbidden = () if tokenizer.unknown_id is None else (tokenizer.unknown_id,)
    tokens = generate(model, batch.expand(model.replicas, *batch.shape), n_tokens, warmth, SAMPLE_SEED, forbidden).cpu()
    return [
        [
            {
                "prompt": tokenizer.decode(prompts[p].tolist()),
                "index": i,
                "temperature": t,
                "text": tokenizer.decode(row.tolist()),
                "n_tokens": n_tokens,
            }
            for (p, t, i), row in zip(plan, rows, strict=True)
        ]
        for rows in tokens
    ]
