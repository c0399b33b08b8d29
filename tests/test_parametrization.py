"""muP and CompleteP: standard at their base; beyond it neither training nor the best learning rate moves with what they follow."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from analysis.findings import conclude as conclusions
from analysis.table import load as table
from analysis.table.recipe import one_recipe
from benchmarks.parametrization import base_shape, coordinates, family, growth
from models.config import ModelConfig, Shape
from models.transformer import Transformer
from study.data import corpus as data
from study.spec import DataConfig, Study, TrainConfig, Trial, expand
from study.train.bundle import Bundle
from study.train.device import Execution
from study.train.optimizer import groups_by_replica, make_optimizer
from tests.rounding import drift, float64
from tests.running import finished, write_study

CPU = Execution("cpu", "float32")
BASE = 32
LONGEST_SUM = TrainConfig().batch_size * 64
"""Terms of a weight's gradient: the tokens of a batch."""


@pytest.fixture(scope="module")
def corpus() -> data.Corpus:
    return data.prepare(DataConfig(train_chars=300_000))


def curve(corpus: data.Corpus, *trials: Trial) -> list[float]:
    bundle = finished(Bundle(trials, corpus.train, corpus.val, corpus.vocab_size, None, CPU))
    return [row["val_loss"] for replica in bundle.replicas for row in replica.curve]


@pytest.mark.parametrize(("name", "depth"), [("mup", 0), ("completep", 2)])
def test_at_its_base_it_is_the_standard_parametrization_bit_for_bit(corpus: data.Corpus, name: str, depth: int) -> None:
    standard, other = (family(rule, base_shape(n_embd=BASE), 30) for rule in ("standard", name))
    assert (other.shape.base_width, other.shape.base_depth) == (BASE, depth)
    assert other.trial_id != standard.trial_id
    with float64():
        assert curve(corpus, other) == pytest.approx(curve(corpus, standard), rel=drift(30, LONGEST_SUM))


def test_beyond_it_initialization_rates_and_multipliers_follow_the_width() -> None:
    config = ModelConfig(n_layer=2, n_embd=128, n_head=4, block_size=16, vocab_size=64, base_width=32, base_head_dim=8)
    model, standard = Transformer(config), Transformer(replace(config, base_width=0, base_head_dim=0))
    for name, smaller in (("wte", 1.0), ("wpe", 1.0), ("qkv_0", 2.0), ("up_1", 2.0), ("down_0", 2.0), ("proj_1", 2.0)):
        torch.testing.assert_close(getattr(model, name) * smaller, getattr(standard, name))  # 1 / sqrt(128 / 32)
    assert config.attention_scale == pytest.approx(math.sqrt(8) / 32)
    tokens = torch.arange(16).view(1, 1, 16)
    with torch.no_grad():
        model.flat.copy_(standard.flat)
        assert not torch.allclose(model(tokens) * 4, standard(tokens), rtol=1e-3)  # attention differs, too
        for layer in range(2):
            getattr(model, f"qkv_{layer}")[:, :128] *= 2.0  # queries: what 1 / D takes away from 1 / sqrt(D)
        torch.testing.assert_close(model(tokens) * 4, standard(tokens), rtol=drift(1, 512), atol=drift(1, 512))
    recipe = TrainConfig(n_steps=10)
    groups = {group["name"]: group for group in groups_by_replica(make_optimizer(model, [recipe]))[0]}
    assert {name: group["lr"] / recipe.lr for name, group in groups.items()} == {"embeddings": 1, "hidden": 0.25, "scales": 1}
    for name in ("embeddings", "hidden"):  # the decay of a step is that of the base width
        assert groups[name]["lr"] * groups[name]["weight_decay"] == pytest.approx(recipe.lr * recipe.weight_decay)
    assert [len(groups[name]["params"][0]) for name in groups] == [(64 + 16) * 128, 2 * 12 * 128**2, 5 * 128]


def test_completep_has_the_factors_of_the_paper_s_table() -> None:
    config = ModelConfig(n_layer=6, n_embd=64, n_head=4, block_size=16, vocab_size=64, base_width=32, base_head_dim=8, base_depth=2)
    model, mup, shallow = (Transformer(replace(config, **change)) for change in ({}, {"base_depth": 0}, {"n_layer": 2}))
    torch.testing.assert_close(model.down_5, mup.down_5 * math.sqrt(6 / 2))  # no start of a projection follows the depth
    assert torch.equal(model.proj_0, shallow.proj_0)
    given = [torch.randn(1, 4, 64) for _ in range(12)]
    model.attention = lambda x, layer, *_: given[2 * layer][0]  # type: ignore[method-assign]
    model.mlp = lambda x, layer: given[2 * layer + 1][0]  # type: ignore[method-assign]
    with torch.no_grad():
        tokens = torch.arange(4).view(1, 1, 4)
        stream = model.embed(tokens) + sum(given)[0] / 3  # type: ignore[index]
        torch.testing.assert_close(model(tokens)[0, 0], torch.nn.functional.layer_norm(stream, (64,)) / 2 @ model.wte[0].T)
    recipe = TrainConfig(n_steps=10)
    groups = groups_by_replica(make_optimizer(model, [recipe]))[0]
    table = {g["name"]: (g["lr"] / recipe.lr, g["weight_decay"] / recipe.weight_decay, g["eps"] / 1e-8) for g in groups}
    assert table == {
        "embeddings": (1, 1, 1),
        "hidden": (1 / 2, pytest.approx(2), pytest.approx(1 / (2 * 3))),
        "block scales": (1, 0, pytest.approx(1 / (2 * 3))),
        "scales": (1, 0, 1),
    }
    assert sum(len(group["params"][0]) for group in groups) == config.params_total


@pytest.mark.parametrize("name", ["mup", "completep"])
def test_a_bundle_and_a_restart_change_nothing(corpus: data.Corpus, tmp_path: Path, name: str) -> None:
    trial = family(name, base_shape(n_embd=BASE, n_layer=1), 20, n_embd=2 * BASE, n_layer=2)
    trials = [
        replace(trial, seed=seed, train=replace(trial.train, eval_interval=10, eval_windows=64, lr=lr))
        for seed, lr in ((1, 2e-3), (2, 8e-3))
    ]
    together = curve(corpus, *trials)
    with float64():
        bundled, alone = curve(corpus, *trials), curve(corpus, trials[0]) + curve(corpus, trials[1])
    assert bundled == pytest.approx(alone, rel=drift(20, LONGEST_SUM))
    first, second = (Bundle(trials, corpus.train, corpus.val, corpus.vocab_size, None, CPU) for _ in range(2))
    for _ in range(2):
        first.advance()
    first.save(tmp_path)
    assert second.restore(tmp_path)
    assert [row["val_loss"] for replica in finished(second).replicas for row in replica.curve] == together


def test_what_training_moves_does_not_depend_on_width_under_mup_and_does_otherwise(corpus: data.Corpus) -> None:
    widths = (32, 64, 128, 256)
    found = {}
    for name in ("standard", "mup"):
        moved = [coordinates(corpus, family(name, base_shape(), 100, n_embd=width), (1, 2), n_steps=6, lr=8e-3) for width in widths]
        found[name] = {what: growth(widths, [row[what] for row in moved]) for what in ("logits", "block")}
    assert all(abs(value) < 0.2 for value in found["mup"].values()), found
    assert all(value > 0.4 for value in found["standard"].values()), found


def test_a_study_takes_its_base_from_its_center() -> None:
    study = Study(parametrization="mup", model=Shape(n_layer=2, n_embd=64, n_head=4), sweeps=("width:n_embd=32,64,128",))
    assert [(t.shape.base_width, t.shape.base_head_dim, t.shape.width_ratio) for t in expand(study)[:3]] == [
        (64, 16, 0.5),
        (64, 16, 1.0),
        (64, 16, 2.0),
    ]
    given = Study(parametrization="mup", model=Shape(n_embd=64, n_head=4, base_width=32))
    assert (given.model.base_width, given.model.base_head_dim) == (32, 8)  # its four heads at the base


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (lambda: Study(parametrization="mup", lr_exponent=-0.15), "both change the learning rate with size; set lr_exponent to 0"),
        (lambda: Study(parametrization="completep", lr_exponent=-0.15), "and parametrization=completep both change the learning rate"),
        (lambda: Study(model=Shape(base_width=32)), "belongs to muP; give --parametrization mup or completep too"),
        (lambda: expand(Study(sweeps=("base:base_width=32,64",))), "changes unknown field"),  # a study has one parametrization
        (lambda: Study(parametrization="mu"), "is not one of standard, mup, completep"),  # type: ignore[arg-type]
        (lambda: Shape(base_head_dim=8), "give base_width too"),
        (lambda: Shape(base_depth=2), "give base_width too"),
        (
            lambda: Study(parametrization="mup", model=Shape(base_width=64, base_depth=4)),
            "base_depth=4 belongs to CompleteP; give --parametrization completep too",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(refused: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        refused()


def test_the_report_says_what_one_rate_under_mup_does_not_settle(tmp_path: Path) -> None:
    def loss(trial: Trial) -> float:
        return 0.5 + (trial.shape.params_non_embedding / 1e4) ** -0.2

    trial = next(iter(write_study(tmp_path, "quick", loss, parametrization=["mup"], lr_exponent=["0"]).values()))
    rates = conclusions.conclude(table.load(tmp_path))["learning_rates"]
    stated = f"at one learning rate ({trial.train.lr:g}) under muP (base width {trial.shape.base_width})"
    assert stated in rates["refused"]["reason"]
    assert "may still be confounded" in rates["refused"]["reason"]


def test_rows_of_before_are_of_the_standard_parametrization_and_are_fitted_with_those_of_now() -> None:
    old = table.load(Path(__file__).parent.parent / "benchmarks" / "results" / "study_matched.parquet")  # written without the columns
    assert (old.rows[["base_width", "base_head_dim", "base_depth"]] == 0).all(axis=None)
    now = old.trials.assign(seed=old.trials["seed"] + 10, base_width=0, base_head_dim=0, base_depth=0)
    assert one_recipe(pd.concat([old.trials, now], ignore_index=True)).all()
    assert not one_recipe(pd.concat([old.trials, now.assign(base_width=64)], ignore_index=True)).all()


def test_identities_of_trials_without_it_are_what_they_were() -> None:
    trial = expand(Study(model=Shape(n_layer=2, n_embd=64, n_head=4)), "stories-v1")[0]
    assert "shape.base_width" not in trial._identity()
    assert replace(trial, shape=replace(trial.shape, base_width=64)).trial_id != trial.trial_id
