"""Advice to the kernel on pages of 2 MiB."""

import mmap
from contextlib import suppress

__all__ = ["advise_huge_pages"]


def advise_huge_pages(memory: mmap.mmap, *, wanted: bool = True) -> None:
    """Ask for huge pages, or for none. A kernel that does not know them is left as it is."""
    name = "MADV_HUGEPAGE" if wanted else "MADV_NOHUGEPAGE"
    if hasattr(mmap, name):
        with suppress(OSError):
            memory.madvise(getattr(mmap, name))
