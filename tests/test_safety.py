"""What a study file says stays where it belongs: no path leaves --out; GPUs that a cluster will bring are counted."""

from pathlib import Path

import pytest

from study.command import parse
from study.options import Options
from study.tune.cluster import brings_gpus, describe_nodes, gpus_per_trial


@pytest.mark.parametrize("file", ["...yaml", "..yaml", "a b;c.yaml", "$(x).yaml"])
def test_a_study_file_of_any_name_has_its_results_inside_the_results_folder(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / file).write_text("question: q\n")
    out = parse([str(tmp_path / file)]).out
    assert out.parent == tmp_path / "results"
    assert out.name not in ("", ".", "..")


# ---- clusters whose GPUs are not up yet ----


def test_a_cluster_that_will_start_gpu_nodes_gives_each_trial_a_gpu(tmp_path: Path) -> None:
    file = tmp_path / "ray_bootstrap_config.yaml"
    assert not brings_gpus(file)
    file.write_text("available_node_types:\n  head: {resources: {CPU: 2}}\n  gpu: {resources: {CPU: 4, GPU: 1}, max_workers: 3}\n")
    assert brings_gpus(file)
    file.write_text("available_node_types:\n  head: {resources: {CPU: 2}}\n  gpu: {resources: {GPU: 1}, max_workers: 0}\n")
    assert not brings_gpus(file)
    file.write_text("[not a cluster")
    assert not brings_gpus(file)


@pytest.mark.ray
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
