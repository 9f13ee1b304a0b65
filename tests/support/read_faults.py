"""Make reads of files fail, wait or hang, by threads and by io_uring."""

import fcntl
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from waiting import HANG_S

from hybridmoe import _C
from hybridmoe.experts.disk import expert_store, read_backends, reader_threads
from hybridmoe.experts.disk.arena import Arena
from hybridmoe.experts.disk.cached_experts import CachedExperts
from hybridmoe.hardware.disk import direct_buffer_bytes


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


class HangingDisk:
    """Reads of all files, which begin and do not end while `is_hanging`.

    Those of threads wait for an event, those of io_uring for bytes in a pipe: in the kernel.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_hanging = False
        self.num_begun = 0  # reads that hang, or did
        self._gate, self._lock = threading.Event(), threading.Lock()
        self._pipes: list[tuple[int, int, tuple[int, int, int]]] = []
        self._really_read, really_ring = os.preadv, _C.IoRing
        disk = self

        def read(fd: int, buffers: Any, offset: int) -> int:
            if disk.is_hanging:
                disk.num_begun += 1
                assert disk._gate.wait(HANG_S)
            return disk._really_read(fd, buffers, offset)

        class Ring(really_ring):  # type: ignore[misc, valid-type]
            def begin(self, tag: int, fd: int, memory: memoryview, size: int, start: int) -> None:
                super().begin(tag, disk._hanging_fd(fd, size, start), memory, size, start)

        monkeypatch.setattr(os, "preadv", read)
        monkeypatch.setattr(_C, "IoRing", Ring)
        monkeypatch.setattr(expert_store, "STALL_S", 0.02)
        monkeypatch.setattr(reader_threads, "CLOSE_S", 0.1)

    def resume(self) -> None:
        """End the reads that hang, with the bytes of their files."""
        with self._lock:
            self.is_hanging = False
        for _, theirs, (fd, size, start) in self._pipes:
            content = Arena(direct_buffer_bytes(size)).view
            self._really_read(fd, [content], start)
            os.write(theirs, content[:size])
        self._gate.set()

    def _hanging_fd(self, fd: int, size: int, start: int) -> int:
        """Return a pipe to read from instead of a file, or the file."""
        with self._lock:
            if not self.is_hanging:
                return fd
            ours, theirs = os.pipe()
            fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 1 << 20)  # takes a whole read
            self._pipes.append((ours, theirs, (fd, size, start)))
            self.num_begun += 1
            return ours

    def close(self) -> None:
        """Let go of what still hangs."""
        self._gate.set()
        for ours, theirs, _ in self._pipes:
            os.close(ours)
            os.close(theirs)


def check_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the table of expert buffers after every layer of every step, failed ones too."""
    really_submit = CachedExperts.submit

    def submit(self: CachedExperts, *layer: Any) -> Any:
        try:
            return really_submit(self, *layer)
        finally:
            check_buffers(self)

    monkeypatch.setattr(CachedExperts, "submit", submit)


def check_buffers(experts: CachedExperts) -> None:
    """Each buffer is free, loaded or in flight, exactly once; none is kept for nothing."""
    store = experts._store
    loaded, in_flight = store._loaded, store._in_flight
    used = [*loaded.values(), *(buffer for _, buffer in in_flight.values())]
    assert sorted([*store._buffers._free, *used]) == list(range(experts.plan.num_buffers))
    assert not loaded.keys() & in_flight.keys()
    ahead = experts._prefetched.keys() | set(experts._prompt.ahead)
    assert loaded.keys() <= experts._resident | ahead, "a buffer has leaked"
    assert in_flight.keys() <= experts._resident | ahead | store._released
    addresses = store.addresses
    assert all((addresses[:, i] != 0).sum() == len(loaded) for i in range(3))
    assert len(experts._resident) <= experts.plan.num_slots
