"""Fractions of GPUs on a real Ray whose GPUs are fake: never more on one than fit, none idle, and more for who ran out of memory."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from study.options import Options
from study.plan.memory import is_out_of_memory, memory_cap, next_share
from study.plan.packing import Machine, Speeds, make_plan, memory_bytes
from study.spec import Study, expand
from tests.running import ROOT, rows, tiny


def run_on_fake_gpus(kind: str, n_nodes: int, arguments: list[str]) -> str:
    """Run a study on nodes with fake GPUs (see tests/greedy.py) in a process of its own; returns what it said."""
    command = [sys.executable, "-m", "tests.greedy", kind, str(n_nodes), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def placed(out: Path) -> list[dict[str, Any]]:
    """Where bundles began and ended, in time."""
    lines = [json.loads(line) for line in (out.parent / "placed.log").read_text().splitlines()]
    return sorted(lines, key=lambda line: line["at"])


def most_at_once(events: list[dict[str, Any]]) -> dict[tuple[str, int], float]:
    """Largest sum of shares that each GPU ever held; a trial that begins anew is no longer where its worker was lost."""
    held: dict[str, tuple[tuple[str, int], float]] = {}
    most: dict[tuple[str, int], float] = defaultdict(float)
    for event in events:
        place = event["node"], event["gpus"][0]
        held[event["trial"]] = place, event["share"] if event["what"] == "begins" else 0.0
        most[place] = max(most[place], sum(share for at, share in held.values() if at == place))
    return most


@pytest.mark.ray
@pytest.mark.slow
def test_24_trials_of_half_a_gpu_on_three_nodes_fill_all_six_gpus_and_never_more(story_cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    seeds = [str(seed) for seed in range(1, 25)]
    study = ["--seeds", *seeds, "--sweeps", "width:n_embd=16", "--train.n_steps", "60"]
    run_on_fake_gpus("placed", 3, tiny(out, "--no-report", "--gpus-per-trial", "0.5", "--cpus-per-trial", "1", "--device", "cpu", *study))
    assert [row["status"] for row in rows(out)] == ["COMPLETED"] * 24
    events = placed(out)
    most = most_at_once(events)
    assert len(most) == 6  # every GPU of every node had work
    assert all(share <= 1 + 1e-6 for share in most.values())
    trained = [(event["node"], event["gpus"][0]) for event in events if event["what"] == "ends"]
    counts = sorted(trained.count(place) for place in most)
    assert sum(counts) == 24
    assert 2 <= counts[0] <= counts[-1] <= 8, counts  # a fair share is four


# ---- the memory model ----


def test_shares_grow_until_the_gpu_is_whole_and_only_for_lack_of_memory() -> None:
    assert [next_share(share) for share in (1 / 6, 1 / 4, 1 / 2, 1, 0.0, 2.0)] == [1 / 4, 1 / 2, 1, 0, 0, 0]
    assert is_out_of_memory("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")
    assert is_out_of_memory("Task was killed due to the node running low on memory")
    assert not is_out_of_memory("ValueError: the loss was not finite")


def test_the_caps_of_processes_that_share_a_gpu_leave_room_for_each_ones_context() -> None:
    whole = 24 << 30
    for n in (2, 3, 6):
        assert 0 < memory_cap(1 / n, whole) * n * whole + n * (700 << 20) <= whole
    assert memory_cap(1.0, whole) == memory_cap(0.0, whole) == 0.0


def test_what_real_trials_needed_makes_the_next_plan_reserve_more_and_survives_on_disk(tmp_path: Path) -> None:
    trials = expand(Study(seeds=(1, 2)))
    gpu = Machine("cuda", "gpu", cpus=16, gpus=2, gpu_memory_bytes=8 << 30)
    speeds = Speeds.load(tmp_path)
    speeds.note("gpu", trials[0], 64, 10.0, real=True)
    before = make_plan(trials, 64, gpu, speeds, Options(bundle=1)).bundles[0]
    expected = memory_bytes(trials[0], 64, "cuda", "float32")
    speeds.note_memory(gpu, trials[0], 64, 3 << 30)
    speeds.note_memory(gpu, trials[0], 64, 1 << 30)  # never less than was seen
    speeds.save()
    after = make_plan(trials, 64, gpu, Speeds.load(tmp_path), Options(bundle=1)).bundles[0]
    assert before.memory_bytes == expected
    assert after.memory_bytes == pytest.approx(3 << 30, rel=0.01)
    assert after.gpus == 1 / 2
    assert before.gpus < after.gpus
    assert Speeds(seen=speeds.seen).memory_factor("gpu", trials[0]) == 1.0
