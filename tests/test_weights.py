"""Final weights are kept and read back exactly."""

from pathlib import Path

import pytest
import torch

from models.config import ModelConfig
from models.transformer import Transformer
from study.train import final_weights as weights

CONFIG = ModelConfig(n_layer=2, n_embd=16, n_head=2, block_size=16, vocab_size=11)


def test_weights_come_back_as_they_were(tmp_path: Path) -> None:
    model = Transformer(CONFIG, seeds=[1, 2])
    weights.save(tmp_path, "b", model, 1)
    again = weights.load(tmp_path / "b.safetensors")
    assert again.config == CONFIG
    assert torch.equal(again.flat[0], model.flat[1])


def test_what_are_no_weights_is_refused_in_one_sentence(tmp_path: Path) -> None:
    model = Transformer(CONFIG)
    weights.save(tmp_path, "a", model, 0)
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.safetensors").write_text("not weights")
    for name in ("short", "text", "missing"):
        with pytest.raises(ValueError, match=r"cannot be read as weights .* train that trial again"):
            weights.load(tmp_path / f"{name}.safetensors")
