"""Faults of the machine on a real Ray: a full or read-only disk, a clock that jumps, a full object store, lost heads, signals."""

import errno
import gc
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from study import run
from study.command import parse
from study.results.trial_writer import PROBE_BYTES, Recorder
from study.spec import expand
from study.tune import local_ray
from tests.running import checkpoints, in_mid_run, kill_one_worker, one, rows, tables, tiny, wait_until

pytestmark = pytest.mark.ray


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Nothing frees cycles by chance: whoever needs them freed sees to it."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of its own with room for the tiny study and little more."""
    place = Path(tempfile.mkdtemp(prefix="disk-"))  # not below tmp_path: a socket's path may have 107 bytes
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(place)], capture_output=True, text=True, check=False)
    if done.returncode:
        place.rmdir()
        pytest.skip(f"this system does not let a test mount a file system: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)
    place.rmdir()


def fill(disk: Path) -> Path:
    """Take all that is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return filler


def test_a_disk_that_fills_up_ends_the_run_in_one_sentence_and_the_same_command_continues_when_there_is_space(
    undisturbed: Path, small_disk: Path, uncollected: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = small_disk / "out"
    filling = threading.Thread(target=lambda: wait_until(lambda: checkpoints(out, 40)) and fill(small_disk))
    filling.start()
    assert run.main(one(out)) == 1
    filling.join()
    said = capsys.readouterr().err
    assert "the disk is full" in said
    assert "the same command continues" in said
    assert "Traceback" not in said
    (small_disk / "filler").unlink()
    assert run.main(one(out)) == 0
    assert tables(out) == tables(undisturbed, of=out)


def test_room_for_a_row_is_not_taken_for_room_to_go_on(small_disk: Path) -> None:
    trials = {trial.trial_id: trial for trial in expand(parse(one(small_disk / "out")).study)}
    recorder = Recorder(small_disk, "tiny", "abc", {}, trials, 64)
    params = max(trial.model(64).params_total for trial in trials.values())
    left = fill(small_disk)
    for room, enough in ((PROBE_BYTES, False), (PROBE_BYTES + 14 * params, False), (2 * PROBE_BYTES + 24 * params, True)):
        os.truncate(left, left.stat().st_size - room)
        with nullcontext() if enough else pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            recorder.probe(trials.values())
        fill(small_disk)


def test_ray_is_not_started_where_its_temporary_folder_has_no_room(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(small_disk.parent))
    local_ray.check()
    monkeypatch.setenv("RAY_TMPDIR", str(small_disk))
    fill(small_disk)
    with pytest.raises(ValueError, match=f"temporary folder {small_disk} has 0 MiB left; free some space"):
        local_ray.check()


@pytest.mark.slow
def test_a_temporary_folder_that_fills_up_ends_a_run_that_needs_it_in_one_sentence(
    undisturbed: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["mount", "-o", "remount,size=32m", str(small_disk)], check=True)
    with monkeypatch.context() as there:
        there.setenv("RAY_TMPDIR", str(small_disk))
        process, out, log = in_mid_run(tmp_path)
    fill(small_disk)
    kill_one_worker(process.pid)  # Ray Tune writes down why before it tries again
    assert process.wait(120) == 1, log.read_text()
    said = log.read_text()
    assert f"temporary folder {small_disk} has 0 MiB left" in said
    assert "the same command continues" in said
    assert "Traceback" not in said
    assert run.main(tiny(out, "--no-report")) == 0
    assert tables(out) == tables(undisturbed)


def test_a_read_only_file_system_is_refused_before_anything_starts(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert run.main(tiny(small_disk / "out")) == 1
    said = capsys.readouterr().err.strip()
    assert "results cannot be written to" in said
    assert "Read-only file system" in said
    assert len(said.splitlines()) == 1


@pytest.mark.slow
def test_a_clock_that_is_set_back_and_an_object_store_full_of_other_things_are_no_obstacles(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    held = [ray.put(np.zeros(24 << 20, dtype=np.uint8)) for _ in range(6)]  # 144 MiB of 100: Ray moves some of it to disk
    true_time, back = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: true_time() - back[0])

    def set_back() -> None:
        wait_until(lambda: checkpoints(tmp_path, 40))
        back[0] = 7200.0
        wait_until(lambda: checkpoints(tmp_path, 100))
        back[0] = -7200.0  # and forward, far beyond what counts as a stall

    clock = threading.Thread(target=set_back)
    clock.start()
    code = run.main(tiny(tmp_path, "--no-report", "--stall-minutes", "20"))
    clock.join()
    assert (code, len(held)) == (0, 6)
    assert tables(tmp_path) == tables(undisturbed)
    assert all(row["restarts"] == 0 for row in rows(tmp_path))
    assert all(0 < row["wall_s"] < 3600 for row in rows(tmp_path))
    assert all(row["started_at"] <= row["finished_at"] for row in rows(tmp_path))
