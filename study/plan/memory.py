"""How much memory a bundle needs, which share of a GPU that is, what is done when it was not enough, and what is refused beforehand.

Imports neither torch nor ray.

    gpu_fraction(memory_bytes(trial, vocab_size, "cuda", "bf16"), 80 << 30)   # 1/6
"""

import glob
import math
from collections.abc import Sequence

from models.config import ModelConfig
from study.data.corpus import expected_vocab_size
from study.options import Options
from study.plan import machine
from study.spec import Trial

STATE_BYTES = 16
"""Bytes per parameter: weights, gradients and AdamW's two moments in float32."""
PROCESS_BYTES = {"cpu": 550 << 20, "cuda": 700 << 20, "mps": 700 << 20}
"""A worker before it has a model: Python, torch, Ray; on a CPU the smallest trials peak at 560 to 585 MiB; a GPU's context is assumed."""
HEADROOM = 1.15
"""Room for fragmentation and for what the model below leaves out."""
PROCESSES_PER_GPU = 6
"""Beyond this, processes that share a GPU only wait for each other."""
GROWTH = 1.5
"""A share that was too small is followed by the next 1/n that is at least so much larger."""
SIGNS = ("OutOfMemoryError", "out of memory", "running low on memory")
"""What a failure's text holds when memory was the reason: torch's and Ray's words."""
LARGEST_GPU = 288 << 30
"""Memory of the largest single accelerator of 2026, where one is here."""
ABSURD = 1 << 40
"""What no process of any study needs: the limit where the machine that will train is not this one, or nothing will be trained."""


def activation_bytes(model: ModelConfig, batch_size: int, precision: str) -> int:
    """What the forward pass keeps for the backward one, for one replica.

    Per token and layer in float32: block and norm inputs, norms, qkv, attention, MLP (4 C before and after GELU): about 19 C values; bf16
    operands halve most of them (compare Korthikanti et al. 2022, eq. 2). Fused attention keeps no T x T matrix, so T enters linearly.
    """
    if model.module:
        return batch_size * model.saved_bytes
    tokens = batch_size * model.block_size
    per_layer = (19 * 4 if precision == "float32" else 14 * 4 + 10) * model.n_embd
    return tokens * (model.n_layer * per_layer + 3 * 4 * model.vocab_size + 12 * model.n_embd)


def memory_bytes(trial: Trial, vocab_size: int, kind: str, precision: str, bundle: int = 1) -> int:
    """Peak memory of a process training `bundle` replicas of this trial."""
    model = trial.model(vocab_size)
    replica = STATE_BYTES * model.params_total + activation_bytes(model, trial.train.batch_size, precision)
    return PROCESS_BYTES[kind] + int(HEADROOM * bundle * replica)


def gpu_fraction(memory: int, gpu_memory_bytes: int) -> float:
    """The share 1/n of a GPU that holds this much memory, n processes side by side."""
    fits = max(1, int(gpu_memory_bytes * 0.95 // max(memory, 1)))
    return 1 / min(fits, PROCESSES_PER_GPU)


def memory_cap(gpus: float, gpu_memory_bytes: int) -> float:
    """What torch's allocator of a process with this share may take, as a fraction of the GPU's memory; 0 is no limit.

    The share less the GPU's context, which the allocator does not count: a trial that needs more fails itself, not its neighbor.
    """
    if not 0 < gpus < 1:
        return 0.0
    return max(0.01, gpus - PROCESS_BYTES["cuda"] / gpu_memory_bytes)


def is_out_of_memory(failure: str) -> bool:
    """Whether a failure's text says that memory was the reason."""
    return any(sign in failure for sign in SIGNS)


def next_share(gpus: float) -> float:
    """The share 1/n to try after this one was too small: 1/6, 1/4, 1/2, 1; 0 where there is none."""
    if not 0 < gpus < 1:
        return 0.0
    return 1 / max(1, math.floor(1 / gpus / GROWTH + 1e-6))


def share_in_words(cpus: float, gpus: float) -> str:
    """`1/6 of a GPU`, `a whole GPU`, `2 CPUs`."""
    if not gpus:
        return f"{cpus:g} CPU{'' if cpus == 1 else 's'}"
    return "a whole GPU" if gpus >= 1 else f"1/{1 / gpus:.3g} of a GPU"


# ---- what no machine could hold ----


def check_memory(trials: Sequence[Trial], options: Options) -> None:
    """Refuse (ValueError) trials that the machine cannot hold; the largest is named."""
    largest = max(trials, key=_needed)
    limit, whose = room(options)
    if (needed := _needed(largest)) > limit:
        shape = largest.shape
        raise ValueError(
            f"n_layer={shape.n_layer}, n_embd={shape.n_embd}, batch_size={largest.train.batch_size}, block_size={shape.block_size} "
            f"needs about {_gibibytes(needed)} to train and {whose} {_gibibytes(limit)}; choose a smaller shape, batch or context"
        )


def room(options: Options) -> tuple[int, str]:
    """Bytes that one process may need, and whose they are."""
    if options.dry_run or options.on_cluster:
        return ABSURD, "the most that a trial may have is"
    here = machine.memory()
    if options.device != "cpu" and glob.glob("/dev/nvidia[0-9]*"):
        here = max(here, LARGEST_GPU)
    return here, "this machine has"


def _needed(trial: Trial) -> int:
    return memory_bytes(trial, expected_vocab_size(trial.data), "cpu", "bf16")


def _gibibytes(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:,.3g} GiB" if n_bytes < 2**40 else f"{n_bytes / 2**40:,.4g} TiB"
