"""`make bench-gpu`: all evidence that needs a GPU, in five parts and within ten minutes on one H100 or H200.

    python -m benchmarks.gpu [--parts smoke rates memory original heads]        BENCH_REHEARSE=1 runs every part, tiny, on a CPU

Each figure goes into gpu.csv of the folder $OUT (default: benchmarks/results) as soon as it is there; each part is a process with a limit
of its own, so that a run that is cut short keeps what it measured. `original` trains on the built-in stories, or on the file $TEXT.
A machine without a package index takes the wheels that it lacks from a folder (Ray without its Java jars is 45 MB):

    for w in .whl/*.whl; do python3 -m zipfile -e $w /tmp/site; done; chmod -R u+x /tmp/site/ray/core
    PYTHONPATH=/tmp/site:. python3 -m benchmarks.gpu
"""

import argparse
import csv
import multiprocessing
import os
import queue
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import describe
from benchmarks.peer import PeerLoop, matmul_peak
from benchmarks.study import run_ours
from models.config import Shape
from study import command
from study.data import corpus as data
from study.plan.memory import gpu_fraction, memory_bytes
from study.spec import DataConfig, TrainConfig, Trial
from study.train import mps
from study.train.bundle import Bundle
from study.train.device import Execution, peak_memory_bytes, synchronize

REHEARSED = os.environ.get("BENCH_REHEARSE", "") not in ("", "0")
DEVICE: Any = "cpu" if REHEARSED else "cuda"
TABLE = Path(os.environ.get("OUT") or Path(__file__).parent / "results") / ("gpu_rehearsed.csv" if REHEARSED else "gpu.csv")
VOCABULARY = 228
BLOCK, BATCH = (32, 4) if REHEARSED else (256, 64)
HEADS = (2, 4) if REHEARSED else (4, 8, 16, 32)
SHAPES = [(1, 32, 2)] if REHEARSED else [(6, 256, 8), (2, 64, 4), (2, 256, 8), (6, 384, 8)]
"""n_layer, n_embd, n_head; those with a bar first."""
MEASURED = [(SHAPES[0], 1)] if REHEARSED else [((6, 256, 8), 1), ((6, 256, 8), 8), ((2, 64, 4), 32), ((6, 384, 8), 4), ((12, 256, 8), 2)]
"""Bundles whose memory is read."""
SIZES = (1, 2) if REHEARSED else (1, 2, 4, 8, 16, 32)
PROCESSES = SIZES if REHEARSED else (1, 2, 4, 8, 16)
"""Of 32 the contexts alone would fill a quarter of the card."""
STEPS = (10, 20) if REHEARSED else (250, 1000)
"""Of `original`, whose own number is 5,000: a short run first, so that there is one."""
STRETCH_S, REPEATS, MOST = (0.02, 2, 3) if REHEARSED else (0.5, 3, 100)
SEEDS = (1, 2, 3)
PATIENCE_S = 60.0


def keep(part: str, case: str, **figures: Any) -> None:
    """Append figures to the table and print them."""
    new = not TABLE.exists()
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    with TABLE.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(["part", "case", "figure", "value"])
        for name, value in figures.items():
            writer.writerow([part, case, name, shown(value)])
    print(f"{part}, {case}: " + "  ".join(f"{name}={shown(value)}" for name, value in figures.items()), flush=True)


def shown(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


# ---- what is timed ----


def trial(shape: tuple[int, int, int], seed: int = 1) -> Trial:
    return Trial(Shape(*shape, BLOCK), TrainConfig(batch_size=BATCH, n_steps=10**6, lr=1e-3, eval_windows=BATCH), DataConfig(), seed)


def text() -> np.ndarray:
    """Two million random tokens, (n,) uint8."""
    return np.random.default_rng(0).integers(VOCABULARY, size=2_000_000).astype(np.uint8)


def warm_bundle(shape: tuple[int, int, int], seeds: range) -> Bundle:
    """A bundle that has taken enough steps for its kernels to be chosen and its step to be captured."""
    trials, tokens = [trial(shape, seed) for seed in seeds], text()
    bundle = Bundle(trials, tokens, tokens, VOCABULARY, None, Execution(device=DEVICE, n_threads=1))
    bundle.advance()
    bundle.time_steps(6)
    return bundle


def stretch(ms: float) -> int:
    """Steps of that many milliseconds to be timed at a time."""
    return max(2, min(MOST, round(STRETCH_S * 1e3 / ms)))


def steady_ms(run: Callable[[int], float]) -> float:
    """Median milliseconds per step of `run(steps)` over repeated stretches."""
    steps = stretch(run(3))
    return statistics.median(run(steps) for _ in range(REPEATS))


def peer_stretch(shape: tuple[int, int, int]) -> Callable[[int], float]:
    """The peer loop, compiled and under bf16 autocast on a GPU, after its first steps."""
    torch.compiler.reset()  # else it takes another shape's sizes for variables
    loop = PeerLoop(trial(shape).model(VOCABULARY), text(), BATCH, 1e-3, 10**6, device=DEVICE)

    def run(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            loop.step()
        synchronize(torch.device(DEVICE))
        return (time.perf_counter() - began) / steps * 1e3

    run(3)
    return run


def name_of(shape: tuple[int, int, int]) -> str:
    return "{}x{}h{}".format(*shape)


# ---- the parts ----


def smoke() -> None:
    """A study through Ray Tune; a GPU's losses against a CPU's, beside the noise between seeds; whether a step is captured."""
    with suppress(OSError, subprocess.SubprocessError):
        told = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        keep("machine", "card", card=subprocess.run(told, capture_output=True, text=True, check=True).stdout.strip())
    keep("machine", "software", torch=torch.__version__, machine=describe(), date=time.strftime("%Y-%m-%d"), command="make bench-gpu")
    keep("smoke", "through Ray Tune", **vars(run_ours(["smoke", "--device", DEVICE, "--no-report"], sys.maxsize)))
    tokens = np.tile(np.arange(61, dtype=np.uint8) * 3 % 61, 4000)
    noisy = np.where(np.random.default_rng(0).random(len(tokens)) < 0.2, np.random.default_rng(1).integers(61, size=len(tokens)), tokens)
    recipe = TrainConfig(batch_size=16, n_steps=20 if REHEARSED else 100, lr=3e-3, warmup_steps=5, eval_windows=64)
    found: dict[str, np.ndarray] = {}
    for device, precision in (("cpu", "float32"), (DEVICE, "float32"), (DEVICE, "bf16")):
        trials = [Trial(Shape(2, 64, 4, 64), recipe, DataConfig(), seed) for seed in SEEDS]
        bundle = Bundle(trials, noisy.astype(np.uint8), noisy.astype(np.uint8), 61, None, Execution(device, precision))  # type: ignore[arg-type]
        while not bundle.done:
            bundle.advance()
        found[f"{device} {precision}"] = np.array([replica.curve[-1]["val_loss"] for replica in bundle.replicas])
    cpu = found["cpu float32"]
    for name, losses in found.items():
        differs = float(np.abs(losses - cpu).max())
        keep("smoke", f"losses on {name}", mean=float(losses.mean()), differs=differs, seeds_sd=float(cpu.std(ddof=1)))
    steps = bundle.device_steps
    keep("smoke", "capture", captured=bool(steps and steps.graph), why="; ".join(bundle.notes))


def rates() -> None:
    """Tokens/s of K replicas bundled, as processes with and without MPS, and by the peer one after another; share of the bf16 peak."""
    peak = matmul_peak(torch.float32 if REHEARSED else torch.bfloat16, device=DEVICE)
    keep("rates", "matmul", peak_tflops=peak / 1e12)
    bundled: dict[tuple[str, int], float] = {}
    peers: dict[str, float] = {}
    for shape in SHAPES:
        name = name_of(shape)
        peers[name] = BATCH * BLOCK * 1e3 / steady_ms(peer_stretch(shape))
        keep("rates", f"{name} peer", tokens_per_s=peers[name])
        for size in SIZES:
            try:
                bundle = warm_bundle(shape, range(size))
                ms = steady_ms(bundle.time_steps)
            except torch.OutOfMemoryError:
                keep("rates", f"{name} bundle of {size}", tokens_per_s="does not fit")
                break
            rate = bundled[name, size] = size * BATCH * BLOCK * 1e3 / ms
            share = rate * trial(shape).model(VOCABULARY).flops_per_token / peak
            graph = bool(bundle.device_steps and bundle.device_steps.graph)
            more = {"ratio_to_peer": rate / peers[name], "share_of_peak": share, "captured": graph}
            keep("rates", f"{name} bundle of {size}", tokens_per_s=rate, ms_per_step=ms, **more)
            del bundle
    torch.cuda.empty_cache()
    for wanted in ("on", "off"):
        with tempfile.TemporaryDirectory(dir="/tmp") as folder, mps.started(wanted, True, Path(folder)) as (pipe, problem):
            if mps.join(pipe, 0.999) != (wanted == "on"):  # a share that limits nobody's threads
                keep("rates", "processes, MPS on", problem=problem or "no daemon answers")
                continue
            for name, size, rate in processes_rates():
                more = {"ratio_to_peer": rate / peers[name], "bundle_over_processes": bundled.get((name, size), 0.0) / rate}
                keep("rates", f"{name} {size} processes, MPS {wanted}", tokens_per_s=rate, **more)


def processes_rates() -> Iterator[tuple[str, int, float]]:
    """(shape, number, aggregate tokens/s) of processes with a trial each; all are started once, and so many of them train at a time."""
    context = multiprocessing.get_context("spawn")
    most = max(PROCESSES)
    ready, results = context.Barrier(most, timeout=PATIENCE_S), context.Queue()
    workers = [context.Process(target=_process, args=(k, ready, results), daemon=True) for k in range(most)]
    for worker in workers:
        worker.start()
    try:
        for shape in SHAPES:
            for size in PROCESSES:
                slowest = [0.0] * REPEATS
                for _ in range(size * REPEATS):
                    repeat, seconds, steps = results.get(timeout=PATIENCE_S)
                    slowest[repeat] = max(slowest[repeat], seconds / steps)
                yield name_of(shape), size, size * BATCH * BLOCK / statistics.median(slowest)
    except queue.Empty:
        keep("rates", "processes", problem=f"nothing was heard of one for {PATIENCE_S:.0f} s")
    finally:
        for worker in workers:
            worker.terminate()


def _process(k: int, ready: Barrier, results: Any) -> None:
    """One trial of each shape in turn; process k trains where more than k are wanted, all from one moment on."""
    for shape in SHAPES:
        bundle = warm_bundle(shape, range(k, k + 1))
        for size in PROCESSES:
            for repeat in range(REPEATS):
                ready.wait()
                steps = max(2, MOST // (2 * size))
                if k < size:
                    ms = bundle.time_steps(steps)
                    results.put((repeat, ms * steps / 1e3, steps))
                ready.wait()
        del bundle


def memory() -> None:
    """Memory that bundles take on the card, its context included, against the model, and the share that the plan gives them."""
    for shape, size in MEASURED:
        bundle = warm_bundle(shape, range(size))
        free, whole = (0, 8 << 30) if REHEARSED else torch.cuda.mem_get_info()
        seen = peak_memory_bytes(bundle.device) if REHEARSED else whole - free  # torch gives nothing back, so this is the peak
        expected = memory_bytes(trial(shape), VOCABULARY, DEVICE, bundle.model.precision, size)
        more = {"expected_over_seen": expected / seen, "fraction": gpu_fraction(expected, whole)}
        more["beside_tensors_mib"] = (seen - torch.cuda.memory_reserved()) / 2**20  # the context; PROCESS_BYTES is what is assumed
        keep("memory", f"{name_of(shape)} bundle of {size}", seen_mib=seen / 2**20, expected_mib=expected / 2**20, **more)
        del bundle
        torch.cuda.empty_cache()


def original() -> None:
    """The published study's eleven trials through Ray Tune, as many steps as fit, and what its 5,000 would take."""
    given = os.environ.get("TEXT", "")
    source = ["--data.path", given] if given else ["--data.name", "stories"]
    small = ["smoke", "--seeds", "1", "--train.eval-interval", "10"] if REHEARSED else ["original", *source]
    walls, busy = list[float](), list[float]()
    for n_steps in STEPS:
        argv = [*small, "--device", DEVICE, "--no-report", "--train.n-steps", str(n_steps)]
        data.prepare(command.parse(argv).study.data)
        wall = run_ours(argv, sys.maxsize)
        walls.append(wall.wall_s)
        busy.append(wall.training_s + wall.between_s)
        keep("original", f"{n_steps} steps", **vars(wall))
    per_step = (busy[1] - busy[0]) / (STEPS[1] - STEPS[0])
    keep("original", "5000 steps, extrapolated from these two", wall_s=walls[1] + per_step * (5000 - STEPS[1]), bar_s=180)


def heads() -> None:
    """Milliseconds per step of 6x256 alone on the card, by number of heads, and the attention kernels that ran."""
    for n_head in HEADS:
        shape = (*SHAPES[0][:2], n_head)
        bundle = warm_bundle(shape, range(1))
        ms = steady_ms(bundle.time_steps)
        with profile(activities=[ProfilerActivity.CPU if REHEARSED else ProfilerActivity.CUDA]) as seen:
            bundle.time_steps(2)
        fused = ("attention", "flash", "fmha", "sdpa")
        kernels = sorted({event.key[:80] for event in seen.key_averages() if any(word in event.key.lower() for word in fused)})
        named = "; ".join(kernels[:6]) or "no fused one"
        keep("heads", f"{n_head} heads", head_dim=shape[1] // n_head, ms_per_step=ms, attention=named)


def compile_peers() -> None:
    """Fill the compiler's cache on disk while nothing is timed."""
    for shape in SHAPES:
        peer_stretch(shape)


PARTS: dict[str, tuple[Callable[[], None], int]] = {
    "smoke": (smoke, 75), "rates": (rates, 255), "memory": (memory, 40), "original": (original, 150), "heads": (heads, 40),
}  # fmt: skip
"""In their order, each with its seconds: 560 together, which leaves 40 of ten minutes for unpacking."""


@contextmanager
def started(part: str) -> Iterator[subprocess.Popen[bytes]]:
    """A part in a process group of its own, which ends with the body."""
    with subprocess.Popen([sys.executable, "-m", "benchmarks.gpu", "--here", part], start_new_session=True) as child:
        try:
            yield child
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


def main() -> int:
    """Run the parts, each within its limit; returns 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--here", choices=[*PARTS, "compile"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        (compile_peers if given.here == "compile" else PARTS[given.here][0])()
        return 0
    if not REHEARSED and not torch.cuda.is_available():
        parser.error("there is no GPU on this machine; BENCH_REHEARSE=1 runs every part, tiny, on the CPU")
    if given.parts == list(PARTS):
        TABLE.unlink(missing_ok=True)
    failed = 0
    for part in given.parts:
        began, code = time.monotonic(), "cut at its limit"
        with started("compile") if part == "smoke" else nullcontext(), started(part) as child, suppress(subprocess.TimeoutExpired):
            code = str(child.wait(PARTS[part][1] * (4 if REHEARSED else 1)))
        keep(part, "end", seconds=time.monotonic() - began, exit_status=code)
        failed += code != "0"
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
