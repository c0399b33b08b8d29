"""The best model reads every text, each character once."""

import numpy as np
import pytest
import torch

from models.config import ModelConfig
from models.transformer import Transformer
from study.train import text_loss as judge
from tests.rounding import drift, float64

CONFIG = ModelConfig(n_layer=2, n_embd=16, n_head=2, block_size=16, vocab_size=11)


def test_a_text_has_the_loss_of_reading_it_character_by_character() -> None:
    """Every character is judged once, with between half a context and a whole one before it."""
    with float64():
        model = Transformer(CONFIG, seeds=[3]).eval()
    model.flat.mul_(5)  # predictions that differ between contexts
    text = judge.Text(np.random.default_rng(0).integers(2, 11, size=53), n_prompt=7)
    half, losses = CONFIG.block_size // 2, []
    for position in range(7, 53):
        start = 0 if position <= CONFIG.block_size else (position - 1) // half * half - half
        logits = model(torch.from_numpy(text.ids[start:position])[None, None])[0, 0, -1]
        losses.append(-torch.log_softmax(logits, -1)[text.ids[position]].item())
    bound = drift(8 * CONFIG.n_layer, 4 * CONFIG.n_embd)
    assert judge.text_losses(model, [text])[0] == pytest.approx(np.mean(losses), rel=bound)
    several = judge.text_losses(model, [text, judge.Text(text.ids[:20], 7), text])
    assert several[0] == pytest.approx(several[2], rel=bound)


def test_an_end_of_text_mark_is_one_token_and_a_strange_character_is_unknown() -> None:
    found = judge.encode("ab", "b<|endoftext|>a?", ("<|endoftext|>", "<unk>", "a", "b"))
    assert found.ids.tolist() == [2, 3, 3, 0, 2, 1]
    assert found.n_prompt == 2
