"""Several lengths from one run: each branch equals its lone run bit for bit, through every interruption, and the trunk is paid once."""

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from models.config import Shape
from models.tokenizer import Tokenizer
from study.command import parse
from study.display.overview import flops_to_train
from study.options import Options
from study.plan.packing import Machine, Speeds, make_plan
from study.plan.quote import Quote
from study.spec import DataConfig, TrainConfig, Trial, expand
from study.train.branched_bundle import BranchedBundle
from study.train.branches import decay_start, families, family_steps, leaves_at, own_costs, programs, saved_share
from study.train.bundle import Bundle
from study.train.outcome import Replica
from tests.rounding import drift, float64
from tests.running import TIMES, finished
from tests.test_train import CHARACTERS, FLOAT32, TOKENIZER, corpus

RECIPE = TrainConfig(
    batch_size=2, n_steps=64, lr=1e-2, warmup_steps=5, eval_interval=8, eval_windows=8, schedule="wsd", decay_fraction=0.25
)
TINY = Shape(n_layer=1, n_embd=16, n_head=2, block_size=16)
CURVE_TIMES = {"wall_s", "tokens_per_s"}


def trial(n_steps: int, seed: int = 1, **changes: Any) -> Trial:
    return Trial(TINY, replace(RECIPE, n_steps=n_steps, **changes), DataConfig(), seed)


def family(*n_steps: int, **changes: Any) -> list[Trial]:
    return [trial(length, **changes) for length in n_steps]


def trunk(trials: Sequence[Trial], folder: Path, run: str = "", tokenizer: Tokenizer | None = TOKENIZER) -> BranchedBundle:
    return BranchedBundle(trials, folder, *corpus(), len(CHARACTERS), tokenizer, FLOAT32, run)


def finish(one: BranchedBundle) -> dict[str, Replica]:
    found = {}
    while not one.done:
        one.advance()
        found |= {outcome.row["trial_id"]: outcome for outcome in one.outcomes}
    return found


def lone(one: Trial) -> tuple[Replica, torch.Tensor]:
    bundle = finished(Bundle([one], *corpus(), len(CHARACTERS), TOKENIZER, FLOAT32))
    return bundle.finish()[0], bundle.model.flat.clone()


def without_times(outcome: Replica) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    row = {name: value for name, value in outcome.row.items() if name not in TIMES}
    curve = [{name: value for name, value in line.items() if name not in CURVE_TIMES} for line in outcome.curve]
    return row, curve, outcome.samples


# ---- each branch is its lone run ----


@pytest.mark.parametrize(
    "changes",
    [{}, {"dropout": 0.2, "eval_interval": 7}, {"decay_fraction": 1.0}, {"warmup_steps": 40, "unique_tokens": 500}],
    ids=["plain", "dropout and decay between evaluations", "all decay", "decay within warm-up"],
)
def test_every_length_of_a_family_equals_its_lone_run_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    trials = family(20, 32, 64, **changes)
    together, weights = trunk(trials, tmp_path), {}
    outcomes = {}
    while not together.done:
        together.advance()
        for outcome in together.outcomes:
            outcomes[outcome.row["trial_id"]] = outcome
            weights[outcome.row["trial_id"]] = together.ended.model.flat[0].clone()
    assert list(outcomes) == [t.trial_id for t in (trials[2], trials[0], trials[1])], "the trunk first, then its branches"
    for one in trials:
        alone, flat = lone(one)
        assert without_times(outcomes[one.trial_id]) == without_times(alone)
        assert torch.equal(weights[one.trial_id], flat[0])


def test_seeds_and_rates_may_share_the_program_of_a_family(tmp_path: Path) -> None:
    trials = [trial(length, seed, lr=lr) for seed, lr in ((1, 1e-2), (2, 3e-3)) for length in (20, 64)]
    with float64():
        outcomes, alone = finish(trunk(trials, tmp_path)), [lone(one)[0] for one in trials]
    assert set(outcomes) == {t.trial_id for t in trials}
    for one, expected in zip(trials, alone, strict=True):
        found = [row["val_loss"] for row in outcomes[one.trial_id].curve]
        assert found == pytest.approx([row["val_loss"] for row in expected.curve], rel=drift(64, 4 * TINY.n_embd))
        assert outcomes[one.trial_id].row["bundle_size"] == 2


def test_a_family_whose_small_members_are_recorded_runs_only_what_is_missing(tmp_path: Path) -> None:
    whole = finish(trunk(family(20, 32, 64), tmp_path / "whole"))
    for missing in (family(64), family(32), family(32, 64), family(20, 64)):
        part = finish(trunk(missing, tmp_path / str(len(missing)) / missing[0].trial_id))
        assert set(part) == {t.trial_id for t in missing}
        for trial_id, outcome in part.items():
            assert without_times(outcome) == without_times(whole[trial_id])


def test_a_trunk_that_diverges_takes_with_it_those_that_had_not_left_and_no_others(tmp_path: Path) -> None:
    trials = family(16, 64, 96, lr=1e3, grad_clip=0.0)
    outcomes = finish(trunk(trials, tmp_path))
    for one in trials:
        assert without_times(outcomes[one.trial_id]) == without_times(lone(one)[0])
    assert {outcome.row["status"] for outcome in outcomes.values()} >= {"DIVERGED"}


def test_rows_on_the_way_show_every_trial_that_passes(tmp_path: Path) -> None:
    trials = family(20, 64)
    together, seen = trunk(trials, tmp_path), {t.trial_id: [] for t in trials}
    while not together.done:
        for row in together.advance():
            seen[row["trial_id"]].append(row["step"])
    assert seen == {trials[0].trial_id: [0, 8, 16, 20], trials[1].trial_id: list(range(0, 65, 8))}


def test_trials_without_a_common_trunk_are_refused(tmp_path: Path) -> None:
    for wrong in (family(20, 64, schedule="cosine"), [trial(20), trial(64, seed=2)], [*family(20, 64), trial(64, seed=2)]):
        with pytest.raises(ValueError, match="do not share a trunk under WSD; train them apart"):
            trunk(wrong, tmp_path)


# ---- interruptions ----


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 6, 8, 9, 10, 11])
def test_a_family_cut_off_after_any_evaluation_continues_exactly(tmp_path: Path, stop: int) -> None:
    """Continued in another run of the program: what the first one handed over is recorded, the rest is missing."""
    trials = family(20, 32, 64)
    whole = finish(trunk(trials, tmp_path / "whole", tokenizer=None))
    first, got = trunk(trials, tmp_path, "first", None), {}
    for number in range(stop):
        first.advance()
        got |= {outcome.row["trial_id"]: outcome for outcome in first.outcomes}
        if number % 2 or stop % 2:  # checkpoints come now and then
            first.save()
    second = trunk([t for t in trials if t.trial_id not in got], tmp_path, "second", None)
    began_anew = not second.restore()
    assert began_anew or second.bundle.step > 0 or stop == 1
    got |= finish(second)
    for one in trials:
        assert without_times(got[one.trial_id]) == without_times(whole[one.trial_id])


def test_a_process_that_replaces_a_dead_one_neither_repeats_nor_loses_a_trial(tmp_path: Path) -> None:
    """The same run: the driver has what was handed over before it asked for more, and may lack what came last."""
    trials = family(20, 32, 64)
    whole = finish(trunk(trials, tmp_path / "whole"))
    first, received = trunk(trials, tmp_path, "run"), {}
    first.restore()
    while len(received) < 2:
        first.advance()
        received |= {outcome.row["trial_id"]: outcome for outcome in first.outcomes}
        first.save()
    lost = received.pop(trials[0].trial_id)  # the process died before the driver had it
    second = trunk(trials, tmp_path, "run")
    assert second.restore()
    rest = finish(second)
    assert set(rest) == {trials[0].trial_id, trials[1].trial_id}
    assert without_times(rest[trials[0].trial_id]) == without_times(lost)
    for trial_id, outcome in rest.items():
        assert without_times(outcome) == without_times(whole[trial_id])


def test_a_trial_that_is_missing_again_is_trained_though_the_trunk_has_passed_its_branch(tmp_path: Path) -> None:
    trials = family(20, 64)
    first = trunk(trials, tmp_path, "first")
    for _ in range(8):
        first.advance()
        first.save()
    assert first.bundle.step > leaves_at(trials[0].train)
    shutil.rmtree(tmp_path / trials[0].trial_id)  # as the driver does with those of a recorded trial
    second = trunk(trials, tmp_path, "second")  # the short one's row was lost
    assert not second.restore()
    assert set(finish(second)) == {t.trial_id for t in trials}


def test_a_branch_whose_state_is_lost_is_trained_from_the_beginning_and_pays_for_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "perf_counter", map(float, count()).__next__)  # every look at the clock is a second later: no load moves it
    trials = family(20, 64)
    together, whole = trunk(trials, tmp_path), finish(trunk(trials, tmp_path / "whole"))
    while not together.ended:
        together.advance()
    shutil.rmtree(tmp_path / trials[0].trial_id)
    found = finish(together)[trials[0].trial_id]
    assert without_times(found) == without_times(whole[trials[0].trial_id])
    assert found.row["train_s"] == pytest.approx(sum(32 * 8 / row["tokens_per_s"] for row in found.curve[1:-1]), rel=0.5)


# ---- who shares, and what it costs ----


def test_only_trials_equal_but_for_their_length_form_a_family() -> None:
    trials = [*family(20, 64), trial(64, seed=2), trial(20, lr=3e-3), *family(20, 64, schedule="cosine")]
    assert [len(group) for group in families(trials)] == [2, 1, 1, 1, 1]
    named = replace(trial(32), sweeps=("data",), lr_status="tuned")
    assert len(families([*family(20, 64), named])[0]) == 3
    assert [t.train.n_steps for t in families([trial(64), trial(20)])[0]] == [20, 64]


def test_what_is_left_of_a_bundle_is_cut_into_programs_that_have_every_replica_at_every_length(tmp_path: Path) -> None:
    trials = [trial(length, seed) for seed in (1, 2, 3) for length in (20, 64)]
    assert [len(part) for part in programs(trials)] == [6]
    left = [t for t in trials if (t.seed, t.train.n_steps) != (2, 20)]
    assert sorted(len(part) for part in programs(left)) == [1, 4]
    for part in programs(left):
        trunk(part, tmp_path)


def test_a_trial_leaves_at_the_last_evaluation_before_its_rate_falls() -> None:
    for n_steps in range(1, 70, 3):
        recipe = trial(n_steps, warmup_steps=0).train
        start = decay_start(recipe)
        assert all(recipe.lr_at(step) == recipe.lr for step in range(start))
        assert recipe.lr_at(n_steps - 1) < recipe.lr or start == n_steps - 1
        assert start - recipe.eval_interval < leaves_at(recipe) <= start
        assert leaves_at(recipe) % recipe.eval_interval == 0


def test_own_costs_add_up_to_what_the_family_trains_and_a_lone_trial_costs_what_it_did() -> None:
    group = tuple(family(32, 64, 128))
    assert family_steps(group) == pytest.approx(128 + (32 - 24) + (64 - 48))
    costs = own_costs(group)
    assert costs[group[0].trial_id].steps == pytest.approx(24 / 3 + 8)
    assert costs[group[1].trial_id].steps == pytest.approx(24 / 3 + 24 / 2 + 16)
    assert sum(own.evaluations for own in costs.values()) == pytest.approx((1 + 16 + 1) + (1 + 1) + (2 + 1))
    for one in (trial(50), trial(64, schedule="cosine")):
        (own,) = own_costs((one,)).values()
        assert (own.steps, own.evaluations) == (one.train.n_steps, 2 + math.ceil(one.train.n_steps / 8))
    assert saved_share(group) == pytest.approx(1 - 152 / 224)
    assert saved_share(family(20, 64, schedule="cosine")) == 0


def test_the_work_to_do_counts_a_shared_trunk_once() -> None:
    trials = [*family(32, 64, 128), *family(32, 64, schedule="cosine")]
    per_step = trials[0].flops(len(CHARACTERS)) / 32
    assert flops_to_train(trials, len(CHARACTERS)) == pytest.approx(per_step * (152 + 32 + 64))
    known = Speeds()
    known.note(Machine().name, trials[0], len(CHARACTERS), 100.0, real=True)
    quoted = make_plan(trials, len(CHARACTERS), Machine(), known, Options())
    sharing = next(bundle for bundle in quoted.bundles if len(bundle.trials) == 3)
    alone = [next(b for b in quoted.bundles if b.trials == (trial,)) for trial in trials[3:]]
    assert sharing.seconds == pytest.approx(sum(sharing.seconds_each.values()))
    assert sharing.seconds < sum(b.seconds for b in alone) * (128 + 64 + 32) / 96
    assert f"{saved_share(trials):.0%} of the steps are saved" in "\n".join(Quote(quoted, Machine(), len(CHARACTERS), Options()).lines())


def test_a_familys_trials_share_the_time_of_the_trunk_and_add_up_to_all_of_it(tmp_path: Path) -> None:
    together, outcomes = trunk(family(32, 64), tmp_path, tokenizer=None), []
    train_s = 0.0
    while not together.done:
        together.advance()
        outcomes += together.outcomes
        if together.ended:
            train_s += together.ended.pace.train_s
    outcomes.sort(key=lambda outcome: outcome.row["n_steps"])
    on_trunk = sum(16 * 2 / row["tokens_per_s"] * 8 for row in outcomes[1].curve if 0 < row["step"] <= 24)
    short, long = (outcome.row for outcome in outcomes)
    assert short["train_s"] + long["train_s"] == pytest.approx(train_s - on_trunk, rel=1e-3)  # step 0 costs microseconds, too
    assert short["train_s"] < sum(16 * 2 / row["tokens_per_s"] * 8 for row in outcomes[0].curve[1:])
    assert long["tokens_per_s"] == pytest.approx(64 * 32 / sum(16 * 2 / row["tokens_per_s"] * 8 for row in outcomes[1].curve[1:]))


# ---- presets and sweeps ----


def test_the_preset_data_costs_one_long_run_per_size_and_seed() -> None:
    trials = expand(parse(["data"]).study)
    assert len({t.config_id for t in trials}) == 24
    assert len(trials) == 72
    shared = [group for group in families(trials) if len(group) > 1]
    assert len(shared) == 5 * 3
    for group in shared:
        assert [t.n_tokens for t in group] == [384_000, 768_000, 1_536_000, 3_072_000]
        assert [leaves_at(t.train) for t in group] == [decay_start(t.train) for t in group]  # no step is trained twice
    assert sum(map(family_steps, families(trials))) == 3 * (5 * (6000 + 150 + 300 + 600) + 4 * 3000)
    epochs = {t.train.unique_tokens and t.n_tokens // t.train.unique_tokens for t in trials if "repetition" in t.sweeps}
    assert epochs == {0, 1, 4, 16, 64}


def test_the_preset_context_compares_at_equal_tokens() -> None:
    trials = expand(parse(["context"]).study)
    assert (len(trials), {t.shape.block_size for t in trials}) == (24, {64, 128, 256, 512})
    assert {(t.n_tokens, t.train.n_steps, t.train.eval_windows * t.shape.block_size) for t in trials} == {(1_536_000, 3000, 12_288)}
    assert {t.train.batch_size * t.shape.block_size for t in trials} == {512}
