"""Count a file's pages in the page cache."""

import ctypes
import mmap
from pathlib import Path

import numpy as np


def resident_pages(path: Path) -> int | None:
    """Number of a file's pages in the page cache; None where the system does not tell."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "mincore"):
        return None
    with open(path, "rb") as file:
        view = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    whole = np.frombuffer(view, np.uint8)
    flags = np.zeros(-(-len(whole) // mmap.PAGESIZE), np.uint8)
    address = ctypes.c_void_p(whole.ctypes.data)
    if libc.mincore(address, ctypes.c_size_t(len(whole)), ctypes.c_void_p(flags.ctypes.data)):
        return None
    return int((flags & 1).sum())
