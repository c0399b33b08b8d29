"""Trackers: the real libraries, without network, are told what the table says; one that fails or hangs costs a sentence and no time."""

import base64
import importlib
import json
import os
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from study import records, run
from study.command import parse
from study.course import checked
from study.display import tracker
from study.display.tensorboard import SCALARS, run_name
from study.spec import Trial, expand
from tests.running import tiny, wait_until

N_BYTES_OF_BLOCK = 32_768
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")


@pytest.fixture
def trial() -> Trial:
    return expand(parse(["smoke"]).study)[0]


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every library writes into this folder."""
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracker, "WAIT_S", 300.0)
    (tmp_path / "out").mkdir()
    return tmp_path


def evaluation(step: int, trial: Trial) -> dict[str, Any]:
    values = {column: 1.0 + step / 100 + index for index, column in enumerate(SCALARS.values())}
    return {"trial_id": trial.trial_id, "step": step, "tokens": step * 512, **values}


def wandb_history(folder: Path) -> list[tuple[str, int, dict[str, float]]]:
    """(run, step, values) of the offline files, which are logs of protocol buffers in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for path in folder.glob("wandb/offline-run-*/*.wandb"):
        data, position, part, name = path.read_bytes()[7:], 0, b"", ""
        while position + 7 < len(data):
            if (left := N_BYTES_OF_BLOCK - (position + 7) % N_BYTES_OF_BLOCK) < 7:
                position += left
            _, length, kind = struct.unpack("<IHB", data[position : position + 7])
            part += data[position + 7 : position + 7 + length]
            position += 7 + length
            if kind in (1, 4):  # whole, or the last part
                record, part = Record.FromString(part), b""
                name = record.run.display_name or name
                if record.HasField("history"):
                    values = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                    rows.append((name, record.history.step.num, values))
    return rows


def trackio_history(folder: Path) -> list[tuple[str, int, dict[str, float]]]:
    module = importlib.import_module("trackio.sqlite_storage")
    module.TRACKIO_DIR, storage = Path(os.environ["TRACKIO_DIR"]), module.SQLiteStorage  # it is read once, at its import
    return [(name, row.pop("step"), row) for name in storage.get_runs("out") for row in storage.get_logs("out", name)]


def mlflow_history(folder: Path) -> list[tuple[str, int, dict[str, float]]]:
    client = importlib.import_module("mlflow").MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    rows = []
    for found in client.search_runs([client.get_experiment_by_name("out").experiment_id]):
        for name in found.data.metrics:
            points = client.get_metric_history(found.info.run_id, name)
            rows += [(found.info.run_name, point.step, {name: point.value}) for point in points]
        if plots := [file.path for file in client.list_artifacts(found.info.run_id, "plots")]:
            rows.append((found.info.run_name, 0, dict.fromkeys((path.removesuffix(".png") for path in plots), 0.0)))
    return rows


def history(name: str, folder: Path) -> dict[tuple[str, int], dict[str, float]]:
    """What a tracker holds of the project `out`: (run, step) -> values."""
    rows = {"wandb": wandb_history, "trackio": trackio_history, "mlflow": mlflow_history}
    gathered: dict[tuple[str, int], dict[str, float]] = {}
    for run_, step, values in rows[name](folder):
        gathered.setdefault((run_, step), {}).update(values)
    return gathered


def given_up(name: str, out: Path, trial: Trial) -> str:
    """The one sentence that a tracker costs that cannot begin, while its run goes on."""
    said: list[str] = []
    view = tracker.Tracker(name, out, {trial.trial_id: trial}, 63, said.append)
    view.progress(evaluation(0, trial))
    wait_until(lambda: view.tick() or said, seconds=120)
    view.progress(evaluation(1, trial))
    view.close()
    assert len(said) == 1
    return said[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", tracker.PACKAGES)
def test_a_tracker_holds_the_curves_and_the_last_row_also_of_a_run_that_went_on(name: str, offline: Path, trial: Trial) -> None:
    pytest.importorskip(name)
    out, said = offline / "out", list[str]()
    (offline / "loss.png").write_bytes(PNG)
    row = {"trial_id": trial.trial_id, "status": "INTERRUPTED", "n_tokens": 512, "val_loss": 2.5, "val_loss_se": None}
    first = tracker.Tracker(name, out, {trial.trial_id: trial}, 63, said.append)
    first.progress(evaluation(0, trial))
    first.progress(evaluation(1, trial))
    first.ended(row, [])
    first.close()
    second = tracker.Tracker(name, out, {trial.trial_id: trial}, 63, said.append)
    second.progress(evaluation(2, trial))
    second.tick()
    second.ended(row | {"status": "COMPLETED", "n_tokens": 1024, "val_loss": 2.25}, [])
    second.close()
    assert tracker.publish(name, out, {"loss": offline / "loss.png"}) == ""
    assert said == []

    held = history(name, offline)
    assert {key[0] for key in held} == {run_name(trial), "_study"}
    for step in (0, 1, 2):
        expected = {tag: evaluation(step, trial)[column] for tag, column in SCALARS.items()}
        assert held[run_name(trial), step * 512].items() >= expected.items()
    assert held[run_name(trial), 1024]["final/val_loss"] == 2.25
    assert any(tag.startswith("plots/loss") for key, values in held.items() for tag in values if key[0] == "_study")


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_tells_its_tracker_what_its_tables_say(offline: Path, local_ray: None) -> None:
    pytest.importorskip("trackio")
    out = offline / "out"
    assert run.main(tiny(out, "--no-report", "--track", "trackio")) == 0
    trials = {row["trial_id"]: row for row in records.read(out, "trials").to_pylist()}
    curves = records.read(out, "curves").to_pylist()
    held = history("trackio", offline)
    assert len({name for name, _ in held}) == len(trials) == 3
    told = {(step, values["loss/val"]) for (_, step), values in held.items()}
    assert told == {(row["tokens"], row["val_loss"]) for row in curves}
    assert {values["final/val_loss"] for values in held.values() if "final/val_loss" in values} == {t["val_loss"] for t in trials.values()}


@pytest.mark.slow
def test_a_tracker_without_an_account_is_given_up_in_one_sentence(offline: Path, trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for variable in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NETRC", str(offline / "netrc"))
    monkeypatch.setenv("HOME", str(offline))
    said = given_up("wandb", offline / "out", trial)
    assert said.startswith("wandb is given up (")
    assert "key" in said


@pytest.mark.slow
def test_a_tracker_that_hangs_holds_nothing_up(offline: Path, trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    monkeypatch.setattr(tracker, "WAIT_S", 1.0)
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setenv("TRACKIO_SERVER_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        monkeypatch.setenv("TRACKIO_WRITE_TOKEN", "any")
        view = tracker.Tracker("trackio", offline / "out", {trial.trial_id: trial}, 63, said.append)
        began = time.monotonic()
        for step in range(5000):  # more than a pipe holds
            view.progress(evaluation(step, trial))
            view.tick()
        assert time.monotonic() - began < 30
        deaf.settimeout(120)
        with deaf.accept()[0]:  # the library has called, and waits for an answer
            view.close()
    assert said == ["trackio took longer than 1 s to send the rest, which it lacks; the results are whole"]


def test_a_tracker_that_breaks_is_given_up_in_one_sentence(offline: Path, trial: Trial) -> None:
    why = "No module named 'no_such_tracker'"
    assert given_up("no_such_tracker", offline / "out", trial) == f"no_such_tracker is given up ({why}); the results are whole without it"
    assert tracker.publish("no_such_tracker", offline / "out", {}) == given_up("no_such_tracker", offline / "out", trial)


def test_a_tracker_that_is_not_installed_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        checked(parse(["smoke", "--track", "wandb"]))
