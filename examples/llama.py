"""A model of one's own: a small Llama (Touvron et al. 2023), built from a study's ModelConfig.

RMSNorm (Zhang & Sennrich 2019) before each branch, rotary positions (Su et al. 2021), SwiGLU (Shazeer 2020) and, with
`--model.extra.n_kv_heads`, grouped queries (Ainslie et al. 2023). The file may import what is installed; it travels to the workers.

    python -m study.run quick --model.module examples/llama.py:Llama --model.extra.n_kv_heads 2
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Llama(nn.Module):
    """What a study needs: a class built from a ModelConfig whose forward gives logits."""

    def __init__(self, config):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.head.weight = self.embedding.weight  # tied: counted once
        for weight in (p for p in self.parameters() if p.dim() == 2):
            nn.init.normal_(weight, std=0.02)
        for block in self.blocks:  # what adds to the residual stream starts smaller, the deeper the model
            for layer in (block.out, block.down):
                nn.init.normal_(layer.weight, std=0.02 / (2 * config.n_layer) ** 0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, vocab_size)"""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Block(nn.Module):
    """Attention and SwiGLU, each on its normed input."""

    def __init__(self, config):
        super().__init__()
        extra = dict(config.extra)
        self.heads, self.head_dim = config.n_head, config.n_embd // config.n_head
        self.kv_heads = int(extra.get("n_kv_heads", config.n_head))
        hidden = 8 * config.n_embd // 3  # three matrices of this width hold as much as two of 4 n_embd
        self.norm1, self.norm2 = nn.RMSNorm(config.n_embd), nn.RMSNorm(config.n_embd)
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.key_value = nn.Linear(config.n_embd, 2 * self.kv_heads * self.head_dim, bias=False)
        self.out = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.gate_up = nn.Linear(config.n_embd, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)

    def attention(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q = self.query(x).view(B, T, self.heads, -1).transpose(1, 2)
        k, v = self.key_value(x).view(B, T, 2 * self.kv_heads, -1).transpose(1, 2).chunk(2, 1)
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, 1) for t in (rotated(k), v))
        y = F.scaled_dot_product_attention(rotated(q), k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


def rotated(x: Tensor) -> Tensor:
    """Queries or keys (B, H, T, D) turned by their positions; an odd last channel stays."""
    T, half = x.shape[-2], x.shape[-1] // 2
    angle = torch.arange(T, device=x.device)[:, None] * 10_000.0 ** (-torch.arange(half, device=x.device) / half)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos(), rest], -1).to(x.dtype)
