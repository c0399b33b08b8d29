"""The network behaves like the model it claims to be, alone and in a bundle, in both precisions."""

import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from models.arithmetic import causal_attention
from models.config import ModelConfig
from models.generate import generate
from models.transformer import Transformer
from tests.rounding import drift, float64

SMALL = ModelConfig(n_layer=2, n_embd=32, n_head=4, block_size=16, vocab_size=23)


def batch(config: ModelConfig, K: int = 1, B: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randint(config.vocab_size, (K, B, config.block_size), generator=torch.Generator().manual_seed(seed))


def reference_logits(model: Transformer, replica: int, tokens: torch.Tensor) -> torch.Tensor:
    """The same model written out from its description with nothing shared: per-head loops, explicit mask and softmax."""
    weight = {name: tensor.detach().double() for name, tensor in model.tensors(replica).items()}
    config = model.config
    x = weight["wte"][tokens] + weight["wpe"][: tokens.shape[1]]

    def normalized(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * scale

    for layer in range(config.n_layer):
        h = normalized(x, weight[f"norm1_{layer}"])
        q, k, v = (h @ part.T for part in weight[f"qkv_{layer}"].chunk(3))
        heads = []
        for s in (slice(i * config.head_dim, (i + 1) * config.head_dim) for i in range(config.n_head)):
            scores = q[..., s] @ k[..., s].mT / math.sqrt(config.head_dim)
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
            heads.append(scores.softmax(-1) @ v[..., s])
        x = x + torch.cat(heads, -1) @ weight[f"proj_{layer}"].T
        u = normalized(x, weight[f"norm2_{layer}"]) @ weight[f"up_{layer}"].T
        x = x + (u * 0.5 * (1 + torch.erf(u / math.sqrt(2)))) @ weight[f"down_{layer}"].T
    return normalized(x, weight["norm_f"]) @ weight["wte"].T


@pytest.mark.parametrize("K", [1, 3])
def test_logits_equal_a_written_out_reference(K: int) -> None:
    """To the rounding of the norms and products one after another, the longest of which has 4 C terms."""
    tokens = batch(SMALL, K)
    for precise in (float64(), nullcontext()):
        with precise:
            model = Transformer(SMALL, seeds=list(range(K)))
            logits = model(tokens)
        bound = drift(8 * SMALL.n_layer, 4 * SMALL.n_embd, logits.dtype)
        for replica in range(K):
            torch.testing.assert_close(logits[replica].double(), reference_logits(model, replica, tokens[replica]), rtol=bound, atol=bound)


def test_future_tokens_cannot_change_past_logits() -> None:
    model = Transformer(SMALL)
    tokens = batch(SMALL)
    changed = tokens.clone()
    changed[:, :, 9:] = (changed[:, :, 9:] + 1) % SMALL.vocab_size
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :, :9], after[:, :, :9])
    assert not torch.allclose(before[:, :, 9:], after[:, :, 9:])


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_tiny_model_overfits_one_batch(precision: str) -> None:
    model = Transformer(SMALL)
    model.precision = precision
    tokens = batch(SMALL, B=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        loss = model.loss(tokens[:, :, :-1], tokens[:, :, 1:]).sum()
        loss.backward()
        optimizer.step()
        model.flat_grad.zero_()
    assert loss.item() < 0.05


def test_bf16_operands_change_the_loss_by_less_than_their_rounding() -> None:
    config = ModelConfig(n_layer=2, n_embd=64, n_head=4, block_size=256, vocab_size=50)
    model, tokens = Transformer(config, seeds=[5]), batch(config)
    exact = model.loss(tokens, tokens).item()
    model.precision = "bf16"
    assert model.loss(tokens, tokens).item() == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize("T", [40, 128, 200, 256])
def test_blocked_attention_and_its_gradients_equal_torchs_attention(T: int) -> None:
    generator = torch.Generator().manual_seed(0)
    qkv, grad = torch.randn(2, T, 3, 3, 16, generator=generator), torch.randn(2, T, 3, 16, generator=generator)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        x = qkv.to(dtype, copy=True).requires_grad_()
        out = causal_attention(x, scale=0.3)
        out.backward(grad.to(dtype))
        assert x.grad is not None
        results.append([out, *x.grad.unbind(2)])
    for exact, rounded in zip(*results, strict=True):
        error = (exact - rounded.float()).norm() / exact.norm()
        assert error < 0.01, f"relative error {error:.4f}"


@pytest.mark.parametrize("n_tokens", [5, 60])
def test_the_cache_gives_the_same_text_as_reading_everything_anew(n_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 tokens overflow the context of 16 several times; temperature 0 takes the likeliest token."""
    prompts = batch(SMALL, K=2)[:, :, :6]
    with float64():  # where rounding cannot decide between two tokens
        model = Transformer(SMALL, seeds=[1, 2])
        with torch.no_grad():
            model.flat.mul_(4.0)  # sharper logits than an untrained model's
        fast = [generate(model, prompts, n_tokens, torch.full((4,), temperature), seed=3) for temperature in (0.0, 1.0)]
        monkeypatch.setattr(model, "new_cache", lambda B: None)
        slow = [generate(model, prompts, n_tokens, torch.full((4,), temperature), seed=3) for temperature in (0.0, 1.0)]
    assert all(map(torch.equal, fast, slow))
    assert not torch.equal(*fast[1]), "replicas with different weights should write different texts"


def test_sampling_follows_the_models_probabilities() -> None:
    model = Transformer(SMALL)
    prompt = batch(SMALL, B=1)[:, :, :3].expand(1, 4000, 3)
    drawn = generate(model, prompt, 1, torch.ones(4000), seed=1, forbidden=(0,))[0, :, 0]
    expected = F.softmax(model(prompt[:, :1])[0, 0, -1, 1:], -1)
    observed = torch.bincount(drawn, minlength=SMALL.vocab_size)[1:] / 4000
    assert (drawn != 0).all()
    assert (observed - expected / expected.sum()).abs().max() < 0.02
