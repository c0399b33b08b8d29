"""Holding out sizes: which trials wait, and that they are forecast before they train."""

import pytest

from study.options import parse_hold_out
from study.report_process import held_out
from study.spec import Study, expand

TRIALS = expand(Study(sweeps=("width:n_embd=32,64,96,128", "depth:n_layer=2,4"), seeds=(1, 2)))
LENGTHS = expand(Study(sweeps=("data:kind=grid:n_embd=32,64:n_tokens=128K,256K,512K,1024K",), seeds=(1, 2)))


@pytest.mark.parametrize(("n_sizes", "widths"), [(0, set()), (1, {128}), (2, {128, 96})])
def test_the_largest_sizes_are_held_out_with_all_their_seeds(n_sizes: int, widths: set[int]) -> None:
    later = held_out(TRIALS, "largest", n_sizes)
    assert {trial.shape.n_embd for trial in later} == widths
    assert len(later) == 2 * len(widths)


def test_sizes_within_five_per_cent_count_as_one() -> None:
    trials = expand(Study(sweeps=("m:kind=matched:params=27500,151300,895200:aspects=3,12,48:head_dims=4",), seeds=(1,)))
    assert set(held_out(trials, "largest", 1)) == {trial for trial in trials if trial.shape.params_non_embedding > 8e5}


def test_the_longest_lengths_are_held_out_of_every_shape() -> None:
    later = held_out(LENGTHS, "longest", 2)
    assert {trial.n_tokens for trial in later} == {512_000, 1_024_000}
    assert len(later) == 2 * 2 * 2


def test_no_more_is_held_out_than_there_is_to_forecast_from() -> None:
    one_size = expand(Study(sweeps=("heads:n_head=1,2,4",)))
    assert held_out(one_size, "largest", 0) == []
    with pytest.raises(ValueError, match="hold out 0 at most"):
        held_out(one_size, "largest", 1)
    with pytest.raises(ValueError, match="of the study's 4 training lengths to forecast from; hold out 2 at most"):
        held_out(LENGTHS, "longest", 3)


@pytest.mark.parametrize(("text", "found"), [("largest", ("largest", 1)), ("largest:3", ("largest", 3)), ("longest", ("longest", 1))])
def test_hold_out_is_read_as_people_write_it(text: str, found: tuple[str, int]) -> None:
    assert parse_hold_out(text) == found


@pytest.mark.parametrize("text", ["", "smallest", "largest:0", "largest:x", "2"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write largest"):
        parse_hold_out(text)
