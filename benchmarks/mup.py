"""`make bench-mup`: does one learning rate suit all widths? muP against the standard parametrization.

Two checks. The *coordinate check* (Yang et al. 2022, appendix D.1) trains models of growing width for a few steps at one learning rate and
asks how much their logits and their last block's output have moved: under muP that does not depend on width. The *transfer check* trains
each width at a ladder of learning rates and asks where the best one lies: under muP it stays where it is. All learning rates and seeds of
a width are trained as one bundle.

    python -m benchmarks.mup [--widths 32 64 128 256] [--steps 400] [--seeds 2]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.machine import write_csv
from models.config import Shape
from study.data import corpus as data
from study.spec import DataConfig, Study, Trial, changed
from study.train.bundle import Bundle
from study.train.device import Execution

RATES = tuple(1e-3 * 2**k for k in range(8))
"""Ladder of the transfer check: 0.001 to 0.128, each twice the one before."""
SIDE = 2
"""Ladder steps on either side of the best through which the parabola is drawn."""


def family(parametrization: str, width: int, base_width: int, n_steps: int, n_layer: int = 2, n_head: int = 4) -> Trial:
    """The trial of one width whose others differ by seed and learning rate only; heads are cut from the width, so head width grows."""
    base = Shape(n_layer=n_layer, n_embd=base_width, n_head=n_head, block_size=64)
    study = Study(parametrization=parametrization, model=base)  # type: ignore[arg-type]  # checked there
    shape, train = changed(study, {"n_embd": width, "n_steps": n_steps, "eval_interval": n_steps, "warmup_steps": n_steps // 10}, "width")
    return Trial(shape, train, DataConfig(), 1)


def coordinates(corpus: data.Corpus, trial: Trial, seeds: Sequence[int], n_steps: int, lr: float) -> dict[str, float]:
    """Root mean square change, over the first steps of training, of the logits and of the last block's output, on one batch of text."""
    trials = [replace(trial, seed=seed, train=replace(trial.train, lr=lr, n_steps=n_steps, warmup_steps=0)) for seed in seeds]
    bundle = Bundle(trials, corpus.train, corpus.val, corpus.vocab_size, None, Execution("cpu", "float32"))
    windows = [data.window(corpus.val, 0, 0, 8, trial.shape.block_size)[0]] * len(seeds)
    tokens = torch.from_numpy(np.stack(windows).astype(np.int64))
    before = read(bundle, tokens)
    bundle._train_until(n_steps)
    after = read(bundle, tokens)
    return {name: float((after[name] - before[name]).square().mean().sqrt()) for name in before}


def read(bundle: Bundle, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Logits, and what the last block adds to the residual stream."""
    model, added = bundle.model, list[torch.Tensor]()
    mlp = model.mlp

    def listen(x: torch.Tensor, layer: int) -> torch.Tensor:
        added.append(mlp(x, layer))
        return added[-1]

    model.mlp = listen  # type: ignore[method-assign]
    with torch.no_grad():
        logits = model(tokens)
    del model.mlp
    return {"logits": logits, "block": added[-1]}


def growth(widths: Sequence[int], values: Sequence[float]) -> float:
    """Exponent of width in a quantity: least squares on logarithms; 0 where it does not depend on width."""
    return float(np.polyfit(np.log(widths), np.log(values), 1)[0])


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


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of each run of the transfer check")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--base", type=int, default=64, help="width at which both parametrizations are the same")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    corpus, seeds, rows = data.prepare(DataConfig()), range(1, options.seeds + 1), []
    for parametrization in ("standard", "mup"):
        for width in options.widths:
            trial = family(parametrization, width, options.base, options.steps)
            moved = coordinates(corpus, trial, seeds, n_steps=8, lr=8e-3)
            loss = losses(corpus, trial, RATES, seeds)
            rows.append({"parametrization": parametrization, "width": width, **moved, "best_lr": best_rate(RATES, loss)})
            rows[-1] |= {f"loss@{rate:g}": value for rate, value in zip(RATES, loss, strict=True)}
            shown = " ".join(f"{value:.3f}" for value in loss)
            print(f"{parametrization:8} width {width:4}  moved: logits {moved['logits']:.3f} block {moved['block']:.3f}", end="  ")
            print(f"best lr {rows[-1]['best_lr']:.4f}  losses {shown}", flush=True)
    table = pd.DataFrame(rows)
    for parametrization in ("standard", "mup"):
        own = table[table["parametrization"] == parametrization]
        slopes = {name: growth(own["width"].tolist(), own[name].tolist()) for name in ("logits", "block", "best_lr")}
        print(f"{parametrization}: exponents of width: " + ", ".join(f"{name} {value:+.2f}" for name, value in slopes.items()))
    write_csv(Path(__file__).parent / "results" / "mup.csv", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
