"""Shapes that no machine at hand could hold are refused before anything is allocated, by the memory model of `study.plan.memory`.

check_memory(trials, command.options)
"""

import glob
from collections.abc import Sequence

from study.data.corpus import expected_vocab_size
from study.options import Options
from study.plan.machine import memory
from study.plan.memory import memory_bytes
from study.spec import Trial

LARGEST_GPU = 288 << 30
"""Memory of the largest single accelerator of 2026, where one is here."""
ABSURD = 1 << 40
"""What no process of any study needs: the limit where the machine that will train is not this one, or nothing will be trained."""


def check_memory(trials: Sequence[Trial], options: Options) -> None:
    """Refuse trials that the machine cannot hold.

    Raises:
        ValueError: one of them needs more memory than there is; the largest is named.
    """
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
    here = memory()
    if options.device != "cpu" and glob.glob("/dev/nvidia[0-9]*"):
        here = max(here, LARGEST_GPU)
    return here, "this machine has"


def _needed(trial: Trial) -> int:
    return memory_bytes(trial, expected_vocab_size(trial.data), "cpu", "bf16")


def _gibibytes(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:,.3g} GiB" if n_bytes < 2**40 else f"{n_bytes / 2**40:,.4g} TiB"
