"""Reads by io_uring: correct bytes, short reads continued, errors reported, no leaks."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from waiting import HANG_S, eventually

from hybridmoe import _C
from hybridmoe.errors import ConfigError, ShapeError
from hybridmoe.experts.disk.arena import Arena
from hybridmoe.experts.disk.read_backend import find_reason_for_threads

BLOCK = 4096
SIZE = 60 * BLOCK + 777

NO_RING = ""
try:
    _C.IoRing(1, 1, 1).close()
except ShapeError as error:
    NO_RING = str(error)
needs_ring = pytest.mark.skipif(NO_RING != "", reason=NO_RING or "there is one")


@pytest.fixture(scope="module")
def content() -> bytes:
    return np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8).tobytes()


@pytest.fixture
def fd(tmp_path: Path, content: bytes) -> Iterator[int]:
    path = tmp_path / "weights"
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def finish(ring: _C.IoRing, count: int) -> dict[int, tuple[int, int]]:
    """Wait for `count` reads: tag -> (errno, where the file ended)."""
    ends: dict[int, tuple[int, int]] = {}
    while len(ends) < count:
        for tag, error, file_end in ring.wait():
            assert tag not in ends
            ends[tag] = (error, file_end)
    return ends


@needs_ring
@pytest.mark.parametrize(
    ("depth", "chunk", "block"), [(1, 1, 1), (3, 100, 1), (2, BLOCK, BLOCK), (16, 4 * BLOCK, BLOCK)]
)
def test_many_reads_at_once_bring_every_byte(
    fd: int, content: bytes, depth: int, chunk: int, block: int
) -> None:
    ring, rng = _C.IoRing(depth, chunk, block), np.random.default_rng(1)
    most = 300 * chunk
    reads = {}
    for tag in range(30):
        offset = int(rng.integers(0, SIZE - 1)) // block * block
        size = int(rng.integers(1, min(most, SIZE - offset) + 1))
        memory = Arena(size + block).view
        reads[tag] = (offset, size, memory)
        ring.begin(tag, fd, memory, size, offset)
    assert set(finish(ring, len(reads)).values()) == {(0, -1)}
    for offset, size, memory in reads.values():
        assert bytes(memory[:size]) == content[offset : offset + size]
    ring.close()


@needs_ring
@pytest.mark.parametrize("block", [1, 512])
@pytest.mark.parametrize("end", [SIZE, 9 * BLOCK + 5])
def test_short_reads_go_on_where_they_ended(content: bytes, block: int, end: int) -> None:
    """Each packet is one short read; a direct read is asked again from its last whole block."""
    ours, theirs = os.pipe2(os.O_DIRECT)  # a pipe of packets
    rng = np.random.default_rng(2)

    def answer() -> None:
        position = 0
        while position < end:
            stop = min(end, position + block + int(rng.integers(0, BLOCK - block)))
            os.write(theirs, content[position:stop])
            position = stop if stop == end else stop // block * block
        if end < SIZE and block > 1:  # what is left of a block is asked for again
            os.write(theirs, content[end // block * block : end])
        os.close(theirs)

    sender = threading.Thread(target=answer)
    sender.start()
    # One chunk, so that packets and reads are in step.
    ring = _C.IoRing(1, 64 * BLOCK, block)
    memory = Arena(64 * BLOCK).view
    ring.begin(7, ours, memory, SIZE, 0)
    assert finish(ring, 1) == {7: (0, -1 if end == SIZE else end)}
    assert bytes(memory[:end]) == content[:end]
    sender.join()
    ring.close()
    os.close(ours)


@needs_ring
def test_a_read_that_fails_fails_alone(fd: int, content: bytes, tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    ring = _C.IoRing(4, BLOCK, BLOCK)
    closed = os.dup(fd)  # a number that is not the ring's own
    os.close(closed)
    memory = [Arena(8 * BLOCK).view for _ in range(5)]
    for tag, (descriptor, offset) in enumerate(
        [(fd, 0), (folder, 0), (closed, 0), (fd, 58 * BLOCK), (fd, BLOCK)]
    ):
        ring.begin(tag, descriptor, memory[tag], 7 * BLOCK, offset)
    assert finish(ring, 5) == {
        0: (0, -1),
        1: (errno.EISDIR, -1),
        2: (errno.EBADF, -1),
        3: (0, SIZE),
        4: (0, -1),
    }
    assert bytes(memory[4][: 7 * BLOCK]) == content[BLOCK : 8 * BLOCK]
    ring.close()
    os.close(folder)


@needs_ring
def test_no_more_is_under_way_than_was_said(fd: int) -> None:
    ring = _C.IoRing(4, BLOCK, BLOCK)
    memory = [Arena(4 * BLOCK).view for _ in range(3)]
    assert ring.has_room
    ring.begin(0, fd, memory[0], 3 * BLOCK, 0)
    assert ring.has_room
    ring.begin(1, fd, memory[1], 1, 0)
    assert not ring.has_room
    finish(ring, 2)
    assert ring.has_room
    ring.close()


@needs_ring
def test_waking_ends_a_wait_once_and_other_threads_run_meanwhile() -> None:
    ring = _C.IoRing(1, BLOCK, BLOCK)
    ring.wake()
    ring.wake()
    assert ring.wait() == []
    waker = threading.Timer(0.05, ring.wake)
    waker.start()
    assert ring.wait() == []  # not before the timer's thread has run
    waker.join()
    ring.close()
    ring.wake()


@needs_ring
def test_nothing_is_left_behind(fd: int, content: bytes) -> None:
    before = len(os.listdir("/proc/self/fd"))
    ring = _C.IoRing(8, BLOCK, BLOCK)
    memory = Arena(32 * BLOCK).view
    ring.begin(0, fd, memory, 32 * BLOCK, 0)
    ring.wake()
    ring.wait()
    ring.close()  # waits for what is under way
    assert bytes(memory[: 8 * BLOCK]) == content[: 8 * BLOCK]
    assert len(os.listdir("/proc/self/fd")) == before
    ring.close()
    for call in (ring.wait, lambda: ring.begin(1, fd, memory, 1, 0)):
        with pytest.raises(ShapeError, match="closed"):
            call()


@needs_ring
def test_a_read_that_never_ends_holds_nothing_up(fd: int, content: bytes) -> None:
    ours, theirs = os.pipe()
    ring = _C.IoRing(2, BLOCK, BLOCK)
    memory = [Arena(4 * BLOCK).view for _ in range(2)]
    ring.begin(0, ours, memory[0], 4 * BLOCK, 0)
    ring.begin(1, fd, memory[1], BLOCK, 0)
    ring.wake()
    ring.wait()
    assert not ring.drain(0.01)
    assert not ring.drain(0.0)
    for call in (ring.wait, lambda: ring.begin(2, fd, memory[1], 1, 0)):
        with pytest.raises(ShapeError, match="closed"):
            call()
    os.close(theirs)  # the read ends, with no byte
    assert ring.drain(HANG_S)
    ring.close()
    os.close(ours)
    ours, theirs = os.pipe()
    ring = _C.IoRing(2, BLOCK, BLOCK)
    ring.begin(0, ours, memory[0], BLOCK, 0)
    ring.wake()
    ring.wait()
    assert not ring.drain(0.01)
    ring.close()  # returns
    ring.close()
    os.write(theirs, content[:BLOCK])  # the kernel has kept its end
    eventually(lambda: bytes(memory[0][:BLOCK]) == content[:BLOCK])
    os.close(theirs)
    os.close(ours)


@needs_ring
def test_what_cannot_be_read_is_refused(fd: int) -> None:
    for arguments in ((0, 1, 1), (1 << 20, 1, 1), (1, 0, 1), (1, 3, 2), (1, 1 << 40, 1)):
        with pytest.raises(ShapeError):
            _C.IoRing(*arguments)
    ring = _C.IoRing(1, BLOCK, BLOCK)
    memory = Arena(2 * BLOCK).view
    bad = [(fd, memory, 0, 0), (fd, memory, -1, 0), (-1, memory, 1, 0), (fd, memory, 1, -BLOCK)]
    bad += [(fd, memory, 2 * BLOCK + 1, 0), (fd, memory[::2], 1, 0), (fd, memory[:100], 1, 0)]
    for descriptor, where, size, offset in bad:
        with pytest.raises(ShapeError):
            ring.begin(1, descriptor, where, size, offset)
    with pytest.raises(BufferError):
        ring.begin(1, fd, memoryview(bytes(BLOCK)), 1, 0)
    ring.begin(1, fd, memory, 1, 0)
    with pytest.raises(ShapeError, match="tag 1 is under way"):
        ring.begin(1, fd, memory, 1, 0)
    assert finish(ring, 1) == {1: (0, -1)}
    ring.close()


@needs_ring
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_leaves_the_ring_to_its_parent(fd: int, content: bytes) -> None:
    ring = _C.IoRing(8, BLOCK, BLOCK)
    memory = Arena(32 * BLOCK).view
    ring.begin(0, fd, memory, 32 * BLOCK, 0)
    ring.wake()
    ring.wait()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            ring.close()
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    ring.begin(1, fd, Arena(BLOCK).view, 10, 0)
    ends = finish(ring, 1)
    if 0 not in ends:
        ends |= finish(ring, 1)
    assert ends[0] == (0, -1)
    assert bytes(memory) == content[: 32 * BLOCK]
    ring.close()


# A seccomp filter under which io_uring_setup ends with an errno, as containers have it.
FILTER = """
import ctypes, struct, sys
number, error = 425, int(sys.argv[1])
code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | error),
        (0x06, 0, 0, 0x7FFF0000)]
program = b"".join(struct.pack("HBBI", *line) for line in code)
buffer = ctypes.create_string_buffer(program)
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
filter = Program(len(code), ctypes.addressof(buffer))
prctl = ctypes.CDLL(None, use_errno=True).prctl
if prctl(38, 1, 0, 0, 0) or prctl(22, 2, ctypes.byref(filter), 0, 0):
    sys.exit(77)
from hybridmoe.errors import ConfigError
from hybridmoe.experts.disk.read_backend import describe_backend, find_reason_for_threads as find
print(describe_backend(find()))
import os
os.environ["HYBRIDMOE_IO"] = "uring"
try:
    find()
except ConfigError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's")
@pytest.mark.parametrize(
    ("error", "why"),
    [
        (errno.EPERM, "Operation not permitted (sysctl kernel.io_uring_disabled, or a seccomp"),
        (errno.ENOSYS, "Function not implemented (the kernel has no io_uring)"),
    ],
)
def test_where_it_is_refused_threads_read_and_the_reason_is_given(error: int, why: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILTER, str(error)],
        capture_output=True,
        text=True,
        env={
            **{name: value for name, value in os.environ.items() if name != "HYBRIDMOE_IO"},
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
        timeout=HANG_S,
    )
    if done.returncode == 77:
        pytest.skip("no seccomp filters here")
    said, refused = done.stdout.splitlines()
    assert said.startswith(f"4 threads (io_uring_setup: {why}")
    assert refused.startswith(f"HYBRIDMOE_IO=uring: io_uring_setup: {why}")
    assert refused.endswith("; use auto or threads")


def test_an_unknown_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDMOE_IO", "magic")
    with pytest.raises(ConfigError, match="HYBRIDMOE_IO='magic': expected one of auto, threads"):
        find_reason_for_threads()
