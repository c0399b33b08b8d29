"""Identity and expansion: the same study gives the same trials everywhere, and nothing about where it runs matters."""

import itertools
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from models.config import Shape
from study.spec import DataConfig, Study, TrainConfig, Trial, expand
from study.sweeps import Sweep, format_sweep, nearest_shape, number, parse_sweep

THREE = ("depth:n_layer=2,4,8", "width:n_embd=32,64,128", "heads:n_head=1,4,16")


def test_sweeps_that_share_a_configuration_train_it_once() -> None:
    trials = expand(Study(sweeps=THREE, seeds=(1, 2)))
    assert len(trials) == 2 * 7
    assert len({t.trial_id for t in trials}) == 14
    centre = [t for t in trials if t.shape == Shape()]
    assert [t.sweeps for t in centre] == [("depth", "width", "heads")] * 2


def test_ids_are_the_same_in_another_process_and_for_whole_numbers_written_as_decimals() -> None:
    trial = expand(Study(sweeps=THREE))[0]
    code = f"from study.spec import *; print(expand(Study(sweeps={THREE!r}))[0].trial_id)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == trial.trial_id
    assert replace(trial, train=replace(trial.train, grad_clip=1)).trial_id == trial.trial_id


def test_recipe_and_data_change_the_configuration_the_seed_only_the_trial_and_sweeps_neither() -> None:
    trial = Trial(Shape(), TrainConfig(), Study().data, 1)
    recipes = [{"lr": 1e-3}, {"n_steps": 7}, {"weight_decay": 0.2}, {"unique_tokens": 999}, {"schedule": "wsd"}]
    others = [*(replace(trial, train=replace(trial.train, **change)) for change in recipes), replace(trial, data_key="other")]
    assert len({one.config_id for one in (trial, *others)}) == 1 + len(others)
    assert replace(trial, seed=2).config_id == trial.config_id
    assert replace(trial, seed=2).trial_id != trial.trial_id
    assert replace(trial, sweeps=("x",), lr_status="tuned").trial_id == trial.trial_id


def test_the_time_to_expand_grows_no_faster_than_the_number_of_trials() -> None:
    def seconds(n_widths: int) -> float:
        widths = ",".join(str(64 * i) for i in range(1, n_widths + 1))
        study = Study(sweeps=(f"g:kind=grid:n_layer={','.join(map(str, range(1, 101)))}:n_embd={widths}",), seeds=(1,))
        began = time.process_time()
        assert len({trial.trial_id for trial in expand(study)}) == 100 * n_widths
        return time.process_time() - began

    assert min(seconds(100) for _ in range(2)) < 2 * 10 * min(seconds(10) for _ in range(3))


def test_the_learning_rate_follows_the_size_by_the_studys_rule() -> None:
    study = Study(sweeps=("width:n_embd=32,64,128",), seeds=(1,), lr_exponent=-0.25)
    rates = {t.shape.n_embd: t.train.lr for t in expand(study)}
    assert rates[64] == study.train.lr
    ratio = Shape(n_embd=32).params_non_embedding / Shape().params_non_embedding
    assert rates[32] == pytest.approx(study.train.lr * ratio**-0.25, rel=2e-3)
    assert {t.train.lr for t in expand(replace(study, sweeps=("lr:lr=1e-3,1e-2",)))} == {1e-3, 1e-2}


def test_tokens_become_steps_and_sequences() -> None:
    assert [t.train.n_steps for t in expand(Study(sweeps=("data:n_tokens=512K,2M",), seeds=(1,)))] == [1000, 3906]
    tokens, sequences = (
        expand(Study(sweeps=(sweep,))) for sweep in ("c:tokens_per_step=1024", f"c:batch_size={1024 // Shape().block_size}")
    )
    assert [t.trial_id for t in tokens] == [t.trial_id for t in sequences]


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ("depth", "lists no values"), ("depth:2,4", "is not NAME:FIELD=VALUE"), ("d:kind=star:n_layer=2", "kind='star'"),
        ("d:kind=:n_layer=2", "kind=''; allowed are one_factor, grid"),
        ("d:n_layr=2", "unknown field"), ("d:n_head=3", "not divisible"),
        ("m:kind=matched:params=1e5", "needs params, aspects and head_dims"),
        ("m:kind=matched:params=100:aspects=16:head_dims=16", "no shape lies within"), ("d:lr=", "lists no values"), ("d:lr=-1", "lr=-1"),
        ("d:n_layer=1.5", "n_layer=1.5 is not a whole number"), ("d:lr=fast", "lr=fast is not a number"),
        ("d:n_layer=inf", "n_layer=inf is not a whole number"), ("d:n_tokens=-5", "n_tokens=-5 must be at least 1"),
        ("m:kind=matched:params=big:aspects=16:head_dims=16", "params=big; give positive numbers"),
        ("m:kind=matched:params=1e5:aspects=-8:head_dims=16", "aspects=-8; give positive numbers"),
        ("m:kind=matched:params=1e5:aspects=8:head_dims=0", "head_dims=0; give positive whole numbers"),
        ("c:kind=grid:block_size=48:tokens_per_step=512", "tokens_per_step=512 is not a whole number of sequences of block_size=48"),
        ("c:kind=grid:tokens_per_step=32", "tokens_per_step=32 is not a whole number of sequences of block_size=64; give a multiple of 64"),
        ("c:kind=grid:tokens_per_step=0", "tokens_per_step=0 is not a whole number of sequences"),
        ("c:kind=grid:tokens_per_step=512:batch_size=8", "both tokens_per_step and batch_size are given"),
        ("c:kind=grid:tokens_per_evaluation=100", "tokens_per_evaluation=100 is not a whole number of sequences"),
    ],
)  # fmt: skip
def test_impossible_sweeps_are_refused_with_what_to_do(sweep: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        expand(Study(sweeps=(sweep,)))


@pytest.mark.parametrize("change", [{"seeds": ()}, {"seeds": (1, 1)}, {"seeds": (-1,)}, {"sweeps": ("a:lr=1", "a:lr=2")}])
def test_impossible_studies_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"seed|name"):
        Study(**change)


def test_matched_shapes_are_within_two_percent_and_unreachable_ones_are_named() -> None:
    sweep = parse_sweep("m:kind=matched:params=200K,800K,3.2M:aspects=8,32:head_dims=16,32")
    for change in sweep.changes():
        shape = Shape(**change)
        target = min(sweep.params, key=lambda p: abs(p - shape.params_non_embedding))
        assert abs(shape.params_non_embedding / target - 1) <= 0.02
        assert shape.head_dim in (16, 32)
    assert len(sweep.changes()) + len(sweep.unreachable()) == 12
    assert all("parameters at aspect" in sentence for sentence in sweep.unreachable())


def test_the_nearest_shape_beats_every_other_shape_of_its_aspect() -> None:
    shape, error = nearest_shape(1e6, 32, 16)
    others = [(n, d) for n in range(1, 40) for d in range(16, 800, 16) if 32 / 2 <= d / n <= 32 * 2]
    best = min(abs(n * (12 * d * d + 2 * d) + d - 1e6) / 1e6 for n, d in others)
    assert abs(error) <= max(best, 0.02) + 1e-12
    assert shape["n_embd"] % shape["n_head"] == 0


def test_numbers_are_read_as_people_write_them() -> None:
    assert [number(t) for t in ("64", "1e-3", "4M", "2.5K", "wsd", "1e5")] == [64, 1e-3, 4_000_000, 2500, "wsd", 100_000]
    assert parse_sweep(format_sweep("w", {"n_embd": [32, 64]})) == Sweep("w", factors={"n_embd": (32, 64)})


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_schedules_warm_up_peak_and_end_where_they_should(schedule: str) -> None:
    recipe = TrainConfig(n_steps=1000, warmup_steps=100, lr=1e-2, schedule=schedule)
    rates = [recipe.lr_at(step) for step in range(1000)]
    assert rates[0] == pytest.approx(1e-2 / 101)
    assert max(rates) == pytest.approx(1e-2)
    assert all(b > a for a, b in itertools.pairwise(rates[:100]))
    assert rates[-1] == pytest.approx({"cosine": 1e-3, "wsd": 1e-3, "constant": 1e-2}[schedule], rel=0.05)
    if schedule == "wsd":
        assert rates[100:799] == [1e-2] * 699


@pytest.mark.parametrize("name", ["stories", "tinystories", "text"])
def test_a_file_of_ones_own_wins_over_the_studys_text(name: str) -> None:
    assert DataConfig(name=name, path="my.txt").name == "text"
    with pytest.raises(ValueError, match=r"give --data\.path"):
        DataConfig(name="text")
