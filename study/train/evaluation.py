"""Losses of fixed windows under every replica of a model.

losses = window_losses(model, tokens, targets, batch_size).mean(1)   # (K,)
"""

import torch
from torch import Tensor

from models.transformer import Network

EVAL_TOKENS = 16_384
"""Tokens per evaluation batch (on a CPU it makes no difference from 1,024 up). A GPU takes those of a training batch, if they are more:
larger batches pay there, and what fits for training fits for this."""


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
