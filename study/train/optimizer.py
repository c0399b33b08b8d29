"""AdamW for a bundle: a few parameter groups per replica, each one flat tensor, so that every scalar of the recipe may differ by replica.

Matrices take weight decay, norm scales do not. Under muP (Yang et al. 2022, table 8, Adam) the matrices between channels are a group of
their own, whose learning rate falls with width; their decay per step, learning rate times weight decay, does not. Under CompleteP (Dey
et al. 2025, table 1, alpha = 1) no learning rate follows the depth; AdamW's epsilon in the blocks falls with width and depth, as
gradients do.

optimizer = make_optimizer(model, [trial.train for trial in trials]); replicas = groups_by_replica(optimizer)
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from models.transformer import Network
from study.spec import TrainConfig

# A bundle's gradients are rows of one buffer on purpose; torch remarks once on their strides.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")

Groups = dict[str, Any]
EPSILON = 1e-8
"""Added to the root of AdamW's second moment at the base shape: torch's and the paper's (Kingma & Ba 2015)."""


@dataclass(frozen=True)
class _Part:
    """A run of the flat buffer whose parameters are trained alike; `rate` and `epsilon` are factors of the recipe's."""

    name: str
    place: slice
    rate: float = 1.0
    decays: bool = False
    epsilon: float = 1.0


class AdamW:
    """Parameter groups of one tensor each, their moments, and torch's own step on them.

    An object of torch.optim.AdamW would import torch's compiler when it is made: 1.6 s of processor time in every worker (LOG).
    """

    def __init__(self, groups: list[Groups], fused: bool, capturable: bool) -> None:
        self.param_groups = groups
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self.how: dict[str, Any] = {"fused": fused, "capturable": capturable, "amsgrad": False, "maximize": False}
        for group in groups:
            (weights,) = group["params"]
            counter = torch.zeros((), device=weights.device if weights.device.type == "cuda" else "cpu")
            self.state[weights] = {"step": counter, "exp_avg": torch.zeros_like(weights), "exp_avg_sq": torch.zeros_like(weights)}

    @torch.no_grad()
    def step(self) -> None:
        """One step of every group by the gradients in its weights' `grad`."""
        for group in self.param_groups:
            (weights,), (beta1, beta2) = group["params"], group["betas"]
            state = self.state[weights]
            recipe = {name: group[name] for name in ("lr", "weight_decay", "eps")} | {"beta1": beta1, "beta2": beta2}
            adamw([weights], [weights.grad], [state["exp_avg"]], [state["exp_avg_sq"]], [], [state["step"]], **recipe, **self.how)


def make_optimizer(model: Network, recipes: Sequence[TrainConfig], on_device: bool = False) -> AdamW:
    """Fused AdamW. Each group has, beside the entries of torch's, a `name` and its `rate`: its learning rate over that of the recipe.

    Args:
        recipes: one per replica.
        on_device: keep learning rates and step counters in tensors beside the weights, so that a step needs nothing from the host.
    """
    device = model.flat.device
    parts = _parts(model)
    groups: list[Groups] = []
    for index, recipe in enumerate(recipes):
        tensors = {part.rate: torch.full((), recipe.lr * part.rate, device=device) for part in parts}
        for part in parts:
            weights = model.flat[index, part.place]
            weights.grad = model.flat_grad[index, part.place]
            lr = tensors[part.rate] if on_device else recipe.lr * part.rate
            decay = recipe.weight_decay / part.rate if part.decays else 0.0
            moments = {"betas": (recipe.beta1, recipe.beta2), "eps": EPSILON * part.epsilon}
            groups.append({"params": [weights], "weight_decay": decay, **moments, "lr": lr, "name": part.name, "rate": part.rate})
    return AdamW(groups, fused=device.type in ("cpu", "cuda"), capturable=on_device and device.type == "cuda")


def _parts(model: Network) -> list[_Part]:
    """The parameter groups of a replica; those of norm scales come last."""
    config, decayed = model.config, model.decayed
    if not config.base_width:
        return [_Part("matrices", slice(0, decayed), decays=True), _Part("scales", slice(decayed, None))]
    embeddings, width = config.params_embedding + config.params_position, config.width_ratio
    outer = _Part("embeddings", slice(0, embeddings), decays=True)
    if not config.base_depth:
        return [outer, _Part("hidden", slice(embeddings, decayed), 1 / width, decays=True), _Part("scales", slice(decayed, None))]
    epsilon = 1 / (width * config.depth_ratio)
    return [
        outer,
        _Part("hidden", slice(embeddings, decayed), 1 / width, True, epsilon),
        _Part("block scales", slice(decayed, -config.n_embd), epsilon=epsilon),
        _Part("scales", slice(-config.n_embd, None)),
    ]


def groups_by_replica(optimizer: AdamW) -> list[list[Groups]]:
    """The parameter groups of each replica; norm scales are the last of each."""
    groups = optimizer.param_groups
    each = 1 + next(i for i, group in enumerate(groups) if group["name"] == "scales")
    return [groups[start : start + each] for start in range(0, len(groups), each)]


def norm_limits(recipes: Sequence[TrainConfig], device: torch.device) -> Tensor:
    """Largest gradient norm of each replica, (K,); infinite where clipping is off."""
    return torch.tensor([recipe.grad_clip or math.inf for recipe in recipes], device=device)


def clip(gradients: Tensor, limits: Tensor) -> Tensor:
    """Scale each replica's gradient, a row of (K, P), to its own largest norm (Pascanu et al. 2013); returns the norms before, (K,)."""
    norms = torch.linalg.vector_norm(gradients, dim=1)
    gradients.mul_((limits / (norms + 1e-6)).clamp_(max=1.0).unsqueeze(1))
    return norms
