"""Counts follow the published numbers and torch's own counters exactly."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.config import ModelConfig
from models.transformer import Transformer

PUBLISHED = {  # n_layer, n_embd, n_head -> params_total of the original study's twelve runs (block 256, vocabulary 228)
    (2, 256, 8): 1_698_048, (4, 256, 8): 3_271_936, (8, 256, 8): 6_419_712, (12, 256, 8): 9_567_488,
    (6, 128, 8): 1_243_264, (6, 192, 8): 2_749_632, (6, 256, 8): 4_845_824, (6, 384, 8): 10_807_680,
    (6, 256, 4): 4_845_824, (6, 256, 16): 4_845_824, (6, 256, 32): 4_845_824,
}  # fmt: skip
SHAPES = [
    ModelConfig(n_layer, n_embd, n_head, block_size, vocab_size=vocab_size)
    for n_layer, n_embd, n_head, block_size, vocab_size in [
        (1, 8, 1, 4, 5), (2, 64, 4, 64, 64), (3, 48, 3, 32, 70), (4, 128, 8, 100, 228),
    ]
]  # fmt: skip


@pytest.mark.parametrize(("shape", "expected"), PUBLISHED.items())
def test_parameter_counts_equal_the_published_ones(shape: tuple[int, int, int], expected: int) -> None:
    assert ModelConfig(*shape, block_size=256, vocab_size=228).params_total == expected


def test_gpt2_small_has_its_published_size_once_its_biases_are_added() -> None:
    config = ModelConfig(n_layer=12, n_embd=768, n_head=12, block_size=1024, vocab_size=50257)
    biases = 12 * (2 * 768 + 3 * 768 + 768 + 4 * 768 + 768) + 768
    assert config.params_total + biases == 124_439_808


@pytest.mark.parametrize("config", SHAPES)
def test_counts_equal_the_sum_of_tensor_elements(config: ModelConfig) -> None:
    model = Transformer(config, seeds=[0, 1])
    assert sum(p.numel() for p in model.parameters()) == 2 * config.params_total == model.flat.numel()
    norms = sum(p.numel() for name, p in model.named_parameters() if name.startswith("norm"))
    assert model.decayed == config.params_total - norms // 2


@pytest.mark.parametrize("config", SHAPES)
def test_flops_equal_torchs_counter(config: ModelConfig) -> None:
    """On the meta device the counter sees attention too; on a CPU it misses it."""
    with torch.device("meta"):
        model = Transformer(config, seeds=[0], device="meta")
        tokens = torch.zeros(1, 3, config.block_size, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model.loss(tokens, tokens).sum().backward()
    forward = config.forward_flops_per_token * tokens.numel()
    # The counter sees the fused attention's backward recompute the scores: 5 products instead of 4, half the forward's two more.
    recompute = config.n_layer * 2 * config.block_size * config.n_embd * tokens.numel()
    assert counter.get_total_flops() in (3 * forward, 3 * forward + recompute)


@pytest.mark.parametrize(
    ("change", "words"), [({"n_head": 3}, "not divisible by n_head=3"), ({"n_layer": 0}, "n_layer=0"), ({"n_embd": 64.0}, "n_embd=64.0")]
)
def test_impossible_shapes_are_refused_with_what_to_do(change: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ModelConfig(**{"n_embd": 64, "n_head": 4, **change})
