"""How the two expensive operations are computed: linear layers and causal attention, in float32 or with bf16 operands.

Parameters, residual stream, norms, softmax and losses are float32 in both; "bf16" casts only the operands of matrix products,
which is where the time goes. Which is faster depends on shape and device: `study.train.bundle` decides, the record says.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Precision = Literal["float32", "bf16"]

BLOCKED_FROM = 128
"""Context length from which attention in blocks of queries beats torch's fused kernel on a CPU with bf16 (measured, forward and backward:
0.95x at 64, 1.1x at 96, 1.4x at 128, 1.7x at 256; LOG 2026-11-22)."""
BLOCK = 64


def linear(x: Tensor, weight: Tensor, precision: Precision, rounded: bool = False) -> Tensor:
    """(K, M, in) times (K, out, in) transposed -> (K, M, out); for K = 1 without it, (M, in) -> (M, out).

    The result has the weights' own type, or stays bf16 where `rounded`.

    One replica avoids the batched kernels, which are slower on a CPU, and a dimension that every operation would take off and put on again.

    Casts are left to autograd: a function of our own, which kept the bf16 copies itself, cost 4 to 13 % of a step in Python.
    """
    own = weight.dtype
    if precision == "bf16":
        x, weight = x.bfloat16(), weight.bfloat16()
    # Squeezing views: indexing would copy the whole gradient on the way back.
    out = F.linear(x, weight.squeeze(0)) if weight.shape[0] == 1 else torch.bmm(x, weight.mT)
    return out if rounded else out.to(own)


class _BlockedAttention(torch.autograd.Function):
    """Causal attention in blocks of queries, each against the keys up to its own end: half of the square is never computed.

    Every block is a batched bf16 product with a softmax that computes in float32 and rounds its result to bf16.
    qkv: (N, T, 3, H, D) as the linear layer leaves it -> (N, T, H, D) as the next one takes it, both bf16.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, scale: float) -> Tensor:
        N, T, _, H, D = qkv.shape
        ctx.scale = scale
        q, k, v = qkv.permute(2, 0, 3, 1, 4).contiguous().view(3, N * H, T, D).unbind(0)
        q = q * ctx.scale
        future = torch.full((BLOCK, BLOCK), -math.inf, dtype=qkv.dtype).triu(1)
        probabilities, out = [], []
        for start in range(0, T, BLOCK):
            end = min(start + BLOCK, T)
            scores = torch.bmm(q[:, start:end], k[:, :end].mT)
            scores[:, :, start:].add_(future[: end - start, : end - start])
            probabilities.append(F.softmax(scores, -1))
            out.append(torch.bmm(probabilities[-1], v[:, :end]))
        ctx.save_for_backward(q, k, v, *probabilities)
        return torch.cat(out, 1).view(N, H, T, D).transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        q, k, v, *probabilities = ctx.saved_tensors
        N, T, H, D = grad.shape
        grad = grad.transpose(1, 2).contiguous().view(N * H, T, D)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros(k.shape), torch.zeros(v.shape)
        for start, p in zip(range(0, T, BLOCK), probabilities, strict=True):
            end = min(start + BLOCK, T)
            grad_v[:, :end] += torch.bmm(p.mT, grad[:, start:end])
            grad_p = torch.bmm(grad[:, start:end], v[:, :end].mT)
            grad_scores = torch._softmax_backward_data(grad_p, p, -1, p.dtype)
            grad_q[:, start:end] = torch.bmm(grad_scores, k[:, :end])
            grad_k[:, :end] += torch.bmm(grad_scores.mT, q[:, start:end])
        out = torch.empty((N, T, 3, H, D), dtype=grad.dtype)
        for i, part in enumerate((grad_q.mul_(ctx.scale), grad_k, grad_v)):
            out[:, :, i] = part.view(N, H, T, D).transpose(1, 2)
        return out, None


def rounds_attention(device: torch.device, precision: Precision, T: int, dropout: float) -> bool:
    """Whether attention should be given bf16: where it computes in it. Torch's fused kernels want bf16 on a GPU; on a CPU they are several
    times slower in it than in float32, so that only our blocked attention takes it there."""
    blocked = device.type == "cpu" and T >= BLOCKED_FROM and not dropout
    return precision == "bf16" and (blocked or device.type == "cuda")


def causal_attention(qkv: Tensor, scale: float, dropout: float = 0.0) -> Tensor:
    """softmax(scale q k^T) v with a causal mask, (N, T, 3, H, D) -> (N, T, H, D); bf16 on a CPU is computed in blocks."""
    if qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16:
        return _BlockedAttention.apply(qkv, scale)
    q, k, v = qkv.transpose(1, 3).unbind(2)  # each (N, H, T, D)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scale).transpose(1, 2)
