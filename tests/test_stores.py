"""Results in an object store, against a real S3 server on this machine (moto's): fetched, followed, locked, lost and found again."""

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from analysis import __main__ as analysis
from study import run
from study.command import parse
from study.files import cache_folder
from study.results import object_store as stores
from study.results import store_sync as mirror
from study.results.object_store import Store
from study.results.store_sync import Mirror, held
from tests.running import facts, rows, tables, tiny, wait_until
from tests.test_run import refused
from tests.test_trial import worker


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadedMotoServer]:
    found = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    found.start()
    yield found
    found.stop()


@pytest.fixture
def bucket(server: ThreadedMotoServer, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Address of an empty bucket; the environment is what a person sets for a store that is not Amazon's."""
    import boto3

    host, port = server.get_host_and_port()
    settings = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "hush-hush"}
    for name, value in {**settings, "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    name = f"results-{abs(hash(request.node.name)) % 10**9}"
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=name)
    return f"s3://{name}"


def contents(address: str) -> set[str]:
    return set(Store.at(address).entries())


def hold(address: str, **holder: Any) -> None:
    """Put the lock of another run."""
    Store.at(address).write(".lock.json", json.dumps({"token": "t", "pid": 1, "host": "elsewhere", "since": "now"} | holder).encode())


def another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache, but for the text: what a second machine has."""
    there = tmp_path / "another-machine"
    shutil.copytree(cache_folder(), there, ignore=shutil.ignore_patterns("stores"))
    monkeypatch.setenv("SCALING_STUDY_CACHE", str(there))


def one_that_can_go(monkeypatch: pytest.MonkeyPatch, port: int = 0) -> ThreadedMotoServer:
    """A server of one's own, to be stopped; what it held is there again when another one starts in this process."""
    own = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    own.start()
    host, port = own.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    return own


def leaves_when(condition: Callable[[], Any], server: ThreadedMotoServer) -> threading.Thread:
    thread = threading.Thread(target=lambda: (wait_until(condition), server.stop()))
    thread.start()
    return thread


# ---- a study ----


@pytest.mark.ray
def test_a_study_in_a_store_goes_on_from_another_machine_ends_without_its_store_and_brings_its_results_there_later(
    undisturbed: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"{bucket}/quick"
    study = ["smoke", "--out", address, *tiny(Path("unused"), "--no-report")[3:], "--sweeps"]
    assert run.main([*study, "width:n_embd=16"]) == 0
    assert {"study.json", "trials.parquet", "curves.parquet", "samples.parquet"} <= contents(address)
    assert not any(name.startswith((".", "ray/", "checkpoints/")) for name in contents(address))
    study.append("width:n_embd=16,24")
    (first,) = rows(parse(study).out)

    another_machine(monkeypatch, tmp_path)
    out = parse(study).out
    assert not out.exists()
    monkeypatch.setattr(mirror, "LAST_PATIENCE_S", 1.0)
    leaving = leaves_when(lambda: list(out.glob("checkpoints/*/step-*")), one_that_can_go(monkeypatch))
    capsys.readouterr()
    assert run.main(study) == 1
    leaving.join()
    said = capsys.readouterr()
    assert "2 trials = 2 configurations x 1 seeds; 1 done, 1 to run" in said.out
    assert f"{address} cannot be reached" in said.err.strip().splitlines()[-1]
    assert f"all results are in {out}, and the same command brings them there" in said.err.strip().splitlines()[-1]
    assert tables(out) == tables(undisturbed, of=out)
    assert first in rows(out)  # what the first machine measured, not trained again

    back = one_that_can_go(monkeypatch)
    hold(address, pid=2**22 + 1, host=socket.gethostname())  # a person's first run was a process that has ended since
    assert run.main(study) == 0
    assert "2 done, 0 to run" in capsys.readouterr().out
    mirror.fetch(address, tmp_path / "copy")
    back.stop()
    assert tables(tmp_path / "copy") == tables(out)
    assert len(rows(out)) == 2
    assert "hush-hush" not in json.dumps(facts(tmp_path / "copy"))


@pytest.mark.slow
@pytest.mark.ray
def test_a_store_that_stays_away_stops_the_run_in_one_sentence(
    local_ray: None, bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = ["--sweeps", "width:n_embd=32", "--train.n_steps", "20000"]
    study = ["smoke", "--out", f"{bucket}/a", *tiny(Path("unused"), "--no-report")[3:], *longer]
    for name, value in {"POLL_S": 0.2, "PATIENCE_S": 1.5, "LAST_PATIENCE_S": 0.5}.items():
        monkeypatch.setattr(mirror, name, value)
    out = parse(study).out
    leaving = leaves_when(lambda: list(out.glob("checkpoints/*/step-*")), one_that_can_go(monkeypatch))
    assert run.main(study) == 1
    leaving.join()
    said = capsys.readouterr()
    assert "training goes on, and it is tried again" in said.out
    assert "has not been reachable for 0.025 minutes" in said.err
    assert "the same command continues" in said.err
    assert "Traceback" not in said.err
    assert [row["status"] for row in rows(out)] == ["INTERRUPTED"]


# ---- the mirror ----


def test_files_follow_each_other_both_ways_and_deletions_too(bucket: str, tmp_path: Path) -> None:
    here, there = Mirror(Store.at(f"{bucket}/a"), tmp_path / "here"), Mirror(Store.at(f"{bucket}/a"), tmp_path / "there")
    for name, text in {"study.json": "{}", "trials/a.parquet": "1", "empty.csv": "", "ray/x": "-", ".lock": "-", "a.bad-1": "-"}.items():
        (here.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (here.folder / name).write_text(text)
    assert here.push() == 3
    assert here.push() == 0
    there.pull()
    assert {p.name: p.read_text() for p in there.folder.rglob("*") if p.is_file() and p.name[0] != "."} == {
        "study.json": "{}", "a.parquet": "1", "empty.csv": "",
    }  # fmt: skip
    (there.folder / "trials/a.parquet").write_text("22")
    (there.folder / "empty.csv").unlink()
    assert there.push() == 2
    (here.folder / "new.csv").write_text("made while the store was away")
    again = Mirror(Store.at(f"{bucket}/a"), here.folder)
    again.pull()
    assert (here.folder / "trials/a.parquet").read_text() == "22"
    assert not (here.folder / "empty.csv").exists()
    assert again.push() == 1
    assert contents(f"{bucket}/a") == {"study.json", "trials/a.parquet", "new.csv"}


def test_a_torn_checkpoint_is_not_fetched_and_a_finished_trials_leftovers_are_removed(bucket: str, tmp_path: Path) -> None:
    store = Store.at(f"{bucket}/a")
    for name in ("t1/step-00000020/state.safetensors", "t2/step-00000020/state.safetensors", "t2/step-00000020/state.json"):
        store.write(f"checkpoints/{name}", b"x")
    with held(f"{bucket}/a", tmp_path / "a"):
        assert [p.name for p in (tmp_path / "a/checkpoints").iterdir()] == ["t2"]
    workers_own = tmp_path / "worker"
    stores.get_checkpoints(store, workers_own, ("t1", "t2"))
    assert [p.parent.name for p in workers_own.glob("*/step-*")] == ["t2"]
    (workers_own / "t2/step-00000020").rename(workers_own / "t2/step-00000040")
    stores.put_checkpoints(store, workers_own, ("t2",))
    assert {name for name in contents(f"{bucket}/a") if "t2" in name} == {
        "checkpoints/t2/step-00000040/state.safetensors", "checkpoints/t2/step-00000040/state.json",
    }  # fmt: skip


def test_a_store_is_held_by_one_run_at_a_time_and_freed_by_the_death_of_its_holder(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{bucket}/a"
    with held(address, tmp_path / "a"), pytest.raises(ValueError, match=f"in use by another run \\(process {os.getpid()} on"):
        Mirror(Store.at(address), tmp_path / "b").acquire()
    assert ".lock.json" not in contents(address)
    hold(address)
    with pytest.raises(ValueError, match="in use by another run \\(process 1 on elsewhere"):
        Mirror(Store.at(address), tmp_path / "b").acquire()
    monkeypatch.setattr(mirror, "STALE_S", -1.0)  # its last beat is too long ago
    Mirror(Store.at(address), tmp_path / "b").acquire()


def test_a_run_whose_store_was_taken_over_stops(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "POLL_S", 0.05)
    monkeypatch.setattr(mirror, "BEAT_S", 0.1)

    def lose() -> None:
        with held(f"{bucket}/a", tmp_path / "a") as mine:
            hold(f"{bucket}/a")
            assert wait_until(lambda: mine.problem, seconds=20)

    with pytest.raises(ValueError, match="in use by another run \\(process 1 on elsewhere"):
        lose()
    assert ".lock.json" in contents(f"{bucket}/a")  # the other's


@pytest.mark.parametrize(
    "address", ["s3://", "s3:///x", "ftp://host/x", "s3://results/../other", "s3://results//x", "s3://results/x?endpoint=evil", "gs://B/x"]
)
def test_what_is_no_place_in_a_store_is_refused_in_one_sentence(
    address: str, capsys: pytest.CaptureFixture[str], story_cache: Path
) -> None:
    code, said = refused(capsys, "smoke", "--out", address)
    assert (code, f"out={address}" in said) == (2, True), said


def test_a_bucket_that_is_not_there_and_a_server_that_does_not_answer_are_named_before_anything_starts(
    bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], story_cache: Path
) -> None:
    monkeypatch.setattr(stores, "PAUSES_S", (0.1,))
    assert run.main(["smoke", "--out", "s3://no-such-bucket/x"]) == 1
    assert "results cannot be written to s3://no-such-bucket/x (no such bucket" in capsys.readouterr().err.lower()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    began = time.monotonic()
    assert run.main(["smoke", "--out", f"{bucket}/x"]) == 1
    assert time.monotonic() - began < 60
    said = capsys.readouterr().err
    assert f"results cannot be written to {bucket}/x" in said
    assert len(said.strip().splitlines()) == 1


def test_the_mirror_catches_up_when_its_store_is_back(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "POLL_S", 0.1)
    server = one_that_can_go(monkeypatch)
    port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
    with held(f"{bucket}/a", tmp_path / "a") as mine:
        server.stop()
        (mine.folder / "row").write_text("1")
        assert wait_until(lambda: mine.notes, seconds=30)
        assert "training goes on" in mine.notes[0]
        server = one_that_can_go(monkeypatch, port)
        assert wait_until(lambda: "row" in contents(f"{bucket}/a"), seconds=30)
        assert wait_until(lambda: "can be reached again" in mine.notes[-1], seconds=5)
    server.stop()


def test_the_analysis_fetches_results_from_their_address(
    bucket: str, synthetic_results: Path, story_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in synthetic_results.glob("*.*"):
        Store.at(f"{bucket}/a").upload(path, path.name)
    assert analysis.main([f"{bucket}/a", "--no-report", "--bootstrap", "0"]) == 0
    said = capsys.readouterr().out
    assert f"fetched {bucket}/a into" in said
    assert "depth" in said
    assert analysis.main(["ftp://host/a", "--no-report"]) == 1
    assert "is not a place for results" in capsys.readouterr().err


# ---- workers ----


@pytest.mark.ray
def test_a_worker_without_the_folder_keeps_its_checkpoints_in_the_store_and_another_one_continues(
    local_ray: None, bucket: str, tmp_path: Path
) -> None:
    store, driver = Store.at(f"{bucket}/a"), tmp_path / "of-the-driver"
    first = worker(driver, store=store)
    assert [first.step()["rows"][0]["step"] for _ in range(3)] == [0, 20, 40]
    assert any(name.endswith("step-00000020/state.json") for name in contents(f"{bucket}/a"))
    second = worker(driver, store=store)
    assert second.step()["rows"][0]["step"] in (40, 60)
    assert not driver.exists()
    place = second.place
    second.cleanup()
    assert not place.exists()
