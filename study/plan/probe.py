"""Times a few optimizer steps of some trials, in a process of its own: the driver never imports torch.

`python -m study.plan.probe` reads a request as JSON on stdin and writes device, arithmetic and milliseconds per step as JSON on stdout.

    found = ask([trial], vocab_size=64, device="auto", precision="auto", n_threads=1)   # found.ms_per_step == [9.1]
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from models import module_file
from models.config import Shape
from study.plan.packing import step_flops
from study.results.provenance import environment
from study.spec import DataConfig, TrainConfig, Trial

PROBE_FLOPS = 8e9
"""Most FLOPs of a probed step, where its batch can be cut: what is timed in part is scaled by its FLOPs."""
LONGEST_PROBED_BLOCK = 1024
UNUSABLE = 2
"""Exit status for a device that is not there."""


@dataclass(frozen=True)
class Found:
    """What a probe saw on this machine."""

    place: dict[str, Any]
    """the fields of `study.plan.packing.Machine` but for cpus"""
    ms_per_step: list[float]


class ProbeError(RuntimeError):
    """The steps could not be timed; the study can run all the same, without a quote."""


def ask(
    trials: Sequence[Trial], vocab_size: int, device: str, precision: str, n_threads: int, meanwhile: Callable[[], None] | None = None
) -> Found:
    """Time the trials' steps in a child process.

    Args:
        meanwhile: what this process does while the child is busy.

    Raises:
        ValueError: the wanted device is not on this machine.
        ProbeError: the process failed or took too long, for example because a model does not fit into memory.
    """
    request = {
        "trials": [{"shape": dataclasses.asdict(t.shape), "train": dataclasses.asdict(t.train)} for t in trials],
        "vocab_size": vocab_size,
        "modules": module_file.texts,
        "execution": {"device": device, "precision": precision, "n_threads": n_threads},
    }
    command, patience_s = [sys.executable, "-m", "study.plan.probe"], 60 + 5 * len(trials)
    around = environment() | {"OMP_NUM_THREADS": str(n_threads)}
    with tempfile.TemporaryFile("w+") as asked:
        json.dump(request, asked)
        asked.seek(0)
        with subprocess.Popen(command, stdin=asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=around) as child:
            try:
                if meanwhile:
                    meanwhile()
                answer, complaint = child.communicate(timeout=patience_s)
            except subprocess.TimeoutExpired:
                raise ProbeError(f"a few steps took more than {patience_s} s") from None
            finally:
                child.kill()
    last = (complaint.strip() or f"exit status {child.returncode}").splitlines()[-1]
    if child.returncode == UNUSABLE:
        raise ValueError(last)
    if child.returncode:
        raise ProbeError(last)
    return Found(**json.loads(answer.splitlines()[-1]))


def time_steps(trials: Sequence[Trial], vocab_size: int, execution: Any, seconds_each: float = 0.3) -> list[float]:
    """Milliseconds per step of each trial, the median of a few steps on random text."""
    import numpy as np

    from study.train.bundle import Bundle

    found = []
    for trial in trials:
        stand_in = smaller(trial, vocab_size)
        block = stand_in.shape.block_size
        tokens = np.random.default_rng(0).integers(vocab_size, size=64 * block + 1).astype(np.uint16)
        bundle = Bundle([stand_in], tokens, tokens, vocab_size, None, execution)
        bundle.advance()
        bundle.time_steps(2)
        times: list[float] = []
        began, enough = time.perf_counter(), seconds_each / 3 if bundle.pace.one_thread else seconds_each  # processor time is steadier
        while len(times) < 3 or (time.perf_counter() - began < enough and len(times) < 50):
            times.append(bundle.time_steps(1))
        found.append(statistics.median(times) * step_flops(trial, vocab_size) / step_flops(stand_in, vocab_size))
    return found


def smaller(trial: Trial, vocab_size: int) -> Trial:
    """The trial with a batch, and if need be a context, cut until a step is within `PROBE_FLOPS`: any model is quoted within seconds."""
    shape = dataclasses.replace(trial.shape, block_size=min(trial.shape.block_size, LONGEST_PROBED_BLOCK))
    recipe = dataclasses.replace(trial.train, batch_size=1, n_steps=10**9, eval_windows=1, unique_tokens=0)
    one = dataclasses.replace(trial, shape=shape, train=recipe)
    batch = max(1, min(trial.train.batch_size, int(PROBE_FLOPS / step_flops(one, vocab_size))))
    return dataclasses.replace(one, train=dataclasses.replace(recipe, batch_size=batch))


def main() -> None:
    """Answer one request."""
    import torch

    from study.train.device import BF16_FROM_WIDTH, Execution, choose_device, choose_precision, device_name

    request = json.load(sys.stdin)
    module_file.texts.update(request["modules"])
    execution = Execution(**request["execution"])
    try:
        device = choose_device(execution.device)
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(UNUSABLE)
    trials = [Trial(Shape(**t["shape"]), TrainConfig(**t["train"]), DataConfig(), 1) for t in request["trials"]]
    precision, threads = choose_precision(execution.precision, device, BF16_FROM_WIDTH), execution.n_threads
    name = f"{device_name(device)}, {precision}" + (f", {threads} thread{'s' if threads > 1 else ''}" if device.type == "cpu" else "")
    place = {"name": name, "kind": device.type, "precision": precision, "gpus": 0, "gpu_memory_bytes": 0}
    if device.type == "cuda":
        place |= {"gpus": torch.cuda.device_count(), "gpu_memory_bytes": torch.cuda.get_device_properties(device).total_memory}
    found = Found(place, time_steps(trials, request["vocab_size"], execution))
    print(json.dumps(dataclasses.asdict(found)))


if __name__ == "__main__":
    main()
