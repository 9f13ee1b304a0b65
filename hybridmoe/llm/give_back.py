"""Memory of closed models, given back to the system rather than kept for the next one."""

import ctypes
import gc
from contextlib import suppress

import torch

__all__ = ["give_back_memory"]


def give_back_memory() -> None:
    """Collect what only cycles keep alive, and empty the caches of allocators.

    The CUDA context stays, some hundreds of MB of VRAM: it lives as long as the process.
    """
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        with suppress(RuntimeError):  # of a GPU that has failed
            torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)
