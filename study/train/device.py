"""The machine under a trial: which device, which arithmetic, how many threads, how much memory.

Where and how, never what: nothing here enters a trial's identity. Everything chosen is recorded with the trial.
"""

import ctypes
import platform
import resource
import sys
from dataclasses import dataclass
from typing import Literal

import torch

from models.arithmetic import Precision
from study.results.provenance import processor


@dataclass(frozen=True)
class Execution:
    """How a bundle runs. "auto" takes the best device there is and the faster arithmetic that is safe on it."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "float32", "bf16"] = "auto"
    n_threads: int = 0
    """CPU threads; 0 leaves torch's setting"""
    memory_fraction: float = 0.0
    """share of the GPU's memory this process may take, so that it cannot starve its neighbors; 0 sets no limit"""


def choose_device(wanted: str) -> torch.device:
    """The device to train on; ValueError where the wanted one is not on this machine."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if available[name]))
    if not available.get(wanted, False):
        raise ValueError(f"device={wanted!r} is not on this machine; it has {', '.join(n for n, there in available.items() if there)}")
    return torch.device(wanted)


BF16_FROM_WIDTH = 64
"""Width from which bf16 operands gain on a CPU: 0.82x at 16, 0.87x at 32, 1.06x at 64, 1.9x at 256 (`make bench-step`, LOG 2026-11-22)."""


def choose_precision(wanted: str, device: torch.device, n_embd: int) -> Precision:
    """bf16 operands where the hardware multiplies them natively and the model is wide enough to gain from it, else float32.

    The choice is made for each shape and recorded with each trial; it moves losses by less than a change of seed (tests/test_train.py).
    """
    if wanted == "float32" or wanted == "bf16":
        return wanted  # type: ignore[return-value]
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    native = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return "bf16" if native and n_embd >= BF16_FROM_WIDTH else "float32"


def prepare_process(execution: Execution, device: torch.device) -> None:
    """Set threads, memory limit and allocator of this process."""
    if execution.n_threads:
        torch.set_num_threads(execution.n_threads)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        if execution.memory_fraction:
            torch.cuda.set_per_process_memory_fraction(execution.memory_fraction, device)
    elif device.type == "cpu":
        keep_large_buffers()


def keep_large_buffers() -> None:
    """Tell glibc to reuse freed buffers of any size instead of returning them to the system.

    By default each activation above 128 KiB may be mapped and unmapped anew, which costs page faults on every step.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL("libc.so.6")
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def device_name(device: torch.device) -> str:
    """`cuda (NVIDIA H200)`, `cpu (AMD EPYC)`: device with its model name."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({processor()})"


def room_bytes(execution: Execution, device: torch.device) -> int:
    """Bytes of a GPU's memory that this process may take; 0 elsewhere."""
    if device.type != "cuda":
        return 0
    total = torch.cuda.get_device_properties(device).total_memory
    return int(total * (execution.memory_fraction or 1.0))


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory of the device's allocator (CUDA) or of this process since it started (elsewhere)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def synchronize(device: torch.device) -> None:
    """Wait for queued work, so that a clock read means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
