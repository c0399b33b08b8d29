"""The plan follows from memory and time: bundles fit, fractions pack, the quote is what the schedule takes."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.config import Shape
from study.options import Options
from study.plan.packing import Machine, Speeds, gpu_fraction, make_plan, memory_bytes, step_flops, to_probe
from study.plan.probe import ProbeError, ask
from study.plan.quote import Quote, busy_cores, learn
from study.spec import DataConfig, Study, TrainConfig, Trial, expand
from study.train.pace import Pace

STUDY = Study(sweeps=("depth:n_layer=1,2,4", "width:n_embd=32,64,128"), seeds=(1, 2, 3))
TRIALS = expand(STUDY)
TINY = Trial(Shape(1, 16, 1, 16), TrainConfig(batch_size=2), DataConfig(), 1)
GPU = Machine("cuda", "gpu", cpus=16, gpus=2, gpu_memory_bytes=80 << 30)


def speeds_for(device: str, ms: float = 10.0) -> Speeds:
    speeds = Speeds()
    speeds.note(device, TRIALS[0], 64, ms, real=False)
    return speeds


def test_every_trial_is_planned_once_and_long_bundles_come_first() -> None:
    for machine in (Machine(), GPU):
        plan = make_plan(TRIALS, 64, machine, speeds_for(machine.name), Options())
        planned = [t.trial_id for b in plan.bundles for t in b.trials]
        assert sorted(planned) == sorted(t.trial_id for t in TRIALS)
        assert [b.seconds for b in plan.bundles] == sorted((b.seconds for b in plan.bundles), reverse=True)
        assert 0 < plan.utilisation <= 1


def test_a_cpu_trains_trials_alone_and_a_gpu_bundles_the_seeds_of_a_configuration() -> None:
    assert all(len(b.trials) == 1 for b in make_plan(TRIALS, 64, Machine(), speeds_for("cpu"), Options()).bundles)
    on_gpu = make_plan(TRIALS, 64, GPU, speeds_for("gpu"), Options()).bundles
    assert all(len(b.trials) == 3 for b in on_gpu)
    assert all(len({t.shape for t in b.trials}) == 1 for b in on_gpu)
    assert all(len(b.trials) in (1, 2) for b in make_plan(TRIALS, 64, GPU, speeds_for("gpu"), Options(bundle=2)).bundles)


@pytest.mark.parametrize("memory", [1 << 30, 9 << 30, 30 << 30, 79 << 30])
def test_fractions_pack_without_exceeding_memory(memory: int) -> None:
    fraction = gpu_fraction(memory, 80 << 30)
    side_by_side = round(1 / fraction)
    assert side_by_side * fraction == pytest.approx(1)
    assert side_by_side == 1 or side_by_side * memory <= 80 << 30


def test_a_bundle_never_needs_more_memory_than_the_gpu_has() -> None:
    large = Trial(Shape(12, 768, 12, 1024), TrainConfig(batch_size=64), DataConfig(), 1)
    small_gpu = replace(GPU, gpu_memory_bytes=24 << 30, precision="bf16")
    plan = make_plan([replace(large, seed=s) for s in range(8)], 228, small_gpu, speeds_for("gpu"), Options())
    alone = memory_bytes(large, 228, "cuda", "bf16")
    assert all(b.memory_bytes <= max(alone, 24 << 30) for b in plan.bundles)


def test_the_expected_end_is_that_of_the_schedule() -> None:
    trials = expand(replace(STUDY, sweeps=()))[:3]
    plan = make_plan(trials, 64, Machine(cpus=2), speeds_for("cpu"), Options())
    one = plan.bundles[0].seconds
    assert plan.slots == 2
    assert plan.seconds - 2 * one == pytest.approx(make_plan(trials, 64, Machine(cpus=1), speeds_for("cpu"), Options()).seconds - 3 * one)
    assert plan.device_hours == pytest.approx(3 * one / 3600)


def test_what_real_trials_took_replaces_a_probe_and_survives_on_disk(tmp_path: Path) -> None:
    trial = TRIALS[0]
    speeds = Speeds.load(tmp_path)
    assert to_probe([trial], "cpu", speeds, 64) == [trial]
    speeds.note("cpu", trial, 64, 12.0, real=False)
    speeds.note("cpu", trial, 64, 10.0, real=True)
    speeds.note("cpu", trial, 64, 99.0, real=False)
    speeds.save()
    again = Speeds.load(tmp_path)
    assert again.ms_per_step("cpu", trial, 64) == 10.0
    assert to_probe([trial], "cpu", again, 64) == []
    (tmp_path / "speed.json").write_text("{")
    assert Speeds.load(tmp_path).seen == {}
    with pytest.raises(ValueError, match="probe comes first"):
        Speeds().ms_per_step("cpu", trial, 64)


def test_the_next_quote_starts_from_processor_time_so_that_a_busy_machine_does_not_raise_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALING_STUDY_CACHE", str(tmp_path))
    trials = TRIALS[:2]
    quoted = Quote(make_plan([], 64, Machine(), Speeds(), Options()), Machine(), 64, Options())
    times = {"status": "COMPLETED", "bundle_size": 1, "ms_per_step": 80.0}
    seen = zip(trials, (10.0, None), strict=True)
    rows = [{**times, "trial_id": trial.trial_id, "cpu_ms_per_step": ms} for trial, ms in seen]
    learn(quoted, {trial.trial_id: trial for trial in trials}, rows)
    assert [Speeds.load(tmp_path).ms_per_step(Machine().name, trial, 64) for trial in trials] == [10.0, 80.0]
    old = json.loads((tmp_path / "speed.json").read_text())
    (tmp_path / "speed.json").write_text(json.dumps({name: value for name, value in old.items() if name != "version"}))
    assert Speeds.load(tmp_path).seen == {}  # of a version that learned wall times


def test_waiting_counts_as_wall_time_and_not_as_processor_time() -> None:
    pace = Pace(one_thread=True)
    with pace.step():
        time.sleep(0.05)
    assert pace.ms_per_step is not None
    assert pace.cpu_ms_per_step is not None
    assert pace.ms_per_step >= 50 > 10 > pace.cpu_ms_per_step
    later = Pace(one_thread=False)
    later.adopt(pace.state())
    assert (later.ms_per_step, later.cpu_ms_per_step) == (pace.ms_per_step, None)


def test_what_other_work_holds_is_seen_and_said() -> None:
    before = busy_cores()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        time.sleep(0.3)
        held = busy_cores()
        other.kill()
    assert held > min(before + 0.5, 0.9 * len(os.sched_getaffinity(0)))
    quoted = Quote(make_plan(TRIALS, 64, Machine(), speeds_for("cpu"), Options()), Machine(), 64, Options(), held)
    assert sum("other work holds about" in line for line in quoted.lines()) == 1
    assert not any("other work" in line for line in replace(quoted, busy_cores=0.1).lines())


def test_larger_steps_are_predicted_to_take_longer() -> None:
    ordered = sorted(TRIALS, key=lambda t: step_flops(t, 64))
    assert speeds_for("cpu").ms_per_step("cpu", ordered[-1], 64) > 3 * speeds_for("cpu").ms_per_step("cpu", ordered[0], 64)


def test_a_probe_times_real_steps_also_of_a_model_far_too_large_for_this_machine() -> None:
    huge = Trial(Shape(6, 384, 8, 256), TrainConfig(batch_size=64), DataConfig(), 1)
    found = ask([TINY, huge], 64, device="cpu", precision="auto", n_threads=1)
    fast, slow = found.ms_per_step
    assert 0.05 < fast < 1000
    assert slow > 100 * fast
    assert found.place["name"].startswith("cpu (")


def test_while_a_probe_times_steps_other_things_are_done_and_what_goes_wrong_there_ends_it() -> None:
    done = []
    assert ask([TINY], 64, device="cpu", precision="auto", n_threads=1, meanwhile=lambda: done.append(1)).ms_per_step
    assert done == [1]

    def fails() -> None:
        raise ValueError("Ray cannot start")

    began = time.monotonic()
    with pytest.raises(ValueError, match="Ray cannot start"):
        ask([TINY] * 300, 64, device="cpu", precision="auto", n_threads=1, meanwhile=fails)
    assert time.monotonic() - began < 10  # the probe would take 30 s


def test_a_device_that_is_not_there_is_named_and_a_model_that_cannot_be_timed_is_no_fatal_mistake() -> None:
    if not torch.backends.mps.is_available():
        with pytest.raises(ValueError, match="is not on this machine; it has cpu"):
            ask([TINY], 64, device="mps", precision="auto", n_threads=1)
    vast = Trial(Shape(1, 2**20, 1, 16), TrainConfig(batch_size=2), DataConfig(), 1)
    with pytest.raises(ProbeError):
        ask([vast], 64, device="cpu", precision="auto", n_threads=1)
