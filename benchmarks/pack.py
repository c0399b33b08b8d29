"""`make bench-pack` (GPU): the same trials as one bundle, as processes that share a GPU, and one after another.

    python -m benchmarks.pack [--shapes 6x256h8] [--sizes 2 8] [--rehearse]

Each process trains one trial, as a fractional-GPU allocation does; all start their stretch together and count what they finish until the
slowest is done. Aggregate tokens/s in one table. Figures go to results/pack.csv.
"""

import multiprocessing
import queue
import statistics
import time
from multiprocessing.synchronize import Barrier
from typing import Any

from benchmarks.gpu_shapes import Setting, keep, say, setting, warm_bundle
from benchmarks.machine import describe

REPEATS = 3
PATIENCE_S = 300.0


def _process(shape: tuple[int, ...], seed: int, device: str, share: float, steps: int, barrier: Barrier, results: Any) -> None:
    """One trial in a process of its own: warm up, then train a stretch whenever all are ready, and tell (stretch, seconds)."""
    try:
        bundle = warm_bundle(shape, range(seed, seed + 1), device, share)
        for stretch in range(REPEATS):
            barrier.wait(PATIENCE_S)
            began = time.perf_counter()
            bundle.time_steps(steps)
            results.put((stretch, time.perf_counter() - began))
    except (RuntimeError, ValueError, OSError) as error:
        results.put(f"{type(error).__name__}: {str(error)[:200]}")
        barrier.abort()


def processes_rate(shape: tuple[int, ...], size: int, how: Setting) -> float:
    """Aggregate tokens/s of so many processes.

    Raises:
        RuntimeError: one of them failed, for example for lack of memory.
    """
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(size), context.Queue()
    share = 0.95 / size if how.device == "cuda" else 0.0
    workers = [context.Process(target=_process, args=(shape, k, how.device, share, how.steps, barrier, results)) for k in range(size)]
    for worker in workers:
        worker.start()
    slowest = [0.0] * REPEATS
    try:
        for _ in range(size * REPEATS):
            found = results.get(timeout=PATIENCE_S)
            if isinstance(found, str):
                raise RuntimeError(found)
            slowest[found[0]] = max(slowest[found[0]], found[1])
    except queue.Empty:
        raise RuntimeError(f"nothing was heard of a process for {PATIENCE_S:.0f} s") from None
    finally:
        for worker in workers:
            worker.join(10)
            if worker.is_alive():
                worker.terminate()
    return size * how.steps * shape[3] * shape[4] / statistics.median(slowest)


def pack_rows(name: str, shape: tuple[int, ...], how: Setting) -> list[dict[str, Any]]:
    """One row for each number of trials: bundled, as processes, one after another."""
    tokens, rows = shape[3] * shape[4], []
    alone = warm_bundle(shape, range(1), how.device)
    serial = tokens * 1e3 / statistics.median(alone.time_steps(how.steps) for _ in range(REPEATS))
    del alone
    for size in how.sizes:
        if size == 1:
            continue
        together = warm_bundle(shape, range(size), how.device)
        bundled = size * tokens * 1e3 / statistics.median(together.time_steps(how.steps) for _ in range(REPEATS))
        del together
        try:
            apart = processes_rate(shape, size, how)
        except RuntimeError as error:
            print(f"{name}: {size} processes: {error}")
            continue
        rows.append({
            "shape": name, "trials": size, "serial_tokens_per_s": serial, "processes_tokens_per_s": apart, "bundled_tokens_per_s": bundled,
            "processes_over_serial": apart / serial, "bundled_over_serial": bundled / serial, "bundled_over_processes": bundled / apart,
        })  # fmt: skip
        say(rows[-1])
    return rows


def main() -> None:
    """Measure, print, keep."""
    how = setting(__doc__)
    print(describe())
    rows = [row for name, shape in how.shapes.items() for row in pack_rows(name, shape, how)]
    keep("pack", rows, how)


if __name__ == "__main__":
    main()
