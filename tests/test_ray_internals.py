"""The private parts of Ray that this program touches are still there and still mean the same: a new Ray fails here first."""

import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import ray
from ray import tune
from ray._common import utils as paths
from ray._private import node, services
from ray.tune.experiment.trial import Trial

from study.tune import ray_internals


def test_ray_starts_its_processes_and_finds_its_node_through_the_two_names_that_are_replaced() -> None:
    assert issubclass(services.ConsolePopen, subprocess.Popen)
    assert "ConsolePopen(" in inspect.getsource(services.start_ray_process)
    waiting = inspect.getsource(node.Node.__init__)
    assert "ray._private.services.get_node(" in waiting
    assert "except RuntimeError" in waiting  # anything else ends the wait at once
    with ray_internals.watched_start():
        assert services.ConsolePopen is not subprocess.Popen
    assert isinstance(services.ConsolePopen, type)


def test_a_start_whose_process_ends_fails_at_once_and_leaves_none_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        with ray_internals.watched_start():
            others.append(services.ConsolePopen([sys.executable, "-c", "import time; time.sleep(600)"]))
            services.ConsolePopen([sys.executable, "-c", ""]).wait()
            services.get_node("", "")

    monkeypatch.setattr(services, "get_node", Mock(side_effect=RuntimeError("not yet")))
    with pytest.raises(ray_internals.NodeEnded, match=r"its process python.* ended while it started"):
        start()
    assert others[0].returncode == -9
    assert os.getpgid(os.getpid()) == os.getpgrp()


def test_the_note_of_a_cluster_lies_where_ray_start_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert ray_internals.cluster_of_this_machine(tmp_path) is None
    note = Path(paths.get_ray_address_file(None))
    note.parent.mkdir()
    note.write_text("10.0.0.1:6379")
    assert ray_internals.cluster_of_this_machine(tmp_path) == ("10.0.0.1:6379", os.getuid())


def test_a_trial_of_ray_tune_has_the_parts_that_are_read_and_set(tmp_path: Path) -> None:
    tune.register_trainable("nothing", lambda config: None)
    trial = Trial("nothing", stub=True)
    ray_internals.forget_means(trial)
    assert trial.metric_n_steps == trial.metric_analysis == {}
    assert not ray_internals.kill_worker(trial)  # it has no process yet
    trial.run_metadata.num_failures = 2
    larger = tune.PlacementGroupFactory([{"CPU": 3}])
    ray_internals.try_with(trial, larger)
    assert trial.run_metadata.num_failures == 1
    assert trial.placement_group_factory == larger
    (tmp_path / "error.txt").write_text("Failure # 1 (a)\nold\nFailure # 2 (b)\nnew\n")
    assert ray_internals.newest_failure(SimpleNamespace(error_file=str(tmp_path / "error.txt"))) == "2 (b)\nnew\n"
    assert isinstance(inspect.getattr_static(Trial, "error_file"), property)


def test_a_worker_outside_of_ray_tune_reserves_nothing() -> None:
    assert ray_internals.reserved_gpus(SimpleNamespace()) is None
    info = SimpleNamespace(required_resources={"CPU": 1.0, "GPU": 0.25})
    assert ray_internals.reserved_gpus(SimpleNamespace(_trial_info=1, trial_resources=info)) == 0.25
    assert "_trial_info" in inspect.getsource(tune.Trainable.__init__)


def test_a_head_is_asked_through_ray_s_own_client() -> None:
    assert hasattr(ray._raylet, "GcsClient")
    assert issubclass(ray.exceptions.AuthenticationError, Exception)
