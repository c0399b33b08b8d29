"""`make bench-generate`: generating text with the key-value cache against reading the whole context for every character.

Both paths give the same text (tests/test_transformer.py); CPU seconds, one thread, alternating, medians. Also the share of a trial's time
that its 32 final stories take.

    OMP_NUM_THREADS=1 python -m benchmarks.generation [--repeats 3]
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe, write_csv
from models.config import ModelConfig
from models.generate import generate
from models.transformer import Transformer

# n_layer, n_embd, n_head, block_size, prompts, characters
CASES = {"2x64, 8 prompts": (2, 64, 4, 256, 8, 1000), "4x128, 8 prompts": (4, 128, 4, 256, 8, 1000)}


def measure(case: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """Median CPU seconds of both paths."""
    n_layer, n_embd, n_head, block_size, n_prompts, n_tokens = case
    model = Transformer(ModelConfig(n_layer=n_layer, n_embd=n_embd, n_head=n_head, block_size=block_size, vocab_size=64))
    caches: dict[bool, Any] = {True: model.new_cache, False: lambda B: None}
    prompts = torch.randint(64, (1, n_prompts, 24))
    warmth = torch.full((n_prompts,), 0.8)
    times: dict[bool, list[float]] = {True: [], False: []}
    generate(model, prompts, 20, warmth)
    for _ in range(repeats):
        for cached in (True, False):
            model.new_cache = caches[cached]  # type: ignore[method-assign]
            began = time.process_time()
            generate(model, prompts, n_tokens, warmth)
            times[cached].append(time.process_time() - began)
    ratio = statistics.median(slow / fast for fast, slow in zip(times[True], times[False], strict=True))
    return {"cached_s": statistics.median(times[True]), "uncached_s": statistics.median(times[False]), "ratio": ratio, "bar": 10}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(describe())
    rows = []
    for name, case in CASES.items():
        rows.append({"case": name, **measure(case, args.repeats), "repeats": args.repeats})
        print(
            ", ".join(f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in rows[-1].items()), flush=True
        )
    write_csv(Path(__file__).parent / "results" / "generation.csv", rows)


if __name__ == "__main__":
    main()
