"""The peer of the speed benchmarks: nanoGPT's model and training loop as published, expressed anew as plain PyTorch.

From its published description, not its code: pre-norm blocks, one fused qkv projection, attention either through torch's fused kernel or
written out (the published study's logs show the cost of the latter), AdamW with two groups, gradient clipping, cosine schedule, and its
evaluation habit: every 250 steps, 200 random batches of each split. On a GPU compiled and under bf16 autocast, as published.
"""

import math
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import ModelConfig

EVAL_EVERY, EVAL_BATCHES = 250, 200


class PeerBlock(nn.Module):
    """Attention and MLP, each behind a norm."""

    mask: Tensor

    def __init__(self, config: ModelConfig, fused: bool) -> None:
        super().__init__()
        C = config.n_embd
        self.config, self.fused = config, fused
        self.norm1, self.norm2 = nn.LayerNorm(C, bias=False), nn.LayerNorm(C, bias=False)
        self.qkv, self.proj = nn.Linear(C, 3 * C, bias=False), nn.Linear(C, C, bias=False)
        self.up, self.down = nn.Linear(C, 4 * C, bias=False), nn.Linear(4 * C, C, bias=False)
        self.register_buffer("mask", torch.tril(torch.ones(config.block_size, config.block_size)).view(1, 1, *[config.block_size] * 2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        B, T, C = x.shape
        heads = (B, T, self.config.n_head, self.config.head_dim)
        q, k, v = (part.view(heads).transpose(1, 2) for part in self.qkv(self.norm1(x)).split(C, dim=2))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
            y = F.softmax(scores.masked_fill(self.mask[:, :, :T, :T] == 0, float("-inf")), dim=-1) @ v
        x = x + self.proj(y.transpose(1, 2).contiguous().view(B, T, C))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Peer(nn.Module):
    """The whole network with a tied head."""

    def __init__(self, config: ModelConfig, fused: bool = True) -> None:
        super().__init__()
        self.config = config
        self.wte, self.wpe = nn.Embedding(config.vocab_size, config.n_embd), nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(PeerBlock(config, fused) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd, bias=False)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.head.weight = self.wte.weight
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer) if name.endswith(("proj.weight", "down.weight")) else 0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of (B, T) tokens in nats."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).view(-1, self.config.vocab_size), targets.view(-1))


class PeerLoop:
    """The training loop: one call of `step` is one optimizer step, `evaluate` is the published evaluation habit."""

    def __init__(
        self, config: ModelConfig, tokens: np.ndarray, batch_size: int, lr: float, n_steps: int, fused: bool = True, device: str = "cpu"
    ) -> None:
        torch.manual_seed(1337)
        self.config, self.tokens, self.batch_size, self.lr, self.n_steps, self.i = config, tokens, batch_size, lr, n_steps, 0
        self.model, self.device = Peer(config, fused).to(device), device
        self.run: Callable[[Tensor, Tensor], Tensor] = torch.compile(self.model) if device == "cuda" else self.model
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        scales = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": scales, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=True if device == "cuda" else None)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Random windows, cut one by one and stacked."""
        T = self.config.block_size
        starts = torch.randint(len(self.tokens) - T, (self.batch_size,))
        x = torch.stack([torch.from_numpy(self.tokens[i : i + T].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(self.tokens[i + 1 : i + 1 + T].astype(np.int64)) for i in starts])
        if self.device == "cuda":
            return x.pin_memory().to(self.device, non_blocking=True), y.pin_memory().to(self.device, non_blocking=True)
        return x, y

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean loss of a batch: under bf16 autocast on a GPU, in float32 on a CPU."""
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device == "cuda"):
            return self.run(x, y)

    def step(self) -> None:
        """One optimizer step; the loss is read at every tenth, as the published loop does when it logs (on a CPU reading costs nothing)."""
        warm = min(1.0, (self.i + 1) / 101)
        progress = max(0.0, (self.i - 100) / max(1, self.n_steps - 100))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * (warm if warm < 1 else 0.1 + 0.45 * (1 + math.cos(math.pi * progress)))
        x, y = self.batch()
        loss = self.loss(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.i += 1
        if self.i % 10 == 0:
            loss.item()

    @torch.no_grad()
    def evaluate(self, batches: int = EVAL_BATCHES) -> float:
        """Mean loss over random batches of both splits."""
        self.model.eval()
        losses = [self.loss(*self.batch()).item() for _ in range(2 * batches)]
        self.model.train()
        return sum(losses) / len(losses)


def matmul_peak(dtype: torch.dtype, seconds: float = 0.5, clock: Callable[[], float] | None = None, device: str = "cpu") -> float:
    """Measured FLOP/s of the best large square matrix product of this dtype on this many threads, or on a GPU."""
    clock, best = clock or time.perf_counter, 0.0
    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    for n in (4096, 8192) if device == "cuda" else (512, 1024, 2048):
        a, b = torch.randn(n, n, device=device).to(dtype), torch.randn(n, n, device=device).to(dtype)
        a @ b
        wait()
        until = clock() + seconds / 3
        while clock() < until:
            began = clock()
            a @ b
            wait()
            best = max(best, 2 * n**3 / (clock() - began))
    return best
