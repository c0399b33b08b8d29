"""How the two expensive operations are computed: linear layers and causal attention, in float32 or with bf16 operands.

Parameters, residual stream, norms, softmax and losses are float32 in both; "bf16" casts only the operands of matrix products,
which is where the time goes. Which is faster depends on shape and device: `study.train` decides, the record says.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Precision = Literal["float32", "bf16"]

BLOCKED_FROM = 192
"""Context length from which attention in blocks of queries beats torch's fused kernel on a CPU with bf16 (measured: 0.6x at 64,
1.1x at 128, 2.0x at 256; LOG 2026-11-22)."""
BLOCK = 64


class _LinearBF16(torch.autograd.Function):
    """x W^T with bf16 operands; the backward pass reuses the operands' bf16 copies. x: (..., M, in), weight: (..., out, in)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, out_dtype: torch.dtype) -> Tensor:
        x16, w16 = x.to(torch.bfloat16), weight.to(torch.bfloat16)
        ctx.save_for_backward(x16, w16)
        ctx.x_dtype = x.dtype
        return (x16 @ w16.mT).to(out_dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x16, w16 = ctx.saved_tensors
        grad16 = grad.to(torch.bfloat16)
        return (grad16 @ w16).to(ctx.x_dtype), (grad16.mT @ x16).float(), None


def linear(x: Tensor, weight: Tensor, precision: Precision, out_dtype: torch.dtype = torch.float32) -> Tensor:
    """(K, M, in) times (K, out, in) transposed -> (K, M, out). K = 1 avoids the batched kernels, which are slower on a CPU."""
    if weight.shape[0] == 1:
        x2, w2 = x.squeeze(0), weight.squeeze(0)  # views: indexing would copy the whole gradient on the way back
        return (_LinearBF16.apply(x2, w2, out_dtype) if precision == "bf16" else F.linear(x2, w2)).unsqueeze(0)
    return _LinearBF16.apply(x, weight, out_dtype) if precision == "bf16" else torch.bmm(x, weight.mT)


class _BlockedAttention(torch.autograd.Function):
    """Causal attention in blocks of queries, each against the keys up to its own end: half of the square is never computed.

    Every block is a batched bf16 product with a float32 softmax; probabilities are kept in bf16 for the backward pass.
    q, k, v: (N, T, D) with N = sequences times heads.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        T, D = q.shape[1:]
        ctx.scale = 1 / math.sqrt(D)
        q, k, v = (q * ctx.scale).bfloat16(), k.bfloat16(), v.bfloat16()
        future = torch.full((BLOCK, BLOCK), -math.inf).triu(1)
        probabilities, out = [], []
        for start in range(0, T, BLOCK):
            end = min(start + BLOCK, T)
            scores = torch.bmm(q[:, start:end], k[:, :end].mT).float()
            scores[:, :, start:] += future[: end - start, : end - start]
            probabilities.append(F.softmax(scores, -1).bfloat16())
            out.append(torch.bmm(probabilities[-1], v[:, :end]))
        ctx.save_for_backward(q, k, v, *probabilities)
        return torch.cat(out, 1).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *probabilities = ctx.saved_tensors
        grad = grad.bfloat16()
        grad_q, grad_k, grad_v = [], torch.zeros(k.shape), torch.zeros(v.shape)
        for block, start in enumerate(range(0, q.shape[1], BLOCK)):
            end, p = min(start + BLOCK, q.shape[1]), probabilities[block]
            grad_v[:, :end] += torch.bmm(p.mT, grad[:, start:end])
            grad_p = torch.bmm(grad[:, start:end], v[:, :end].mT).float()
            grad_scores = torch._softmax_backward_data(grad_p, p.float(), -1, torch.float32).bfloat16()
            grad_q.append(torch.bmm(grad_scores, k[:, :end]))
            grad_k[:, :end] += torch.bmm(grad_scores.mT, q[:, start:end])
        return torch.cat(grad_q, 1).float() * ctx.scale, grad_k, grad_v


def causal_attention(q: Tensor, k: Tensor, v: Tensor, precision: Precision, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(D)) v with a causal mask, (N, H, T, D) each -> (N, H, T, D)."""
    if q.device.type == "cpu" and precision == "bf16" and q.shape[2] >= BLOCKED_FROM and not dropout:
        return _BlockedAttention.apply(*(x.flatten(0, 1) for x in (q, k, v))).view_as(q)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
