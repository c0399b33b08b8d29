"""`make bench-parametrization`: does one learning rate suit all widths and all depths? muP and CompleteP against the standard one.

Two checks, over width at two layers and over depth at one width. The *coordinate check* (Yang et al. 2022, appendix D.1; Dey et al. 2025,
figure 7) trains models of growing size for a few steps at one learning rate and asks how much their logits, the residual stream before
the final norm and the last block's output have moved: what a parametrization follows must not matter. The *transfer check* trains each
size at a ladder of learning rates and asks where the best one lies. All learning rates and seeds of a size are trained as one bundle.

    python -m benchmarks.parametrization [--widths 32 64 128 256] [--depths 2 4 8 16 32] [--steps 400] [--seeds 2]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.machine import write_csv
from models.config import Shape
from models.transformer import Transformer
from study.data import batches
from study.data import corpus as data
from study.spec import DataConfig, Study, Trial, changed
from study.train.bundle import Bundle
from study.train.device import Execution

RATES = tuple(1e-3 * 2**k for k in range(8))
"""Ladder of the transfer check: 0.001 to 0.128, each twice the one before."""
RULES = {"n_embd": ("standard", "mup", "completep"), "n_layer": ("standard", "completep")}
"""Field -> parametrizations compared over it; muP knows no depth."""
WIDTH_OF_DEPTHS = 32
"""Width at which depths are compared."""
SIDE = 2
"""Ladder steps on either side of the best through which the parabola is drawn."""


def family(parametrization: str, base: Shape, n_steps: int, **change: int) -> Trial:
    """The trial of one size whose others differ by seed and learning rate only; heads are cut from the width, so head width grows."""
    study = Study(parametrization=parametrization, model=base)  # type: ignore[arg-type]  # checked there
    shape, train = changed(study, {**change, "n_steps": n_steps, "eval_interval": n_steps, "warmup_steps": n_steps // 10}, "size")
    return Trial(shape, train, DataConfig(), 1)


def base_shape(**size: int) -> Shape:
    return replace(Shape(n_layer=2, n_embd=64, n_head=4, block_size=64), **size)  # type: ignore[arg-type]  # whole numbers


def coordinates(corpus: data.Corpus, trial: Trial, seeds: Sequence[int], n_steps: int, lr: float) -> dict[str, float]:
    """Root mean square change of `read`'s parts over the first steps of training, on one batch of text."""
    trials = [replace(trial, seed=seed, train=replace(trial.train, lr=lr, n_steps=n_steps, warmup_steps=0)) for seed in seeds]
    bundle = Bundle(trials, corpus.train, corpus.val, corpus.vocab_size, None, Execution("cpu", "float32"))
    windows = [batches.window(corpus.val, 0, 0, 8, trial.shape.block_size)[0]] * len(seeds)
    tokens = torch.from_numpy(np.stack(windows).astype(np.int64))
    before = read(bundle, tokens)
    bundle._train_until(n_steps)
    after = read(bundle, tokens)
    return {name: float((after[name] - before[name]).square().mean().sqrt()) for name in before}


def read(bundle: Bundle, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Logits, the residual stream before the final norm, and what the last block's MLP gives before it is scaled."""
    model, given = bundle.model, list[torch.Tensor]()
    assert isinstance(model, Transformer)
    attention, mlp = model.attention, model.mlp

    def heard(branch: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
        given.append(branch(*arguments))
        return given[-1]

    model.attention, model.mlp = partial(heard, attention), partial(heard, mlp)  # type: ignore[method-assign]
    with torch.no_grad():
        logits = model(tokens)
        stream = model.embed(tokens) + torch.stack(given).sum(0) / model.config.depth_ratio
    del model.attention, model.mlp
    return {"logits": logits, "stream": stream, "block": given[-1]}


def growth(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Exponent of width or depth in a quantity: least squares on logarithms; 0 where it does not depend on it."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def losses(corpus: data.Corpus, trial: Trial, rates: Sequence[float], seeds: Sequence[int]) -> np.ndarray:
    """Validation loss at each learning rate, means over seeds; infinite where a run diverged. (rates,)"""
    trials = [replace(trial, seed=seed, train=replace(trial.train, lr=rate)) for rate in rates for seed in seeds]
    bundle = Bundle(trials, corpus.train, corpus.val, corpus.vocab_size, None, Execution("cpu", "float32"))
    while not bundle.done:
        bundle.advance()
    last = [np.inf if r.diverged_at is not None else r.curve[-1]["val_loss"] for r in bundle.replicas]
    return np.array(last).reshape(len(rates), len(seeds)).mean(axis=1)


def best_rate(rates: Sequence[float], loss: np.ndarray) -> float:
    """Where a parabola in ln lr through the best rate and its neighbors is lowest; an end of the ladder where the best is one."""
    at = int(np.argmin(loss))
    chosen = [i for i in range(max(0, at - SIDE), min(len(rates), at + SIDE + 1)) if np.isfinite(loss[i])]
    if at in (0, len(rates) - 1) or len(chosen) < 3:
        return float(rates[at])
    x = np.log(np.array(rates)[chosen])
    a, b, _ = np.polyfit(x, loss[chosen], 2)
    return float(np.exp(np.clip(-b / (2 * a), x[0], x[-1]))) if a > 0 else float(rates[at])


def measure(corpus: data.Corpus, field: str, size: int, rule: str, base: Shape, options: argparse.Namespace) -> dict[str, Any]:
    """One row: how far a size moves in eight steps, its losses over the ladder and where the best lies."""
    seeds, trial = range(1, options.seeds + 1), family(rule, base, options.steps, **{field: size})
    moved = coordinates(corpus, trial, seeds, n_steps=8, lr=8e-3)
    loss = losses(corpus, trial, RATES, seeds)
    best = best_rate(RATES, loss)
    print(f"{field} {size:4} {rule:9}  moved: " + " ".join(f"{name} {value:.3f}" for name, value in moved.items()), end="  ")
    print(f"best lr {best:.4f}  losses {' '.join(f'{value:.3f}' for value in loss)}", flush=True)
    ladder = {f"loss@{rate:g}": value for rate, value in zip(RATES, loss, strict=True)}
    return {"field": field, "size": size, "parametrization": rule, **moved, "best_lr": best, **ladder}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--widths", type=int, nargs="*", default=[32, 64, 128, 256], help="at two layers")
    parser.add_argument("--depths", type=int, nargs="*", default=[2, 4, 8, 16, 32], help=f"at width {WIDTH_OF_DEPTHS}")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of each run of the transfer check")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    corpus, rows = data.prepare(DataConfig()), []
    for field, sizes, base in (("n_embd", options.widths, base_shape()), ("n_layer", options.depths, base_shape(n_embd=WIDTH_OF_DEPTHS))):
        rows += [measure(corpus, field, size, rule, base, options) for size in sizes for rule in RULES[field]]
    table = pd.DataFrame(rows)
    for over, rule in [(field, rule) for field, rules in RULES.items() for rule in rules]:
        own = table[(table["field"] == over) & (table["parametrization"] == rule)]
        slopes = {name: growth(own["size"].tolist(), own[name].tolist()) for name in ("logits", "stream", "block", "best_lr")}
        print(f"{rule}: exponents of {over}: " + ", ".join(f"{name} {value:+.2f}" for name, value in slopes.items()))
    write_csv(Path(__file__).parent / "results" / "parametrization.csv", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
