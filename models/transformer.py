"""The network: K replicas of one shape as one program, and their initialization.

A replica is one trial's model. All K share every kernel launch: each parameter has a leading replica dimension, linear layers are
batched matrix products and attention runs once over K * B sequences. K = 1 takes the plain two-dimensional path at no extra cost.

    model = Transformer(ModelConfig(vocab_size=64), seeds=[1, 2]); logits = model(tokens)   # (K, B, T) -> (K, B, T, V)

Letters: K replicas, B sequences, T time, C = n_embd, H heads, D = head_dim, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.arithmetic import Precision, causal_attention, linear, rounds_attention
from models.config import ModelConfig

INIT_STD = 0.02
"""nanoGPT's standard deviation; projections into the residual stream have INIT_STD / sqrt(2 n_layer) (GPT-2 report, section 2.3)."""

EMBEDDINGS = ("wte", "wpe")


def norm(x: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without bias (Ba et al. 2016), (K, M, C) with a scale of (K, C)."""
    if scale.shape[0] == 1:
        return F.layer_norm(x, scale.shape[-1:], scale.squeeze(0))
    return F.layer_norm(x, scale.shape[-1:]) * scale.unsqueeze(1)


@dataclass
class Cache:
    """Keys and values of the tokens read so far, for generation."""

    keys: Tensor  # (L, K*B, H, T, D)
    values: Tensor
    length: int = 0


class Network(nn.Module):
    """What training, generation and weights files know of a model: K replicas whose parameters are views of one buffer."""

    config: ModelConfig
    replicas: int
    precision: Precision
    flat: Tensor  # (K, P)
    flat_grad: Tensor  # (K, P)
    decayed: int
    """elements of a row of `flat` that take weight decay: its matrices, which come first"""

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of each replica in nats per token, (K,). Their sum's gradient is each replica's own gradient."""
        return self.token_losses(tokens, targets).mean(dim=(1, 2))

    def token_losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of every token, (K, B, T)."""
        logits = self(tokens)
        return F.cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="none").view_as(targets)

    def new_cache(self, B: int) -> Cache | None:
        """An empty cache for B sequences per replica, or None where the whole context is read for every token."""
        return None

    def tensors(self, replica: int) -> dict[str, Tensor]:
        """All that a replica is made of, by name."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """What training changes beside the parameters, or may change: buffers."""
        return {name: buffer for name, buffer in self.named_buffers() if not buffer.is_complex()}


class Transformer(Network):
    """K replicas of a pre-norm decoder with learned positions, GELU, no bias and a tied head.

    Args:
        seeds: one seed per replica; a replica's initial weights depend on its own seed only, not on its neighbors.
        dropout: probability after embeddings, attention and MLP (as in nanoGPT), the same in all replicas.
        device: where the weights live, for good: they are views of one buffer and cannot be moved one by one.
    """

    wte: Tensor  # (K, V, C), also the head
    wpe: Tensor  # (K, block_size, C)
    norm_f: Tensor  # (K, C)

    def __init__(self, config: ModelConfig, seeds: Sequence[int] = (0,), dropout: float = 0.0, device: str = "cpu") -> None:
        super().__init__()
        self.config, self.replicas, self.dropout = config, len(seeds), dropout
        self.precision, shapes = "float32", parameter_shapes(config)
        sizes = [math.prod(shape) for shape in shapes.values()]
        self.decayed = sum(size for size, shape in zip(sizes, shapes.values(), strict=True) if len(shape) == 2)
        # One flat (K, P) buffer for weights and one for gradients, every parameter a view of both: clipping, AdamW and checkpoints
        # touch one tensor per replica.
        self.flat = torch.empty(self.replicas, sum(sizes), device=device)
        self.flat_grad = torch.zeros_like(self.flat)
        views = zip(shapes.items(), self.flat.split(sizes, dim=1), self.flat_grad.split(sizes, dim=1), strict=True)
        for (name, shape), weights, gradients in views:
            parameter = nn.Parameter(weights.view(self.replicas, *shape))
            parameter.grad = gradients.view(self.replicas, *shape)
            self.register_parameter(name, parameter)
        self.initialize(seeds)

    @torch.no_grad()
    def initialize(self, seeds: Sequence[int]) -> None:
        """Draw every replica's weights from its own generator on the CPU, so that all devices start alike.

        embeddings, qkv, up: normal(0, 0.02); projections into the residual stream: normal(0, 0.02 / sqrt(2 L)); norm scales: 1.
        Under muP the matrices between channels have 1 / sqrt(width_ratio) of that; under CompleteP L is the base depth at every depth.
        """
        hidden_std = INIT_STD / math.sqrt(self.config.width_ratio)
        for replica, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            for name, target in self.tensors(replica).items():
                std = INIT_STD if name in EMBEDDINGS else hidden_std
                if name.startswith(("proj", "down")):
                    std /= math.sqrt(2 * (self.config.base_depth or self.config.n_layer))
                if name.startswith("norm"):
                    target.fill_(1.0)
                else:
                    target.copy_(torch.randn(target.shape, generator=generator, dtype=torch.float32) * std)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits (K, B, T, V) for token ids (K, B, T), T <= block_size; with a cache, the tokens follow those already in it."""
        K, B, T = tokens.shape
        x = self.embed(tokens, cache.length if cache else 0)  # (K, B*T, C); here and below without K where that is 1
        # What a branch adds: m_L^-1 under CompleteP (Dey et al. 2025, table 1, alpha = 1), else all of it.
        share = 1 / self.config.depth_ratio
        for layer in range(self.config.n_layer):
            x = torch.add(x, self.drop(self.attention(norm(x, getattr(self, f"norm1_{layer}")), layer, B, T, cache)), alpha=share)
            x = torch.add(x, self.drop(self.mlp(norm(x, getattr(self, f"norm2_{layer}")), layer)), alpha=share)
        if cache:
            cache.length += T
        # The head stays in float32: it is cheap at a character vocabulary, and logits rounded to bf16 would coarsen the loss.
        ratio = self.config.width_ratio
        return linear(norm(x, self.norm_f if ratio == 1 else self.norm_f / ratio), self.wte, "float32").view(K, B, T, -1)

    def embed(self, tokens: Tensor, start: int = 0) -> Tensor:
        """Token plus position embeddings, (K, B, T) -> (K, B*T, C); `start` is the position of the first token."""
        K, B, T = tokens.shape
        C = self.config.n_embd
        if K == 1:
            x = F.embedding(tokens.squeeze(0), self.wte.squeeze(0)) + self.wpe.squeeze(0)[start : start + T]  # (B, T, C)
        else:
            # One lookup over all replicas' tables laid end to end.
            offset = torch.arange(K, device=tokens.device).view(K, 1, 1) * self.config.vocab_size
            x = F.embedding(tokens + offset, self.wte.reshape(-1, C)) + self.wpe[:, None, start : start + T]  # (K, B, T, C)
        return self.drop(x.reshape(B * T, C) if K == 1 else x.reshape(K, B * T, C))

    def attention(self, x: Tensor, layer: int, B: int, T: int, cache: Cache | None = None) -> Tensor:
        """Causal self-attention, (K, B*T, C) -> (K, B*T, C)."""
        K, H, D, shape = self.replicas, self.config.n_head, self.config.head_dim, x.shape
        dropout = self.dropout if self.training else 0.0
        rounded = rounds_attention(x.device, self.precision, 0 if cache else T, dropout)
        qkv = linear(x, getattr(self, f"qkv_{layer}"), self.precision, rounded).view(K * B, T, 3, H, D)
        scale = self.config.attention_scale
        y = self.cached_attention(qkv, layer, cache, scale) if cache else causal_attention(qkv, scale, dropout)  # (K*B, T, H, D)
        return linear(y.reshape(shape), getattr(self, f"proj_{layer}"), self.precision)

    @staticmethod
    def cached_attention(qkv: Tensor, layer: int, cache: Cache, scale: float) -> Tensor:
        """Attention of new tokens to all so far, (K*B, T, 3, H, D) -> (K*B, T, H, D): either the first tokens, or one token at a time."""
        q, k, v = qkv.transpose(1, 3).unbind(2)  # each (K*B, H, T, D)
        start, end = cache.length, cache.length + q.shape[2]
        assert start == 0 or end == start + 1, "a cache is filled by one prompt, then token by token"
        cache.keys[layer, :, :, start:end], cache.values[layer, :, :, start:end] = k, v
        keys, values = cache.keys[layer, :, :, :end], cache.values[layer, :, :, :end]
        keys, values = keys.to(q.dtype), values.to(q.dtype)
        return F.scaled_dot_product_attention(q, keys, values, is_causal=start == 0, scale=scale).transpose(1, 2)

    def new_cache(self, B: int) -> Cache:
        """An empty cache for B sequences per replica."""
        shape = (self.config.n_layer, self.replicas * B, self.config.n_head, self.config.block_size, self.config.head_dim)
        dtype = torch.bfloat16 if self.precision == "bf16" and self.flat.device.type == "cuda" else self.flat.dtype
        keys = torch.zeros(shape, dtype=dtype, device=self.flat.device)
        return Cache(keys, torch.zeros_like(keys))

    def mlp(self, x: Tensor, layer: int) -> Tensor:
        """C -> 4C -> GELU (exact) -> C."""
        hidden = F.gelu(linear(x, getattr(self, f"up_{layer}"), self.precision, self.precision == "bf16"))
        return linear(hidden, getattr(self, f"down_{layer}"), self.precision)

    def drop(self, x: Tensor) -> Tensor:
        """Dropout where the recipe has any."""
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def tensors(self, replica: int) -> dict[str, Tensor]:
        """Parameters by the names of `parameter_shapes`."""
        return {name: parameter[replica] for name, parameter in self.named_parameters()}


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter of one replica: matrices first (they take weight decay), then norm scales (they do not)."""
    V, T, C = config.vocab_size, config.block_size, config.n_embd
    matrices: dict[str, tuple[int, ...]] = {"wte": (V, C), "wpe": (T, C)}
    scales: dict[str, tuple[int, ...]] = {}
    for layer in range(config.n_layer):
        matrices |= {f"qkv_{layer}": (3 * C, C), f"proj_{layer}": (C, C), f"up_{layer}": (4 * C, C), f"down_{layer}": (C, 4 * C)}
        scales |= {f"norm1_{layer}": (C,), f"norm2_{layer}": (C,)}
    return matrices | scales | {"norm_f": (C,)}
