"""Limit of torch's threads for the length of a block.

torch's OpenMP workers spin between operations and take cores from the kernels' own thread pool:
with 2 threads each on 2 cores, the embedded model decoded 16 tokens/s; with 1 for torch, 137.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["torch_threads"]


@contextmanager
def torch_threads(num_threads: int) -> Iterator[None]:
    """Set torch's thread count, and restore the caller's at the end of the block."""
    before = torch.get_num_threads()
    if before == num_threads:
        yield
        return
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
