"""The Ray Tune side on a real local Ray: data reach workers, resources are checked, processes are reused, order is kept."""

from pathlib import Path

import numpy as np
import pytest
from ray import cloudpickle

from study.command import parse
from study.data import corpus as data
from study.options import Options
from study.results.object_store import Store
from study.spec import Study, expand
from study.tune import session as training
from study.tune.cluster import brings_gpus, check_nodes, check_resources, describe_nodes, gpus_per_trial
from study.tune.trainable import BundleTrainable
from study.tune.worker_input import Bundled, Work, requests, share
from tests.running import tiny
from tests.test_run import refused

pytestmark = pytest.mark.ray


def test_tokens_travel_as_a_file_name_here_and_through_the_object_store_on_a_cluster(local_ray: None, tmp_path: Path) -> None:
    tokens = np.memmap(tmp_path / "train.bin", dtype=np.uint16, mode="w+", shape=(1000,))
    tokens[:] = np.arange(1000)
    tokens.flush()
    here, anywhere = share(tokens, on_cluster=False), share(tokens, on_cluster=True)
    assert isinstance(here(), np.memmap)
    assert not isinstance(anywhere(), np.memmap)
    assert not anywhere().flags.writeable  # a view of shared memory, not a copy
    for shared in (here, anywhere, share(np.arange(1000), on_cluster=False)):
        np.testing.assert_array_equal(shared(), np.arange(1000))


def worker(out: Path, *arguments: str, store: Store | None = None) -> BundleTrainable:
    """A worker as Ray Tune sets it up, in this process, for the trials that the arguments ask for."""
    command = parse(tiny(out, *arguments))
    corpus = data.prepare(command.study.data)
    bundles = tuple(Bundled((trial,), 1.0, 0.0) for trial in expand(command.study))
    tokens = (share(corpus.train, on_cluster=False), share(corpus.val, on_cluster=False))
    found = object.__new__(BundleTrainable)
    facts = corpus.vocab_size, corpus.tokenizer, command.options, out / "checkpoints"
    found.setup({"bundle": 0}, Work(bundles, *tokens, *facts, store=store))
    return found


def test_a_worker_continues_where_its_predecessor_saved_and_hands_over_the_whole_curve_once(local_ray: None, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text("{}")
    first = worker(tmp_path)
    assert [first.step()["rows"][0]["step"] for _ in range(3)] == [0, 20, 40]
    first.cleanup()  # as Ray Tune does with a worker that it stops
    second = worker(tmp_path)
    results = [second.step()]
    while not results[-1]["done"]:
        results.append(second.step())
    assert [row["step"] for result in results for row in result["rows"]] == [60, 80, 100, 120, 140, 160]
    (outcome,) = results[-1]["outcomes"]
    assert [row["step"] for row in outcome["curve"]] == list(range(0, 161, 20))
    assert outcome["row"]["restarts"] == 1
    assert second.reset_config({"bundle": 1})
    assert second.step()["rows"][0]["step"] == 0


def test_a_worker_that_does_not_see_the_results_folder_says_so_and_trains_without_checkpoints(local_ray: None, tmp_path: Path) -> None:
    alone = worker(tmp_path / "elsewhere")
    (note,) = alone.step()["notes"]
    assert "does not see" in note
    assert alone.step()["rows"][0]["step"] == 20
    assert not (tmp_path / "elsewhere").exists()


def test_a_worker_refuses_what_cannot_be_trained_instead_of_failing_again_and_again(local_ray: None, tmp_path: Path) -> None:
    refused = worker(tmp_path, "--model.block_size", "500000").step()
    assert refused["done"]
    assert "too short for block_size=500000" in refused["refused"]


def test_a_trial_that_no_node_can_hold_is_refused_at_once_here_and_waited_for_on_a_cluster(local_ray: None) -> None:
    assert check_resources([(1.0, 0.0), (2.0, 0.0)], on_cluster=False) == ""
    with pytest.raises(ValueError, match=r"needs 3 CPUs and 0 GPUs, the largest node has 2 CPUs.*; lower --cpus-per-trial"):
        check_resources([(1.0, 0.0), (3.0, 0.0)], on_cluster=False)
    assert "waiting until the cluster has such a node" in check_resources([(1.0, 0.5)], on_cluster=True)
    check_nodes(on_cluster=True)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("127.0.0.1:1", "the Ray cluster at 127.0.0.1:1 cannot be reached: Connection refused"),
        ("auto", "finds no Ray cluster that was started on this machine"),
    ],
)
def test_an_address_without_a_cluster_ends_with_one_sentence(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, address: str, sentence: str
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # where no cluster is noted, whoever began one on this machine
    code, said = refused(capsys, *tiny(tmp_path, "--address", address))
    assert (code, sentence in said) == (1, True), said


def test_bundles_are_scheduled_longest_first_and_seeds_stay_paired(local_ray: None) -> None:
    command = parse(["smoke", "--sweeps", "width:n_embd=16,48,32", "--seeds", "1", "2"])
    bundles = training.make_bundles(command, expand(command.study), 64, None)
    assert [(b.trials[0].shape.n_embd, b.trials[0].seed) for b in bundles] == [(48, 1), (48, 2), (32, 1), (32, 2), (16, 1), (16, 2)]
    assert all((b.cpus, b.gpus) == (1.0, 0.0) for b in bundles)


def test_what_ray_tune_unpickles_for_every_trial_stays_small_and_asks_for_each_bundles_share() -> None:
    trials = expand(Study(seeds=tuple(range(600))))
    bundles = [Bundled((trial,), 1.0, share) for trial in trials for share in (0.25, 0.5)]
    packed = cloudpickle.dumps(requests(bundles))
    assert len(bundles) > 1000
    assert len(packed) < 2000 + 2 * len(bundles)
    wanted = cloudpickle.loads(packed)
    for index in (0, 1, len(bundles) - 1):
        assert wanted({"bundle": index}).required_resources == {"CPU": 1.0, "GPU": bundles[index].gpus}
    assert wanted({"bundle": 0, "bundled": Bundled(trials[:1], 2.0, 0.0)}).required_resources == {"CPU": 2.0}


# ---- clusters whose GPUs are not up yet ----


@pytest.mark.parametrize(
    ("text", "brings"),
    [
        ("", False),
        ("available_node_types:\n  head: {resources: {CPU: 2}}\n  gpu: {resources: {CPU: 4, GPU: 1}, max_workers: 3}\n", True),
        ("available_node_types:\n  head: {resources: {CPU: 2}}\n  gpu: {resources: {GPU: 1}, max_workers: 0}\n", False),
        ("[not a cluster", False),
    ],
)
def test_a_cluster_that_will_start_gpu_nodes_gives_each_trial_a_gpu(text: str, brings: bool, tmp_path: Path) -> None:
    assert not brings_gpus(tmp_path / "nothing")
    (tmp_path / "ray_bootstrap_config.yaml").write_text(text)
    assert brings_gpus(tmp_path / "ray_bootstrap_config.yaml") == brings


def test_the_default_share_follows_from_what_is_up_and_what_was_asked_for(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert gpus_per_trial(Options()) == 0.0
    assert gpus_per_trial(Options(device="cuda")) == 0.0  # this machine has none and will get none
    assert gpus_per_trial(Options(device="cuda", address="auto")) == 1.0
    assert gpus_per_trial(Options(address="auto")) == 0.0
    (tmp_path / "ray_bootstrap_config.yaml").write_text("available_node_types: {g: {resources: {GPU: 4}}}")
    assert gpus_per_trial(Options(address="auto")) == 1.0
    assert gpus_per_trial(Options(address="auto", device="cpu")) == 0.0
    assert gpus_per_trial(Options(address="auto", gpus_per_trial=0.25)) == 0.25
    assert "joined the Ray cluster at head:6379: 1 node with 2 CPUs and 0 GPUs; no quote" in describe_nodes("head:6379")
