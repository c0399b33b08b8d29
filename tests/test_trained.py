"""Models after their study: kept whole, found again, writing, scoring a text token by token, and the same in another library."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from models import trained, weights
from models.__main__ import main
from models.config import ModelConfig
from models.tokenizer import Tokenizer, train_bpe
from models.transformer import Transformer

TEXT = "abba ab ba<|endoftext|>ba ab\nabba" * 9
LETTERS = Tokenizer(("<|endoftext|>", "<unk>", "\n", " ", "a", "b"))


def config(tokenizer: Tokenizer, **more: int) -> ModelConfig:
    return ModelConfig(**{"n_layer": 2, "n_embd": 16, "n_head": 2, "block_size": 16, "vocab_size": tokenizer.size} | more)


def kept(folder: Path, tokenizer: Tokenizer = LETTERS, trial_id: str = "0123-s1", val_loss: float = 2.0, **more: int) -> Path:
    """A results folder with the weights of an untrained model whose predictions differ between contexts."""
    model = Transformer(config(tokenizer, **more), seeds=[7, 8])
    model.flat.data.mul_(5)
    weights.save(folder / "weights", trial_id, model, 1, {"tokenizer": tokenizer.dump(), "val_loss": repr(val_loss)})
    return folder


def test_a_weights_file_holds_the_model_and_its_tokenizer(tmp_path: Path) -> None:
    model = Transformer(config(LETTERS), seeds=[1, 2])
    weights.save(tmp_path, "b", model, 1, {"tokenizer": LETTERS.dump()})
    again, facts = weights.read(tmp_path / "b.safetensors")
    assert again.config == model.config
    assert torch.equal(again.flat[0], model.flat[1])
    assert Tokenizer.load(facts["tokenizer"]) == LETTERS


def test_what_are_no_weights_is_refused_in_one_sentence(tmp_path: Path) -> None:
    whole = weights.find(kept(tmp_path)).read_bytes()
    (tmp_path / "short.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.safetensors").write_text("not weights")
    for name in ("short", "text", "missing"):
        with pytest.raises(ValueError, match=r"cannot be read as weights .* train that trial again"):
            weights.read(tmp_path / f"{name}.safetensors")


def test_a_trial_is_found_by_the_beginning_of_its_id_and_the_best_by_its_loss(tmp_path: Path) -> None:
    for trial_id, loss in (("aa11-s1", 2.0), ("aa22-s1", 1.5), ("bb33-s1", math.inf)):
        kept(tmp_path, trial_id=trial_id, val_loss=loss)
    assert trained.load(tmp_path).trial_id == "aa22-s1"
    assert trained.load(tmp_path, "bb").trial_id == "bb33-s1"
    assert trained.load(tmp_path / "weights" / "aa11-s1.safetensors").trial_id == "aa11-s1"
    with pytest.raises(ValueError, match=r"2 trials of .* begin with 'aa'; it has aa11-s1, aa22-s1, bb33-s1"):
        trained.load(tmp_path, "aa")
    with pytest.raises(ValueError, match="holds no weights"):
        trained.load(tmp_path / "weights" / "elsewhere")


@pytest.mark.parametrize("block_size", [1, 2, 16])
def test_a_text_has_the_loss_of_reading_it_token_by_token(tmp_path: Path, block_size: int) -> None:
    """Every token is scored once, with between half a context and a whole one before it."""
    model = trained.load(kept(tmp_path, block_size=block_size)).model
    ids = np.random.default_rng(0).integers(0, 6, size=53)
    half, losses = block_size // 2, []
    for position in range(1, 53):
        start = 0 if position <= block_size else (position - 1 - half) // max(1, half) * max(1, half)
        logits = model(torch.from_numpy(ids[start:position])[None, None])[0, 0, -1]
        losses.append(-torch.log_softmax(logits, -1)[ids[position]].item())
    assert trained.token_losses(model, ids) == pytest.approx(losses, rel=1e-4)
    assert trained.token_losses(model, ids[:2]) == pytest.approx(losses[:1], rel=1e-4)


def test_a_score_is_per_character_of_the_text_whatever_the_tokens(tmp_path: Path) -> None:
    for tokenizer in (LETTERS, train_bpe([TEXT.replace("<|endoftext|>", "")], 262)):
        model = trained.load(kept(tmp_path / str(tokenizer.size), tokenizer))
        losses = trained.token_losses(model.model, np.array([0, *tokenizer.encode(TEXT)]))
        found = model.score(TEXT)
        n_characters = len(TEXT.replace("<|endoftext|>", ""))
        assert found.n_characters == found.n_bytes == n_characters
        assert found.nats_per_character == pytest.approx(losses.sum() / n_characters)
        assert found.bits_per_byte == pytest.approx(found.nats_per_character / math.log(2))
        blocks = [losses[at : at + 16] for at in range(0, len(losses), 16)]
        spread = np.std([block.mean() for block in blocks], ddof=1) / math.sqrt(len(blocks)) * len(losses) / n_characters
        assert found.standard_error == pytest.approx(spread, rel=0.5)
    assert model.score("abc").n_unknown == 0  # bytes know every text
    strange = trained.load(tmp_path / str(LETTERS.size)).score("ab\u00e9")
    assert strange.n_unknown == 1


def test_generation_is_the_model_s_own_and_repeats_with_its_seed(tmp_path: Path) -> None:
    model = trained.load(kept(tmp_path))
    assert model.generate("ab", 20, seed=3) == model.generate("ab", 20, seed=3)
    greedy = model.generate("ab", 1, temperature=0.0)
    logits = model.model(torch.tensor([[LETTERS.encode("ab")]]))[0, 0, -1]
    logits[1] = -math.inf
    assert LETTERS.encode(greedy or "<|endoftext|>") == [int(logits.argmax())]
    assert "<|endoftext|>" not in model.generate("", 60)
    with pytest.raises(ValueError, match=r"vocabulary lacks 'xy', which the prompt holds"):
        model.generate("yaxa")


def test_the_commands_answer_and_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, text = kept(tmp_path), tmp_path / "text.txt"
    text.write_text(TEXT)
    assert main(["generate", str(results), "--prompt", "ab", "--tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("ab")
    assert main(["score", str(results), "--text", str(text), "--trial", "01"]) == 0
    assert "nats per character" in capsys.readouterr().out
    text.write_bytes(b"\xff")
    for line in (
        ["generate", str(tmp_path / "nowhere")],
        ["generate", "~nosuchuser/results"],
        ["export", str(results), "--out", "~nosuchuser/gpt2"],
        ["score", str(results), "--text", str(text)],
        ["export", str(results), "--to", "onnx"],
    ):
        assert main(line) == 1
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"base_width": 8, "base_head_dim": 4, "base_depth": 1}])
def test_transformers_loads_the_export_as_the_same_model(tmp_path: Path, more: dict[str, int]) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = {"letters": LETTERS, "pairs": train_bpe([TEXT.replace("<|endoftext|>", "")], 262)}
    for name, tokenizer in tokenizers.items():
        ours = trained.load(kept(tmp_path / name, tokenizer, **more))
        folder = ours.export(tmp_path / name / "gpt2")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        reader = transformers.AutoTokenizer.from_pretrained(folder)
        ids = tokenizer.encode(TEXT)
        assert reader(TEXT, add_special_tokens=False)["input_ids"] == ids
        assert reader.decode(ids) == TEXT
        batch = torch.tensor([ids[:16], ids[16:32]])
        with torch.no_grad():
            assert torch.allclose(theirs(batch).logits, ours.model(batch[None])[0], rtol=0, atol=1e-5)
        assert sum(p.numel() for p in theirs.parameters() if p.requires_grad) >= ours.model.config.params_total
