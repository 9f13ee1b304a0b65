"""Memory of closed models, given back to the system rather than kept for the next one."""

import ctypes
import gc
import time
import weakref
from contextlib import suppress
from typing import Any

import torch

__all__ = ["give_back_memory"]

_MOST_PAUSES, _PAUSE_S = 20, 0.1


def give_back_memory(closed: weakref.ref[Any]) -> None:
    """Collect what only cycles keep alive, and empty the caches of allocators.

    closed: the model, which requests that have just ended may refer to for a moment. The CUDA
    context stays, some hundreds of MB of VRAM: it lives as long as the process.
    """
    gc.collect()
    for _ in range(_MOST_PAUSES):  # counted, since a collection may take seconds itself
        if closed() is None:
            break
        time.sleep(_PAUSE_S)
        gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        with suppress(RuntimeError):  # of a GPU that has failed
            torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)
