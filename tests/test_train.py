"""Training is deterministic, resumes exactly, and a bundle gives every replica the losses of its lone run."""

import itertools
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.config import Shape
from models.tokenizer import Tokenizer
from study.data import corpus as data
from study.spec import DataConfig, TrainConfig, Trial
from study.train import checkpoint
from study.train.bundle import Bundle
from study.train.device import Execution
from study.train.evaluation import sample_steps
from study.train.outcome import Replica
from tests.rounding import drift, float64
from tests.running import finished

GOLDEN = Path(__file__).parent / "golden" / "tiny_losses.txt"
FLOAT32 = Execution(device="cpu", precision="float32", n_threads=1)
RECIPE = TrainConfig(batch_size=4, n_steps=60, lr=1e-2, warmup_steps=5, eval_interval=20, eval_windows=16)
TINY = Shape(n_layer=2, n_embd=32, n_head=2, block_size=32)
TEXT = "the cat sat on the mat. the dog saw the cat and ran to the red house. "
CHARACTERS = ("<|endoftext|>", "<unk>", *sorted(set(TEXT)))
TOKENIZER = Tokenizer(CHARACTERS)
LONGEST_SUM = RECIPE.batch_size * TINY.block_size
"""Terms of the longest sums of a step of TINY: a weight's gradient over a batch, and as many hidden channels."""


def corpus() -> tuple[np.ndarray, np.ndarray]:
    """A small learnable text as (train, val) token arrays."""
    rng = np.random.default_rng(0)
    words = TEXT.split()
    text = " ".join(words[i] for i in rng.integers(len(words), size=4000))
    ids = np.array([CHARACTERS.index(c) for c in text], dtype=np.uint8)
    return ids[:12000], ids[12000:]


def trial(seed: int = 1, shape: Shape = TINY, **changes: object) -> Trial:
    return Trial(shape, replace(RECIPE, **changes), DataConfig(), seed)


def bundle(*trials: Trial, execution: Execution = FLOAT32, tokenizer: Tokenizer | None = None) -> Bundle:
    return Bundle(trials, *corpus(), len(CHARACTERS), tokenizer, execution)


def run(*trials: Trial, execution: Execution = FLOAT32) -> list[Replica]:
    return finished(bundle(*trials, execution=execution)).finish()


def losses(outcome: Replica) -> list[float]:
    return [row["val_loss"] for row in outcome.curve]


def test_losses_equal_the_golden_ones() -> None:
    """One `step val_loss` per line. A change needs its reason in the same commit."""
    curve = run(trial())[0].curve
    golden = [line.split() for line in GOLDEN.read_text().splitlines()]
    assert [row["step"] for row in curve] == [int(step) for step, _ in golden]
    for row, (_, expected) in zip(curve, golden, strict=True):
        assert row["val_loss"] == pytest.approx(float(expected), rel=drift(RECIPE.n_steps, LONGEST_SUM, torch.float32))


def test_float32_trains_like_float64() -> None:
    """What all comparisons in float64 stand for: rounding is all that sets the arithmetic of real trials apart."""
    alone = losses(run(trial())[0])
    with float64():
        exact = losses(run(trial())[0])
    assert alone == pytest.approx(exact, rel=drift(RECIPE.n_steps, LONGEST_SUM, torch.float32))
    assert alone != exact


def test_steps_are_those_of_torchs_own_optimizer_bit_for_bit() -> None:
    ours, torchs = (bundle(trial(), trial(seed=2, weight_decay=0.5, beta1=0.8)) for _ in range(2))
    torchs.optimizer = torch.optim.AdamW(torchs.optimizer.param_groups, fused=True)  # type: ignore[assignment]
    assert torch.equal(finished(ours).model.flat, finished(torchs).model.flat)


def test_two_equal_trials_give_bitwise_equal_curves_and_another_seed_does_not() -> None:
    first, second, other = (run(trial(seed))[0] for seed in (1, 1, 2))
    assert losses(first) == losses(second)
    assert losses(first) != losses(other)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(tmp_path: Path, precision: str, dropout: float) -> None:
    how = Execution(device="cpu", precision=precision, n_threads=1)  # type: ignore[arg-type]
    spec = trial(dropout=dropout)
    unbroken = run(spec, execution=how)[0]
    first = bundle(spec, execution=how)
    first.advance()
    first.advance()
    first.save(tmp_path)
    torch.manual_seed(12345)  # whatever ran in this process since must not matter
    second = bundle(spec, execution=how)
    assert second.restore(tmp_path)
    assert second.step == 20
    resumed = finished(second).finish()[0]
    assert losses(resumed) == losses(unbroken)
    assert [row["grad_norm"] for row in resumed.curve] == [row["grad_norm"] for row in unbroken.curve]
    assert resumed.row["restarts"] == 1
    assert resumed.row["val_loss"] == unbroken.row["val_loss"]


FACTORS = {
    "seed": {"seed": 5}, "lr": {"lr": 3e-3}, "weight_decay": {"weight_decay": 0.5},
    "beta1": {"beta1": 0.8}, "beta2": {"beta2": 0.95},
    "grad_clip": {"grad_clip": 0.05}, "warmup_steps": {"warmup_steps": 30},
    "schedule": {"schedule": "wsd"}, "min_lr_ratio": {"min_lr_ratio": 0.5}, "decay_fraction": {"schedule": "wsd", "decay_fraction": 0.5},
    "unique_tokens": {"unique_tokens": 2000},
}  # fmt: skip


@pytest.fixture(scope="module")
def together() -> dict[str, Replica]:
    """Replicas of one bundle that differ in one factor each, and one that does not."""
    with float64():
        found = run(trial(), *(trial(**{"seed": 2, **changes}) for changes in FACTORS.values()))
    return dict(zip(("", *FACTORS), found, strict=True))


@pytest.mark.parametrize("factor", FACTORS)
def test_a_bundled_replica_has_the_losses_of_its_lone_run(together: dict[str, Replica], factor: str) -> None:
    with float64():
        lone = run(trial(**{"seed": 2, **FACTORS[factor]}))[0]
    assert losses(together[factor]) == pytest.approx(losses(lone), rel=drift(RECIPE.n_steps, LONGEST_SUM))
    assert losses(together[factor]) != losses(together[""])


def test_a_diverging_replica_is_recorded_with_its_step_and_never_touches_its_neighbor() -> None:
    wild = trial(seed=2, lr=1e30, grad_clip=0.0)  # more than float32 can hold after a few layers
    calm, broken = run(trial(), wild)
    assert (broken.row["status"], broken.row["val_loss"]) == ("DIVERGED", None)
    assert "at step" in broken.row["reason"]
    assert losses(calm) == pytest.approx(losses(run(trial())[0]), rel=drift(RECIPE.n_steps, LONGEST_SUM, torch.float32))
    assert run(wild)[0].row["n_steps"] == broken.row["n_steps"]


def test_a_bundle_resumes_each_replica_from_its_own_checkpoint(tmp_path: Path) -> None:
    specs = [trial(seed) for seed in (1, 2)]
    with float64():
        whole = run(*specs)
        first = bundle(*specs)
        for _ in range(3):
            first.advance()
            first.save(tmp_path)
        second = bundle(specs[1])  # one of the two goes on alone
        assert second.restore(tmp_path)
        finished(second)
    assert losses(second.finish()[0]) == pytest.approx(losses(whole[1]), rel=drift(RECIPE.n_steps, LONGEST_SUM))
    assert checkpoint.steps(tmp_path, specs[0].trial_id) == [40, 20]


def test_a_checkpoint_written_beside_training_holds_the_state_of_its_moment(tmp_path: Path) -> None:
    spec = trial()
    whole, first = run(spec)[0], bundle(spec)
    for _ in range(2):
        first.advance()
        first.save(tmp_path, beside=True)  # the next stretch changes weights, moments and curve while this is written
    first.advance()
    first.settle()
    second = bundle(spec)
    assert second.restore(tmp_path)
    assert second.step == 20
    assert [row["step"] for row in second.replicas[0].curve] == [0, 20]
    assert losses(finished(second).finish()[0]) == losses(whole)


def test_what_stops_a_checkpoint_beside_training_is_raised_by_the_next_one_and_noted_at_the_end(tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("no folder")
    first = bundle(trial())
    first.advance()
    first.save(blocked, beside=True)
    first.advance()
    with pytest.raises(OSError, match="a file"):
        first.save(tmp_path, beside=True)
    first.save(blocked, beside=True)
    assert finished(first).finish()[0].row["status"] == "COMPLETED"
    assert "could not be written" in first.notes[0]


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "not json", "missing part"])
def test_a_damaged_checkpoint_is_named_set_aside_and_an_older_one_used(tmp_path: Path, damage: str) -> None:
    spec = trial()
    first = bundle(spec)
    for _ in range(3):
        first.advance()
        first.save(tmp_path)
    newest = tmp_path / spec.trial_id / "step-00000040"
    tensors, facts = newest / "state.safetensors", newest / "state.json"
    {
        "truncated": lambda: os.truncate(tensors, tensors.stat().st_size // 2),
        "empty": lambda: tensors.write_bytes(b""),
        "foreign": lambda: facts.write_text(json.dumps({**json.loads(facts.read_text()), "trial_id": "another"})),
        "not json": lambda: facts.write_text("{"),
        "missing part": tensors.unlink,
    }[damage]()
    second = bundle(spec)
    assert second.restore(tmp_path)
    assert second.step == 20
    assert len(second.notes) == 1
    assert "step-00000040" in second.notes[0]
    assert list((tmp_path / spec.trial_id).glob("*.bad"))


def test_trials_of_different_shape_or_length_cannot_share_a_bundle() -> None:
    with pytest.raises(ValueError, match="train them apart"):
        bundle(trial(), trial(shape=Shape(1, 32, 2, 32)))
    assert trial(dropout=0.1).bundle_key != trial(seed=2, dropout=0.1).bundle_key
    assert trial().bundle_key == trial(seed=2, lr=1e-3).bundle_key


def test_every_trial_is_evaluated_on_the_same_windows_and_writes_from_the_same_prompts() -> None:
    small, large = bundle(trial(), tokenizer=TOKENIZER), bundle(trial(seed=9, shape=Shape(1, 64, 4, 32)), tokenizer=TOKENIZER)
    assert torch.equal(small.val_windows[0], large.val_windows[0])
    texts = [finished(one).finish()[0].samples for one in (small, large)]
    final = [[row for row in rows if row["step"] == 60] for rows in texts]
    assert [row["prompt"] for row in final[0]] == [row["prompt"] for row in final[1]]
    assert [(row["n_tokens"], row["temperature"]) for row in final[0]] == [(256, 0.7), (256, 0.7), (256, 1.0), (256, 1.0)] * 8


def test_the_row_holds_what_the_curve_and_the_shape_say() -> None:
    outcome = run(trial())[0]
    row, last = outcome.row, outcome.curve[-1]
    assert (row["status"], row["val_loss"], row["train_loss"]) == ("COMPLETED", last["val_loss"], last["train_loss"])
    assert row["n_tokens"] == 60 * 4 * 32 == last["tokens"]
    assert math.isfinite(row["ms_per_step"])
    assert last["val_loss"] < outcome.curve[0]["val_loss"] - 0.5, "training should have learned something"


@pytest.mark.slow
def test_bf16_moves_the_final_loss_less_than_a_change_of_seed() -> None:
    """Three shapes, three seeds, 500 steps of the embedded corpus. Rounding acts like another seed on a run of so many steps, so single
    pairs differ by about the noise; what must not differ is the mean of a shape, and less so the mean of all."""
    text = data.prepare(DataConfig(train_chars=200_000))
    recipe = TrainConfig(batch_size=8, n_steps=500, lr=7e-3, warmup_steps=50, eval_interval=500, eval_windows=192)
    final = np.empty((2, 3, 3))
    for i, precision in enumerate(("float32", "bf16")):
        for j, (n_layer, n_embd) in enumerate([(2, 64), (4, 64), (2, 128)]):
            for k in range(3):
                how = Execution(device="cpu", precision=precision, n_threads=1)  # type: ignore[arg-type]
                this = Trial(Shape(n_layer=n_layer, n_embd=n_embd, n_head=4, block_size=64), recipe, DataConfig(), k + 1)
                whole = finished(Bundle([this], text.train, text.val, text.vocab_size, None, how))
                final[i, j, k] = whole.replicas[0].curve[-1]["val_loss"]
    noise = math.sqrt(final.var(axis=2, ddof=1).mean())  # of one run, 12 degrees of freedom
    differences = final[1] - final[0]
    print(f"bf16 - float32:\n{differences.round(4)}\nmean {differences.mean():.4f}; sd between seeds {noise:.4f}")
    assert np.abs(differences.mean(axis=1)).max() <= 2.4 * noise * math.sqrt(2 / 3)  # Bonferroni over three, t with 12 degrees
    assert abs(differences.mean()) <= noise


def test_texts_are_drawn_at_the_evaluations_nearest_to_an_eighth_a_quarter_and_half_of_a_run() -> None:
    for n_steps, interval in itertools.product((1, 2, 7, 8, 60, 199, 1000), (1, 2, 7, 25, 250, 5000)):
        evaluations = range(0, n_steps, interval)
        marks = {n_steps // 8, n_steps // 4, n_steps // 2} - {0}
        expected = {min(evaluations, key=lambda step: abs(step - mark)) for mark in marks}
        assert sample_steps(TrainConfig(n_steps=n_steps, eval_interval=interval)) == expected
    assert max(sample_steps(TrainConfig(n_steps=10**9, eval_interval=1))) == 5 * 10**8  # at once
