"""Make reads of files fail or wait, by threads and by io_uring."""

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from waiting import HANG_S

from hybridmoe import _C
from hybridmoe.experts.disk import read_backends


def alter_reads(monkeypatch: pytest.MonkeyPatch, errno_of: Callable[[int], int]) -> None:
    """Let reads of a file descriptor end with `errno_of(fd)` where that is not 0."""
    really_read, really_ring = os.preadv, _C.IoRing

    def read(fd: int, buffers: Any, offset: int) -> int:
        if error := errno_of(fd):
            raise OSError(error, os.strerror(error))
        return really_read(fd, buffers, offset)

    class Ring(really_ring):  # type: ignore[misc, valid-type]
        fds: dict[int, int]

        def begin(self, tag: int, fd: int, memory: memoryview, *place: int) -> None:
            self.fds = {**getattr(self, "fds", {}), tag: fd}
            super().begin(tag, fd, memory, *place)

        def wait(self) -> list[tuple[int, int, int]]:
            ends = super().wait()
            return [(tag, errno_of(self.fds[tag]) or error, end) for tag, error, end in ends]

    monkeypatch.setattr(os, "preadv", read)
    monkeypatch.setattr(_C, "IoRing", Ring)


def hold_reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let reads begin, one at a time where they are io_uring's, but not end before the call."""
    gate, really_read, really_ring = threading.Event(), os.preadv, _C.IoRing

    def read(fd: int, buffers: Any, offset: int) -> int:
        assert gate.wait(HANG_S)
        return really_read(fd, buffers, offset)

    class Ring(really_ring):  # type: ignore[misc, valid-type]
        has_begun = False

        def begin(self, *read: Any) -> None:
            self.has_begun = True
            super().begin(*read)

        def wait(self) -> list[tuple[int, int, int]]:
            assert not self.has_begun or gate.wait(HANG_S)
            return super().wait()  # type: ignore[no-any-return]

    monkeypatch.setattr(os, "preadv", read)
    monkeypatch.setattr(_C, "IoRing", Ring)
    monkeypatch.setattr(read_backends, "RING_DEPTH", 1)
    return gate.set
