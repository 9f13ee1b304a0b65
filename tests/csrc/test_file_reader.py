"""Native reader: bytes of any range, several devices, one-line reasons, refusal of bad requests."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import HANG_S, eventually

from hybridmoe import _C
from hybridmoe.errors import ShapeError
from hybridmoe.experts.disk.arena import Arena
from hybridmoe.gguf.reader import FileState
from hybridmoe.hardware.disk import BLOCK_BYTES, direct_buffer_bytes

assert BLOCK_BYTES == _C.BLOCK_BYTES

SIZE = 40 * BLOCK_BYTES + 777  # not a multiple of the block


@pytest.fixture
def contents() -> list[bytes]:
    return [np.random.default_rng(i).bytes(SIZE) for i in range(3)]


@pytest.fixture
def paths(tmp_path: Path, contents: list[bytes]) -> Iterator[list[Path]]:
    """Write files, the last of them on another device if possible."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as more:
        paths = [tmp_path / "0", tmp_path / "1", Path(more) / "2"]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        yield paths


@pytest.fixture
def reader(paths: list[Path], each_io: str) -> Iterator[_C.FileReader]:
    reader = open_reader(paths)
    yield reader
    assert reader.close(HANG_S)


def open_reader(
    paths: list[Path],
    faults: _C.ReadFaults | None = None,
    *,
    num_threads: int = 2,
    ring_depth: int = 8,
) -> _C.FileReader:
    """Open a reader of small chunks with the backend of `each_io`."""
    fds = [os.open(path, os.O_RDONLY) for path in paths]
    files = [(fd, -1, FileState.of(fd)) for fd in fds]
    why = "" if os.environ["HYBRIDMOE_IO"] == "uring" else "asked for"
    return _C.FileReader(files, why, num_threads, ring_depth, 64 << 10, faults)


Range = tuple[int, int, int, memoryview]


def range_of(file: int, offset: int, num_bytes: int) -> Range:
    return file, offset, num_bytes, Arena(direct_buffer_bytes(num_bytes)).view


def bytes_of(part: Range) -> bytes:
    _, offset, num_bytes, memory = part
    return bytes(memory[offset % BLOCK_BYTES :][:num_bytes])


def test_ranges_of_several_files_arrive(reader: _C.FileReader, contents: list[bytes]) -> None:
    rng = np.random.default_rng(3)
    sent = {}
    for key in range(60):
        offsets = rng.integers(0, SIZE - 1, 4).tolist()
        sent[key] = [
            range_of(file, offset, int(rng.integers(1, SIZE - offset + 1)))
            for file, offset in zip(rng.integers(0, 3, 4).tolist(), offsets, strict=True)
        ]
        reader.submit(key, sent[key], bool(key % 2))
    ends = [reader.take(HANG_S) for _ in sent]
    assert sorted(ends) == [(key, -1, "") for key in sent]
    for parts in sent.values():
        for part in parts:
            file, offset, num_bytes, _ = part
            assert bytes_of(part) == contents[file][offset : offset + num_bytes]
    assert reader.take(0.0) is None and reader.take(0.001) is None


def test_the_range_that_fails_is_named_with_the_reason(
    reader: _C.FileReader, paths: list[Path]
) -> None:
    os.truncate(paths[2], 5)
    parts = [range_of(0, 10, 20), range_of(2, BLOCK_BYTES, 7)]
    reader.submit(1, parts, True)
    assert reader.take(HANG_S) == (1, 1, "the file ends at 5")
    again = [range_of(2, 0, 5)]
    reader.submit(1, again, True)  # the key is free
    reason = "the file was changed after it was opened; load it again"
    assert reader.take(HANG_S) == (1, 0, reason)


@pytest.mark.parametrize(
    "part",
    [
        (3, 0, 1),
        (-1, 0, 1),
        (0, -1, 1),
        (0, 0, 0),
        (0, 0, 1 << 62),
        (0, BLOCK_BYTES - 1, 2 * BLOCK_BYTES),
    ],
)
def test_what_cannot_be_read_is_refused(reader: _C.FileReader, part: Any) -> None:
    memory = Arena(2 * BLOCK_BYTES).view
    with pytest.raises(ShapeError):
        reader.submit(1, [(0, 0, 1, memory), (*part, memory)], True)
    with pytest.raises(ShapeError):
        reader.submit(1, [(0, 0, 1, memory[1:])], True)
    with pytest.raises(ShapeError):
        reader.submit(1, [], True)
    assert reader.num_queued(True) == 0 and not reader.cancel(1)


def test_a_closed_reader_reads_no_more(paths: list[Path], each_io: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    reader = open_reader(paths)
    assert reader.close(HANG_S) and reader.close(0.0)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ShapeError, match="closed"):
        reader.submit(1, [range_of(0, 0, 1)], True)
    with pytest.raises(ShapeError, match="closed"):
        reader.take(-1.0)
    assert reader.take(0.0) is None


def test_urgent_reads_overtake_and_queued_ones_can_be_cancelled(
    paths: list[Path], each_io: str
) -> None:
    faults = _C.ReadFaults()
    reader = open_reader(paths[:1], faults, num_threads=1, ring_depth=1)
    faults.hang(1)
    requests = {key: [range_of(0, 0, 10), range_of(0, 50, 10)] for key in range(6)}
    first, later, raised, urgent, cancelled, dropped = requests
    reader.submit(first, requests[first], True)
    eventually(lambda: faults.num_hung == 1)
    for key in (later, raised, cancelled):
        reader.submit(key, requests[key], False)
    for key in (urgent, dropped):
        reader.submit(key, requests[key], True)
    assert (reader.num_queued(True), reader.num_queued(False)) == (5, 6)
    with pytest.raises(ShapeError, match=f"key {first} is under way"):
        reader.submit(first, requests[first], True)
    reader.make_urgent(raised)
    assert (reader.num_queued(True), reader.num_queued(False)) == (7, 4)
    for key, is_withdrawn in ((cancelled, True), (cancelled, False), (dropped, True)):
        assert reader.cancel(key) == is_withdrawn
    assert not reader.cancel(first)
    faults.resume()
    assert [reader.take(HANG_S) for _ in range(4)] == [
        (key, -1, "") for key in (first, urgent, raised, later)
    ]
    assert reader.take(0.01) is None
    assert not any(any(memory) for key in (cancelled, dropped) for *_, memory in requests[key])
    assert reader.close(HANG_S)


def test_each_device_has_reads_of_its_own(paths: list[Path], each_io: str) -> None:
    faults = _C.ReadFaults()
    reader = open_reader(paths, faults)
    devices = {path.stat().st_dev for path in paths}
    assert reader.num_devices == len(devices)
    if len(devices) == 1:
        pytest.skip("one device here")
    faults.hang()
    hanging = [[range_of(0, 0, 10)] for _ in range(8)]  # all that may be in flight
    for key, parts in enumerate(hanging):
        reader.submit(key, parts, True)
    eventually(lambda: faults.num_hung == (2 if reader.why_threads else 8))
    faults.hang(0)
    other = [range_of(2, 7, 10)]
    reader.submit(8, other, False)
    assert reader.take(HANG_S) == (8, -1, "")
    faults.resume()
    assert sorted(reader.take(HANG_S) for _ in hanging) == [(key, -1, "") for key in range(8)]
    assert reader.close(HANG_S)


def test_a_read_that_hangs_keeps_its_reader_until_it_returns(
    paths: list[Path], each_io: str, contents: list[bytes]
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    faults = _C.ReadFaults()
    reader = open_reader(paths, faults)
    faults.hang()
    parts = [range_of(0, 100, 20)]
    reader.submit(1, parts, True)
    eventually(lambda: faults.num_hung == 1)
    assert not reader.close(0.01)
    assert len(os.listdir("/proc/self/fd")) > before
    assert not any(bytes_of(parts[0]))
    faults.resume()
    assert reader.close(HANG_S)
    assert bytes_of(parts[0]) == contents[0][100:120]
    faults.release()
    del reader
    eventually(lambda: len(os.listdir("/proc/self/fd")) == before)


@pytest.mark.parametrize("error", [0, errno.EPERM])
def test_a_read_that_hangs_does_not_keep_others_from_going_on_by_threads(
    paths: list[Path], each_io: str, contents: list[bytes], error: int
) -> None:
    if each_io != "uring":
        pytest.skip("io_uring's")
    faults = _C.ReadFaults()
    reader = open_reader(paths, faults)
    faults.hang(1)
    sent = [[range_of(0, 100 * key, SIZE // 4)] for key in range(20)]
    reader.submit(0, sent[0], True)
    eventually(lambda: faults.num_hung == 1)
    faults.fail_rings(3, error)
    for key, parts in enumerate(sent[1:], 1):
        reader.submit(key, parts, True)
    ends = [reader.take(HANG_S) for _ in sent[1:]]
    assert sorted(ends) == [(key, -1, "") for key in range(1, 20)]
    why = os.strerror(error) if error else "io_uring_enter: Bad address"
    assert reader.why_threads == f"io_uring failed: {why}"
    assert reader.take(0.01) is None
    assert not reader.cancel(0)
    faults.resume()
    assert reader.take(HANG_S) == (0, -1, "")
    for key, parts in enumerate(sent):
        assert bytes_of(parts[0]) == contents[0][100 * key :][: SIZE // 4]
    assert reader.close(HANG_S)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_leaves_the_reader_to_its_parent(paths: list[Path], each_io: str) -> None:
    reader = open_reader(paths)
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            is_closed = reader.close(HANG_S)
            del reader
            os._exit(0 if is_closed else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    parts = [range_of(1, 0, SIZE)]
    reader.submit(1, parts, True)
    assert reader.take(HANG_S) == (1, -1, "")
    assert reader.close(HANG_S)
