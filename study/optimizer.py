"""AdamW for a bundle: two parameter groups per replica, each one flat tensor, so that every scalar of the recipe may differ by replica.

optimizer = make_optimizer(model, [trial.train for trial in trials]); pairs = group_pairs(optimizer)
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.transformer import Transformer, count_decayed
from study.spec import TrainConfig

# A bundle's gradients are rows of one buffer on purpose; torch remarks once on their strides.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")

Groups = dict[str, Any]


def make_optimizer(model: Transformer, recipes: Sequence[TrainConfig], on_device: bool = False) -> torch.optim.AdamW:
    """Fused AdamW: matrices with weight decay, norm scales without.

    Args:
        model: K replicas.
        recipes: one per replica.
        on_device: keep learning rates and step counters in tensors beside the weights, so that a step needs nothing from the host.
    """
    decayed = count_decayed(model.config)
    device = model.flat.device
    groups: list[Groups] = []
    for index, recipe in enumerate(recipes):
        rate = torch.full((), recipe.lr, device=device) if on_device else recipe.lr
        for part, decay in ((slice(0, decayed), recipe.weight_decay), (slice(decayed, None), 0.0)):
            weights = model.flat[index, part]
            weights.grad = model.flat_grad[index, part]
            groups.append({"params": [weights], "weight_decay": decay, "betas": (recipe.beta1, recipe.beta2), "lr": rate})
    optimizer = torch.optim.AdamW(groups, fused=device.type in ("cpu", "cuda"), capturable=on_device and device.type == "cuda")
    for group in groups:  # made here, not at the first step, so that a checkpoint can be read into them
        weights = group["params"][0]
        counter = torch.zeros((), device=device if device.type == "cuda" else "cpu")
        optimizer.state[weights] = {"step": counter, "exp_avg": torch.zeros_like(weights), "exp_avg_sq": torch.zeros_like(weights)}
    return optimizer


def group_pairs(optimizer: torch.optim.AdamW) -> list[tuple[Groups, Groups]]:
    """(matrices, scales) parameter groups of each replica."""
    groups = optimizer.param_groups
    return list(zip(groups[::2], groups[1::2], strict=True))


def norm_limits(recipes: Sequence[TrainConfig], device: torch.device) -> Tensor:
    """Largest gradient norm of each replica, (K,); infinite where clipping is off."""
    return torch.tensor([recipe.grad_clip or math.inf for recipe in recipes], device=device)


def clip(gradients: Tensor, limits: Tensor) -> Tensor:
    """Scale each replica's gradient, a row of (K, P), to its own largest norm (Pascanu et al. 2013); returns the norms before, (K,)."""
    norms = torch.linalg.vector_norm(gradients, dim=1)
    gradients.mul_((limits / (norms + 1e-6)).clamp_(max=1.0).unsqueeze(1))
    return norms
