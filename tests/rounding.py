"""How far two programs that do the same sums in another order may come apart, on any processor.

Processors, thread counts and libraries sum in orders of their own, so only a program that runs twice gives equal bits. What is one
algorithm in two programs (a bundle and its lone runs, tables on a device and steps from the host) is compared in float64, where the
difference is billions of times smaller than that of any mistake.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def drift(n_steps: int, longest_sum: int, dtype: torch.dtype = torch.float64) -> float:
    """Largest relative difference of their losses after so many optimizer steps.

    A sum of n terms rounds off by about sqrt(n) u, u being half of eps (Higham and Mary 2019, SIAM J. Sci. Comput. 41, A2815); each step
    starts where the one before left off and adds as much again.
    """
    return max(1, n_steps) * math.sqrt(longest_sum) * torch.finfo(dtype).eps / 2


@contextmanager
def float64() -> Iterator[None]:
    """Weights, activations and moments made inside are float64; initial weights are the same numbers as in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
