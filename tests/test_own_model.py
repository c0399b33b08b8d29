"""A model of the user's own: counted, trained, resumed, kept and refused; examples/llama.py is one."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models import module_file, trained
from models.config import ModelConfig, Shape
from models.module_file import resolve
from models.own import OwnModel
from models.tokenizer import Tokenizer
from study import records, run
from study.command import parse
from study.plan.packing import speed_key
from study.spec import DataConfig, TrainConfig, Trial, expand
from study.train.branched_bundle import keep_weights
from study.train.bundle import Bundle
from study.train.device import Execution
from tests.running import ROOT, finished, tiny
from tests.test_run import refused

LLAMA = f"{ROOT}/examples/llama.py:Llama"
LETTERS = Tokenizer(("<|endoftext|>", "<unk>", *"abcdefgh"))
TOKENS = np.tile(np.arange(2, 10, dtype=np.uint8), 200)
NOISY = """
from torch import nn
class Noisy(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.table = nn.Embedding(config.vocab_size, config.n_embd)
        self.norm, self.drop = nn.BatchNorm1d(config.n_embd), nn.Dropout(dict(config.extra)["dropout"])
        self.head = nn.Linear(config.n_embd, config.vocab_size)
    def forward(self, tokens):
        x = self.table(tokens)
        return self.head(self.drop(self.norm(x.flatten(0, 1)).view_as(x)))
"""


def llama() -> ModelConfig:
    return ModelConfig(3, 24, 4, 16, vocab_size=10, module=resolve(LLAMA), extra=(("n_kv_heads", 2),))


def written(folder: Path, body: str, name: str = "Own") -> str:
    (folder / "own.py").write_text(body)
    return f"{folder}/own.py:{name}"


def bundle_of(module: str, seed: int = 1, **extra: float) -> Bundle:
    shape = Shape(2, 16, 2, 8, module=resolve(module), extra=tuple(extra.items()))
    recipe = TrainConfig(n_steps=40, eval_interval=20, eval_windows=8, warmup_steps=2, lr=1e-2)
    return Bundle([Trial(shape, recipe, DataConfig(), seed)], TOKENS, TOKENS, 10, LETTERS, Execution("cpu", "float32", 1))


def test_parameters_and_flops_are_counted_from_the_module() -> None:
    config = llama()
    L, d, T, V, hidden, kv = 3, 24, 16, 10, 64, 2 * 6
    matrices = L * (2 * d * d + 2 * d * kv + 3 * d * hidden)
    assert config.params_total == OwnModel(config).flat.numel() == matrices + L * 2 * d + d + V * d
    assert (config.params_embedding, config.params_position, config.params_blocks) == (V * d, 0, matrices + L * 2 * d)
    assert config.params_non_embedding == matrices + L * 2 * d + d == replace(config, vocab_size=99).params_non_embedding
    assert config.flops_per_token == 3 * 2 * (matrices + V * d + 2 * L * T * d)
    assert config.columns()["module"].startswith("llama.py:Llama@")
    assert (config.columns()["extra"], config.columns()["d_ff"]) == ('{"n_kv_heads": 2}', None)


def test_activations_are_counted_as_autograd_keeps_them() -> None:
    """A deeper model keeps more, by as much for each layer; a sequence is counted once."""
    kept = [replace(llama(), n_layer=n).saved_bytes for n in (1, 2, 3)]
    assert kept[2] - kept[1] == kept[1] - kept[0] > 4 * 16 * (10 * 24)


def test_the_hash_of_the_file_not_its_place_is_part_of_the_identity(tmp_path: Path) -> None:
    text = (ROOT / "examples/llama.py").read_text()
    (tmp_path / "sub").mkdir()
    here, there = written(tmp_path, text, "Llama"), written(tmp_path / "sub", text, "Llama")
    changed = written(tmp_path / "sub", text + "\n# another\n", "Llama")

    def config_id(*flags: str) -> str:
        return expand(parse(["smoke", *flags]).study)[0].config_id

    same = {config_id("--model.module", module) for module in (here, resolve(LLAMA), LLAMA)}
    assert len(same) == 1
    assert there == changed
    ids = {config_id(), *same, config_id("--model.module", changed), config_id("--model.module", here, "--model.extra.n_kv_heads", "2")}
    assert len(ids) == 4


def test_numbers_of_one_s_own_are_swept(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        f"model: {{module: {LLAMA}, extra: {{n_kv_heads: 1, other: 0.5}}}}\nsweeps: {{kv: {{extra.n_kv_heads: [1, 2, 4]}}}}\nseeds: [1]\n"
    )
    found = [dict(trial.shape.extra) for trial in expand(parse([str(tmp_path / "s.yaml"), "--model.extra.other=2"]).study)]
    assert found == [{"n_kv_heads": n, "other": 2} for n in (1, 2, 4)]
    trials = expand(parse([str(tmp_path / "s.yaml")]).study)
    assert len({speed_key(trial) for trial in trials}) == len({trial.bundle_key for trial in trials}) == 3


def test_it_learns_and_a_seed_decides_its_beginning() -> None:
    bundle = bundle_of(LLAMA)
    rows = [bundle.advance()[0] for _ in range(3)]
    assert rows[0]["val_loss"] == pytest.approx(math.log(10), rel=0.05)
    assert rows[2]["val_loss"] < 1.0
    first, same, other = (bundle_of(LLAMA, seed).model.flat for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert bundle.model.config.params_total == bundle.model.flat.numel()
    assert bundle.finish()[0].samples[-1]["text"]


def test_a_resumed_run_equals_the_unbroken_one_with_buffers_and_noise_of_its_own(tmp_path: Path) -> None:
    module = written(tmp_path, NOISY, "Noisy")
    whole, broken = bundle_of(module, dropout=0.3), bundle_of(module, dropout=0.3)
    for bundle in (whole, broken):
        bundle.advance()
        bundle.advance()
    broken.save(tmp_path)
    resumed = bundle_of(module, dropout=0.3)
    assert resumed.restore(tmp_path)
    last = [bundle.advance()[0]["val_loss"] for bundle in (whole, resumed)]
    assert last[0] == last[1]
    assert torch.equal(whole.model.flat, resumed.model.flat)


def test_its_weights_generate_and_score_with_its_file_and_never_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = finished(bundle_of(LLAMA))
    assert not keep_weights(bundle, tmp_path / "weights")
    with pytest.raises(ValueError, match=r"is of your own model llama.py:Llama; name its file: --module FILE:CLASS"):
        trained.load(tmp_path)
    model = trained.load(tmp_path, module=LLAMA)
    assert model.generate("abc", 5, temperature=0) == "defgh"
    assert model.score("abcdefgh" * 9).nats_per_character < 1.0
    with pytest.raises(ValueError, match="has no form of GPT-2"):
        model.export(tmp_path / "gpt2")
    monkeypatch.setattr(module_file, "texts", {})  # as another process begins
    with pytest.raises(ValueError, match=r"own.py has changed since Llama was trained"):
        trained.load(tmp_path, module=written(tmp_path, NOISY, "Llama"))


def test_a_text_that_was_read_needs_its_file_no_more(tmp_path: Path) -> None:
    module = resolve(written(tmp_path, NOISY, "Noisy"))
    (tmp_path / "own.py").unlink()
    assert module_file.load(module).__name__ == "Noisy"


@pytest.mark.ray
def test_its_text_travels_to_workers_and_a_trial_in_which_it_raises_fails_alone(local_ray: None, tmp_path: Path) -> None:
    """The file is gone once the driver has read it; seed 2 begins and then raises."""
    late = "\nimport torch\nfrom pathlib import Path\nPath(PLACE).unlink(missing_ok=True)\n" + (
        "class Late(Noisy):\n"
        "    def __init__(self, config):\n"
        "        super().__init__(config); self.limit = 30 if torch.initial_seed() == 2 else 10**9; self.calls = 0\n"
        "    def forward(self, tokens):\n"
        "        self.calls += self.training\n"
        "        if self.calls > self.limit: raise RuntimeError('too late')\n"
        "        return super().forward(tokens)\n"
    )
    module = written(tmp_path, NOISY + late.replace("PLACE", repr(f"{tmp_path}/own.py")), "Late")
    out = tmp_path / "out"
    flags = ["--model.module", module, "--model.extra.dropout", "0.1", "--sweeps", "d:extra.dropout=0.2", "--seeds", "1", "2"]
    assert run.main(tiny(out, *flags, "--train.n_steps", "40", "--max-concurrent", "1", "--no-report")) == 1
    rows = records.read(out, "trials").to_pylist()
    assert sorted((row["extra"], row["seed"], row["status"]) for row in rows) == [
        ('{"dropout": 0.2}', 1, "COMPLETED"),
        ('{"dropout": 0.2}', 2, "FAILED"),
    ]
    assert {row["module"].partition("@")[0] for row in rows} == {"own.py:Late"}
    assert {row["reason"] for row in rows if row["status"] == "FAILED"} == {
        "forward(tokens) of own.py:Late with n_layer=2, n_embd=32, n_head=4 raised (RuntimeError: too late); mend it"
    }


HEAD = "import torch\nfrom torch import nn\nclass Own(nn.Module):\n"
INIT = "    def __init__(self, config):\n        "
BUILT = f"{HEAD}{INIT}super().__init__(); self.head = nn.Embedding(*[config.vocab_size] * 2)\n    def forward(self, tokens):\n        "
SHAPE = r"logits of shape \(B, T, vocab_size\) = \(1, 32, 228\)"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("import nothing_here", r"own.py cannot be imported \(ModuleNotFoundError: No module named 'nothing_here'\)"),
        ("class Other: pass", "own.py has no class Own; it has Other"),
        (HEAD + INIT + "raise KeyError('n')", r"n_embd=32, n_head=4 cannot be built \(KeyError: 'n'\); mend it"),
        (BUILT + "raise RuntimeError('two\\nlines')", r"raised \(RuntimeError: two lines\); mend it"),
        (BUILT + "return self.head(tokens)[:, -1]", rf"returned logits of shape \(1, 228\); return {SHAPE}"),
        (BUILT + "return self.head(tokens), None", f"returned a tuple; return {SHAPE}"),
    ],
)
def test_a_module_that_cannot_be_used_is_refused_in_one_sentence(
    body: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(["smoke", "--model.module", written(tmp_path, body), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert re.search(sentence, said) is not None
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--model.module", "nowhere.py:Own"], "cannot be read (No such file or directory); give a Python file and its class"),
        (["--model.module", "~nosuchuser/own.py:Own"], "begins with a home folder that cannot be found"),
        (["--model.module", "llama.py"], "model.module=llama.py is not FILE:CLASS"),
        (["--model.extra.n_kv_heads", "2"], "model.extra.n_kv_heads belongs to a model of your own; give --model.module FILE:CLASS too"),
        (["--model.module", LLAMA, "--parametrization", "mup"], "parametrization=mup knows only the built-in model"),
        (["--model.module", LLAMA, "--train.dropout", "0.1"], "train.dropout=0.1 belongs to the built-in model"),
        (["--model.module", LLAMA, "--sweeps", "m:kind=matched:params=27500:aspects=12:head_dims=4"], "is matched by the built-in model's"),
        (["--model.module", LLAMA, "--sweeps", "kv:extra.n_kv_heads=1,2"], "changes unknown field ['extra.n_kv_heads']"),
    ],
)
def test_what_cannot_work_with_it_is_refused_in_one_sentence(flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = refused(capsys, "smoke", *flags, "--dry-run")
    assert (code, sentence in said) == (2, True), said
