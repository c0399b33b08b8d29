"""`make bench-bundle` (GPU): K seeds of each shape of `original` as one bundle, one after another, and by the peer loop.

    python -m benchmarks.bundle [--shapes 6x256h8] [--sizes 1 8] [--rehearse]

Aggregate tokens/s, medians of five stretches; share of the bf16 matmul peak measured in the same run; the peer compiled, under bf16
autocast, one trial after another. K = 1 with 4, 8, 16 and 32 heads is what heads cost at equal parameters.
Figures go to results/bundle.csv.
"""

import statistics
import time
from typing import Any

import torch

from benchmarks.gpu_shapes import VOCABULARY, Setting, keep, model_of, random_text, say, setting, warm_bundle
from benchmarks.machine import describe
from benchmarks.peer import PeerLoop, matmul_peak
from study.train.device import synchronize

REPEATS = 5


def peer_ms(shape: tuple[int, ...], device: str, steps: int) -> float:
    """Milliseconds per step of the peer loop, compilation left out, its data loading included."""
    loop = PeerLoop(model_of(shape), random_text(), shape[4], 1e-3, 10**6, device=device)
    where = torch.device(device)
    for _ in range(5):
        loop.step()
    times = []
    for _ in range(REPEATS):
        synchronize(where)
        began = time.perf_counter()
        for _ in range(steps):
            loop.step()
        synchronize(where)
        times.append((time.perf_counter() - began) / steps * 1e3)
    return statistics.median(times)


def bundle_rows(name: str, shape: tuple[int, ...], how: Setting, peak: float) -> list[dict[str, Any]]:
    """One row for each number of seeds that fits into memory."""
    tokens, flops = shape[3] * shape[4], model_of(shape).flops_per_token
    peer = peer_ms(shape, how.device, how.steps)
    rows: list[dict[str, Any]] = []
    for size in how.sizes:
        try:
            bundle = warm_bundle(shape, range(size), how.device)
        except torch.cuda.OutOfMemoryError:
            print(f"{name}: {size} seeds do not fit into memory")
            break
        ms = statistics.median(bundle.time_steps(how.steps) for _ in range(REPEATS))
        rate = size * tokens / ms * 1e3
        serial = rows[0]["tokens_per_s"] if rows else rate
        rows.append({
            "shape": name, "seeds": size, "ms_per_step": ms, "tokens_per_s": rate, "ratio_to_serial": rate / serial,
            "peer_ms_per_step": peer, "ratio_to_peer": rate / (tokens / peer * 1e3), "share_of_peak": rate * flops / peak,
            "captured": bool(bundle.device_steps and bundle.device_steps.graph), "notes": "; ".join(bundle.notes),
        })  # fmt: skip
        say(rows[-1])
        del bundle
    return rows


def main() -> None:
    """Measure, print, keep."""
    how = setting(__doc__)
    print(describe())
    dtype = torch.float32 if how.rehearsed else torch.bfloat16
    peak = matmul_peak(dtype, device=how.device)
    print(f"measured {str(dtype).removeprefix('torch.')} matmul peak: {peak / 1e12:.3g} TFLOP/s; {VOCABULARY} characters")
    rows = [row for name, shape in how.shapes.items() for row in bundle_rows(name, shape, how, peak)]
    keep("bundle", rows, how)


if __name__ == "__main__":
    main()
