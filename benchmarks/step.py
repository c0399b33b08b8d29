"""`make bench-step`: one training step against the peer loop, alternating in one run, one thread each.

Prints and writes benchmarks/results/step.csv: CPU milliseconds per step (median of repeats), ratios to the peer with torch's fused
attention and with written-out attention, share of the measured matmul peak, and a trial with evaluation against the peer with its habit.

    OMP_NUM_THREADS=1 python -m benchmarks.step [--repeats 5] [--shapes 2x64 6x256] [--compiled]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe, write_csv
from benchmarks.peer import EVAL_BATCHES, EVAL_EVERY, PeerLoop, matmul_peak
from models.config import ModelConfig, Shape
from study.spec import DataConfig, TrainConfig, Trial
from study.train.bundle import Bundle
from study.train.device import Execution
from study.train.evaluation import window_losses

# n_layer, n_embd, n_head, block_size, batch_size, steps timed at a time
SHAPES = {
    "2x64": (2, 64, 4, 64, 8, 40),
    "4x128": (4, 128, 4, 128, 8, 6),
    "6x256": (6, 256, 8, 256, 4, 2),
    "12x256": (12, 256, 8, 256, 4, 1),
    "6x384": (6, 384, 8, 256, 4, 1),
}
HEADS = {f"6x256h{n_head}": (6, 256, n_head, 256, 4, 2) for n_head in (4, 8, 16, 32)}
"""What heads cost at equal parameters; measured on demand."""
VOCABULARY = 75
EVAL_WINDOWS = 256


def contestants(shape: tuple[int, ...], compiled: bool = False) -> dict[str, Callable[[], Any]]:
    """One callable per contestant that takes one optimizer step."""
    n_layer, n_embd, n_head, block_size, batch_size, _ = shape
    tokens = np.random.default_rng(0).integers(VOCABULARY, size=200_000).astype(np.uint8)
    config = ModelConfig(n_layer=n_layer, n_embd=n_embd, n_head=n_head, block_size=block_size, vocab_size=VOCABULARY)
    recipe = TrainConfig(batch_size=batch_size, n_steps=100_000, lr=1e-3, eval_windows=EVAL_WINDOWS)
    spec = Trial(Shape(n_layer, n_embd, n_head, block_size), recipe, DataConfig(), 1)
    steps: dict[str, Callable[[], Any]] = {}
    for name, fused in (("peer", True), ("peer_written_out", False)):
        steps[name] = PeerLoop(config, tokens, batch_size, 1e-3, 100_000, fused).step
    for precision in ("float32", "bf16"):
        bundle = Bundle([spec], tokens, tokens, VOCABULARY, None, Execution(device="cpu", precision=precision, n_threads=1))

        def step(bundle: Bundle = bundle) -> None:
            bundle._train_step()
            bundle.step += 1

        steps[precision] = step
    if compiled:
        steps["compiled"], seconds = compiled_step(spec, tokens)
        print(f"torch.compile took {seconds:.1f} s", flush=True)
    return steps


def compiled_step(spec: Trial, tokens: np.ndarray) -> tuple[Callable[[], Any], float]:
    """Our step in bf16 with forward and backward pass compiled, and the wall seconds until its first step is done."""
    bundle = Bundle([spec], tokens, tokens, VOCABULARY, None, Execution(device="cpu", precision="bf16", n_threads=1))
    began = time.perf_counter()
    bundle.model.loss = torch.compile(bundle.model.loss)  # type: ignore[method-assign]
    bundle._train_step()

    def step() -> None:
        bundle._train_step()
        bundle.step += 1

    return step, time.perf_counter() - began


def measure(calls: dict[str, Callable[[], Any]], count: int, repeats: int) -> dict[str, list[float]]:
    """CPU milliseconds per call, contestants in turn, `repeats` times."""
    for call in calls.values():
        call()
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            began = time.process_time()
            for _ in range(count):
                call()
            times[name].append((time.process_time() - began) / count * 1e3)
    return times


def evaluation_ms(shape: tuple[int, ...]) -> tuple[float, float]:
    """CPU milliseconds of one evaluation: the peer's 2 x 200 batches (a tenth is timed) and our fixed windows."""
    n_layer, n_embd, n_head, block_size, batch_size, _ = shape
    tokens = np.random.default_rng(0).integers(VOCABULARY, size=200_000).astype(np.uint8)
    config = ModelConfig(n_layer=n_layer, n_embd=n_embd, n_head=n_head, block_size=block_size, vocab_size=VOCABULARY)
    peer = PeerLoop(config, tokens, batch_size, 1e-3, 100_000)
    recipe = TrainConfig(batch_size=batch_size, eval_windows=EVAL_WINDOWS)
    ours = Bundle(
        [Trial(Shape(n_layer, n_embd, n_head, block_size), recipe, DataConfig(), 1)],
        tokens,
        tokens,
        VOCABULARY,
        None,
        Execution(device="cpu", n_threads=1),
    )
    part = EVAL_BATCHES // 10
    times = measure(
        {"peer": lambda: peer.evaluate(part), "ours": lambda: window_losses(ours.model, *ours.val_windows, recipe.batch_size)}, 1, 3
    )
    return statistics.median(times["peer"]) * 10, statistics.median(times["ours"])


def row_for(name: str, repeats: int, peaks: dict[str, float], compiled: bool = False) -> dict[str, Any]:
    """All figures of one shape."""
    shape = (SHAPES | HEADS)[name]
    times = measure(contestants(shape, compiled), shape[-1], repeats)
    middle = {who: statistics.median(values) for who, values in times.items()}
    best = min(("float32", "bf16"), key=lambda who: middle[who])
    config = ModelConfig(n_layer=shape[0], n_embd=shape[1], n_head=shape[2], block_size=shape[3], vocab_size=VOCABULARY)
    flops = config.flops_per_token * shape[3] * shape[4]
    peer_eval, our_eval = evaluation_ms(shape)
    whole = (EVAL_EVERY * middle["peer"] + peer_eval) / (EVAL_EVERY * middle[best] + our_eval)

    def ratio(base: str, who: str) -> float:
        return statistics.median(b / w for b, w in zip(times[base], times[who], strict=True))

    more = {"ratio_of_compiled": ratio("bf16", "compiled")} if compiled else {}
    return {
        "shape": name, "peer_ms": middle["peer"], "peer_written_out_ms": middle["peer_written_out"],
        "float32_ms": middle["float32"], "bf16_ms": middle["bf16"], "best": best,
        "ratio_to_peer": ratio("peer", best), "ratio_to_written_out": ratio("peer_written_out", best),
        "ratio_float32_to_peer": ratio("peer", "float32"), "share_of_peak": flops / (middle[best] / 1e3) / peaks[best],
        "share_of_peak_peer": flops / (middle["peer"] / 1e3) / peaks["float32"], "trial_with_evaluation_ratio": whole,
        "evaluation_share": our_eval / (EVAL_EVERY * middle[best] + our_eval), "repeats": repeats, **more,
    }  # fmt: skip


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES | HEADS))
    parser.add_argument("--compiled", action="store_true", help="torch.compile as a further contestant, beside our step in bf16")
    args = parser.parse_args()
    torch.set_num_threads(1)
    peaks = {"float32": matmul_peak(torch.float32), "bf16": matmul_peak(torch.bfloat16)}
    print(describe())
    print("measured matmul peak, one thread: " + ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in peaks.items()))
    rows = []
    for name in args.shapes:
        rows.append(row_for(name, args.repeats, peaks, args.compiled))
        print(
            "  ".join(f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in rows[-1].items()), flush=True
        )
    write_csv(Path(__file__).parent / "results" / ("step_compiled.csv" if args.compiled else "step.csv"), rows)


if __name__ == "__main__":
    main()
