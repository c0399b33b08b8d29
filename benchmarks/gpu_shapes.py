"""What the GPU benchmarks share: the shapes of the published study, trials on random text, and a rehearsal small enough for a CPU."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import write_csv
from models.config import ModelConfig, Shape
from study.spec import DataConfig, TrainConfig, Trial
from study.train.bundle import Bundle
from study.train.device import Execution

VOCABULARY = 228
SWEPT = ((6, 256, 8), (2, 256, 8), (4, 256, 8), (8, 256, 8), (12, 256, 8), (6, 128, 8), (6, 192, 8), (6, 384, 8))
HEADS = ((6, 256, 4), (6, 256, 16), (6, 256, 32))
ORIGINAL: dict[str, tuple[int, ...]] = {
    f"{n_layer}x{n_embd}h{n_head}": (n_layer, n_embd, n_head, 256, 64) for n_layer, n_embd, n_head in SWEPT + HEADS
}
"""n_layer, n_embd, n_head, block_size, batch_size of the preset `original`."""
REHEARSAL: dict[str, tuple[int, ...]] = {"2x32h2": (2, 32, 2, 32, 4)}


@dataclass(frozen=True)
class Setting:
    """On what, and how much of it, a benchmark runs."""

    device: str
    shapes: dict[str, tuple[int, ...]]
    sizes: tuple[int, ...]
    """numbers of trials side by side, 1 first"""
    steps: int
    """timed at a time"""

    @property
    def rehearsed(self) -> bool:
        """Whether the figures mean nothing: the code ran, on a CPU."""
        return self.device == "cpu"


def setting(doc: str | None) -> Setting:
    """The command line of a GPU benchmark.

    Raises:
        SystemExit: there is no GPU and no rehearsal was asked for.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="a tiny shape on the CPU: shows that the code runs, measures nothing")
    parser.add_argument("--shapes", nargs="+", choices=list(ORIGINAL), default=list(ORIGINAL))
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    if args.rehearse:
        return Setting("cpu", REHEARSAL, (1, 2), 3)
    if not torch.cuda.is_available():
        parser.error("there is no GPU on this machine; add --rehearse to run a tiny shape on the CPU")
    sizes = (1, *(size for size in sorted(args.sizes) if size > 1))
    return Setting("cuda", {name: ORIGINAL[name] for name in args.shapes}, sizes, args.steps)


def say(row: dict[str, Any]) -> None:
    """Print a row of figures."""
    print("  ".join(f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items()), flush=True)


def keep(name: str, rows: list[dict[str, Any]], how: Setting) -> None:
    """Write a benchmark's table, unless it was rehearsed."""
    if how.rehearsed:
        print("rehearsed on a CPU: the code runs, the figures mean nothing and are not kept")
        return
    write_csv(Path(__file__).parent / "results" / f"{name}.csv", rows)


def random_text() -> np.ndarray:
    """Two million random tokens, (n,) uint8."""
    return np.random.default_rng(0).integers(VOCABULARY, size=2_000_000).astype(np.uint8)


def model_of(shape: tuple[int, ...]) -> ModelConfig:
    """The network of a shape."""
    n_layer, n_embd, n_head, block_size, _ = shape
    return ModelConfig(n_layer=n_layer, n_embd=n_embd, n_head=n_head, block_size=block_size, vocab_size=VOCABULARY)


def warm_bundle(shape: tuple[int, ...], seeds: range, device: str, memory_fraction: float = 0.0) -> Bundle:
    """A bundle of one trial per seed that has taken enough steps for its kernels to be chosen and its step to be captured."""
    n_layer, n_embd, n_head, block_size, batch_size = shape
    recipe = TrainConfig(batch_size=batch_size, n_steps=10**6, lr=1e-3, eval_windows=8)
    trials = [Trial(Shape(n_layer, n_embd, n_head, block_size), recipe, DataConfig(), seed) for seed in seeds]
    tokens = random_text()
    how = Execution(device=device, n_threads=1 if device == "cpu" else 0, memory_fraction=memory_fraction)  # type: ignore[arg-type]
    bundle = Bundle(trials, tokens, tokens, VOCABULARY, None, how)
    bundle.advance()
    bundle.time_steps(6)
    return bundle
