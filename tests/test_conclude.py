"""Holding out sizes: which trials wait, and that they are forecast before they train."""

import pytest

from study.options import parse_hold_out
from study.report_process import held_out
from study.spec import Study, expand

TRIALS = expand(Study(sweeps=("width:n_embd=32,64,96,128", "depth:n_layer=2,4"), seeds=(1, 2)))


@pytest.mark.parametrize(("n_sizes", "widths"), [(0, set()), (1, {128}), (2, {128, 96})])
def test_the_largest_sizes_are_held_out_with_all_their_seeds(n_sizes: int, widths: set[int]) -> None:
    later = held_out(TRIALS, "largest", n_sizes)
    assert {trial.shape.n_embd for trial in later} == widths
    assert len(later) == 2 * len(widths)


def test_a_study_of_one_size_runs_where_nothing_is_held_out() -> None:
    assert held_out(expand(Study(sweeps=("heads:n_head=1,2,4",))), "largest", 0) == []
    with pytest.raises(ValueError, match="hold out 0 at most"):
        held_out(expand(Study(sweeps=("heads:n_head=1,2,4",))), "largest", 1)


def test_sizes_within_five_per_cent_count_as_one() -> None:
    trials = expand(Study(sweeps=("m:kind=matched:params=27500,151300,895200:aspects=3,12,48:head_dims=4",), seeds=(1,)))
    assert {trial.shape.n_layer for trial in held_out(trials, "largest", 1)} == {
        trial.shape.n_layer for trial in trials if trial.shape.params_non_embedding > 8e5
    }


def test_the_longest_lengths_are_held_out_of_every_shape() -> None:
    trials = expand(Study(sweeps=("data:kind=grid:n_embd=32,64:n_tokens=128K,256K,512K,1024K",), seeds=(1, 2)))
    later = held_out(trials, "longest", 2)
    assert {trial.n_tokens for trial in later} == {512_000, 1_024_000}
    assert len(later) == 2 * 2 * 2
    with pytest.raises(ValueError, match="of the study's 4 training lengths to forecast from; hold out 2 at most"):
        held_out(trials, "longest", 3)


@pytest.mark.parametrize(("text", "found"), [("largest", ("largest", 1)), ("largest:3", ("largest", 3)), ("longest", ("longest", 1))])
def test_hold_out_is_read_as_people_write_it(text: str, found: tuple[str, int]) -> None:
    assert parse_hold_out(text) == found


@pytest.mark.parametrize("text", ["", "smallest", "largest:0", "largest:x", "2"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write largest"):
        parse_hold_out(text)
