"""The Ray Tune side on a real local Ray: data reach workers, resources are checked, processes are reused, order is kept."""

from pathlib import Path

import numpy as np
import pytest

from study import run
from study.command import parse
from study.spec import expand
from tests.running import facts, rows, tables, tiny

pytestmark = pytest.mark.ray


def test_tokens_travel_as_a_file_name_here_and_through_the_object_store_on_a_cluster(local_ray: None, tmp_path: Path) -> None:
    from study.trial import share

    tokens = np.memmap(tmp_path / "train.bin", dtype=np.uint16, mode="w+", shape=(1000,))
    tokens[:] = np.arange(1000)
    tokens.flush()
    here, anywhere = share(tokens, on_cluster=False), share(tokens, on_cluster=True)
    assert isinstance(here.where, str)
    assert isinstance(here.open(), np.memmap)
    assert not isinstance(anywhere.where, str)
    assert not anywhere.open().flags.writeable  # a view of shared memory, not a copy
    for shared in (here, anywhere, share(np.arange(1000), on_cluster=False)):
        np.testing.assert_array_equal(shared.open(), np.arange(1000))


def test_a_trial_that_no_node_can_hold_is_refused_at_once_here_and_waited_for_on_a_cluster(local_ray: None) -> None:
    from study.cluster import check_nodes, check_resources

    assert check_resources([(1.0, 0.0), (2.0, 0.0)], on_cluster=False) == ""
    with pytest.raises(ValueError, match="needs 3 CPUs and 0 GPUs, the largest node has 2 CPUs"):
        check_resources([(1.0, 0.0), (3.0, 0.0)], on_cluster=False)
    assert "waiting for the cluster to grow" in check_resources([(1.0, 0.5)], on_cluster=True)
    check_nodes(on_cluster=True)


def test_asking_for_more_than_the_machine_has_ends_with_one_sentence(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(tiny(tmp_path, "--cpus-per-trial", "64")) == 1
    said = capsys.readouterr().err
    assert "lower --cpus-per-trial or --gpus-per-trial" in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("127.0.0.1:1", "the Ray cluster at 127.0.0.1:1 cannot be reached: Connection refused"),
        ("ray://head:10001", "is not HOST:PORT or auto; from another machine use: ray job submit"),
    ],
)
def test_an_address_without_a_cluster_ends_with_one_sentence(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str, sentence: str
) -> None:
    assert run.main(tiny(tmp_path, "--address", address)) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.strip().splitlines()) == 1


def test_bundles_are_scheduled_longest_first_and_seeds_stay_paired(local_ray: None) -> None:
    command = parse(["smoke", "--sweeps", "width:n_embd=16,48,32", "--seeds", "1", "2"])
    bundles = run._bundles(command, expand(command.study), 64)
    assert [(b.trials[0].shape.n_embd, b.trials[0].seed) for b in bundles] == [(48, 1), (48, 2), (32, 1), (32, 2), (16, 1), (16, 2)]
    assert all((b.cpus, b.gpus) == (1.0, 0.0) for b in bundles)


def test_only_missing_trials_run_and_a_reused_process_trains_like_a_fresh_one(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A trial in a process of its own and two side by side, against all three in one process, one after another."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    for width in ("24", "16,24,32"):
        sweep = ["--sweeps", f"width:n_embd={width}"]
        assert run.main([*tiny(alone, "--no-report"), *sweep]) == 0
    said = capsys.readouterr().out
    assert "1 trials = 1 configurations x 1 seeds; 0 done, 1 to run" in said
    assert "3 trials = 3 configurations x 1 seeds; 1 done, 2 to run" in said
    assert run.main(tiny(together, "--no-report", "--max-concurrent", "1")) == 0
    assert tables(together) == tables(alone)
    assert all(row["exclusive_timing"] for row in rows(together))
    assert not list((together / "checkpoints").glob("*/*"))
    assert set(facts(together)["trial_ids"]) == {row["trial_id"] for row in rows(together)}


def test_a_budget_that_runs_out_keeps_what_is_done_and_the_same_command_continues(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(tiny(tmp_path, "--no-report", "--budget", "0.2s")) == 1
    assert "the budget of 0.2s is used up; what is done is kept" in capsys.readouterr().err
    assert all(row["status"] != "COMPLETED" for row in rows(tmp_path))
