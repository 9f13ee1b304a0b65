"""Native reader: bytes of any range, several devices, one-line reasons, refusal of bad requests."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import HANG_S

from hybridmoe import _C
from hybridmoe.errors import ShapeError
from hybridmoe.experts.disk.arena import Arena
from hybridmoe.gguf.reader import FileState
from hybridmoe.hardware.disk import BLOCK_BYTES, direct_buffer_bytes

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
def reader(paths: list[Path]) -> Iterator[_C.FileReader]:
    reader = open_reader(paths)
    yield reader
    assert reader.close(HANG_S) and reader.is_idle


def open_reader(paths: list[Path]) -> _C.FileReader:
    fds = [os.open(path, os.O_RDONLY) for path in paths]
    return _C.FileReader([(fd, -1, FileState.of(fd)) for fd in fds], 2)


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
    assert reader.take(HANG_S) == (1, 1, f"the file ends at {BLOCK_BYTES}")
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


def test_a_closed_reader_reads_no_more(paths: list[Path]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    reader = open_reader(paths)
    assert reader.close(HANG_S) and reader.close(0.0)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ShapeError, match="closed"):
        reader.submit(1, [range_of(0, 0, 1)], True)
    with pytest.raises(ShapeError, match="closed"):
        reader.take(-1.0)
    assert reader.take(0.0) is None
