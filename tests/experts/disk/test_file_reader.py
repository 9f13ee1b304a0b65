"""Direct and buffered reads: equal bytes, and errors of one line."""

import errno
import gc
import os
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from page_cache import resident_pages
from read_faults import add_faults, hold_reads
from waiting import eventually

from hybridmoe.errors import DiskError, ShapeError
from hybridmoe.experts.disk import file_reader, read_backend
from hybridmoe.experts.disk.arena import Arena
from hybridmoe.experts.disk.file_reader import FileReader
from hybridmoe.experts.disk.read_request import FileRange, ReadRequest
from hybridmoe.hardware.disk import BLOCK_BYTES, direct_buffer_bytes

pytestmark = pytest.mark.usefixtures("each_io")

SIZE = 40 * BLOCK_BYTES + 777  # not a multiple of the block


@pytest.fixture
def content() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)


@pytest.fixture
def path(tmp_path: Path, content: np.ndarray) -> Path:
    path = tmp_path / "weights.gguf"
    path.write_bytes(content.tobytes())
    return path


def refuse_direct_at_open(monkeypatch: pytest.MonkeyPatch) -> None:
    really_open = os.open

    def fake(path: Path, flags: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return really_open(path, flags)

    monkeypatch.setattr(os, "open", fake)


def refuse_direct_at_read(monkeypatch: pytest.MonkeyPatch) -> None:
    add_faults(monkeypatch).fail(errno.EINVAL, direct_only=True)


def read_little_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten reads, as after a signal, down to parts of blocks."""
    add_faults(monkeypatch).shorten(2)
    # io_uring's own short reads are test_io_ring's; here a range is many reads, few at a time.
    monkeypatch.setattr(read_backend, "CHUNK_BYTES", BLOCK_BYTES)
    monkeypatch.setattr(read_backend, "RING_DEPTH", 2)


MODES = [lambda _: None, refuse_direct_at_open, refuse_direct_at_read, read_little_at_a_time]
NAMES = ["direct", "refused at open", "refused at read", "short reads"]


@pytest.fixture(params=MODES, ids=NAMES)
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    request.param(monkeypatch)


@pytest.fixture
def reader(path: Path, each_io: str, mode: None) -> Iterator[FileReader]:
    reader = FileReader([path], num_threads=3)
    yield reader
    reader.close()


def make_request(key: int, *ranges: tuple[int, int], name: str = "blk.1.x") -> ReadRequest:
    parts = [FileRange(0, offset, size, name) for offset, size in ranges]
    buffers = [Arena(direct_buffer_bytes(size)).view for _, size in ranges]
    return ReadRequest(key, parts, buffers)


def bytes_of(request: ReadRequest, i: int) -> bytes:
    part = request.ranges[i]
    return bytes(request.buffers[i][part.skew : part.skew + part.num_bytes])


def test_any_range_arrives(reader: FileReader, content: np.ndarray) -> None:
    rng = np.random.default_rng(2)
    ranges = [(0, SIZE), (0, 1), (SIZE - 1, 1), (SIZE - 900, 900), (BLOCK_BYTES, BLOCK_BYTES)]
    for _ in range(40):
        offset = int(rng.integers(0, SIZE - 1))
        ranges.append((offset, int(rng.integers(1, SIZE - offset + 1))))
    sent = [make_request(i, *ranges[i : i + 3]) for i in range(0, len(ranges), 3)]
    for one in sent:
        reader.submit(one)
    got = [reader.take_completed(wait=True) for _ in sent]
    assert {one.key for one in got if one} == {one.key for one in sent}
    for one in sent:
        assert one.error is None
        for i, part in enumerate(one.ranges):
            end = part.offset + part.num_bytes
            assert bytes_of(one, i) == content[part.offset : end].tobytes()
    assert reader.take_completed(wait=False) is None


@pytest.mark.parametrize("left", [0, 100, BLOCK_BYTES, 20 * BLOCK_BYTES + 5])
def test_a_truncated_file_is_one_line(path: Path, reader: FileReader, left: int) -> None:
    os.truncate(path, left)
    offset = 17 * BLOCK_BYTES + 40
    reader.submit(make_request(1, (offset, 8 * BLOCK_BYTES), name="blk.1.ffn_up_exps.weight"))
    reader.submit(make_request(2, (0, max(1, left))))
    failed, other = sorted(
        (reader.take_completed(wait=True), reader.take_completed(wait=True)), key=lambda t: t.key
    )
    line = str(failed.error)
    assert isinstance(failed.error, DiskError)
    assert line == (
        f"weights.gguf: tensor blk.1.ffn_up_exps.weight: cannot read {8 * BLOCK_BYTES} bytes"
        f" at offset {offset}: the file ends at {left}"
    )
    assert ("the file was changed" if left else "the file ends at 0") in str(other.error)


def test_the_disks_error_is_reported(
    path: Path, content: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = add_faults(monkeypatch)
    faults.fail(errno.EIO)
    reader = FileReader([path], num_threads=3)
    reader.submit(make_request(1, (100, 50), (100, 50)))  # either range may fail first
    assert str(reader.take_completed(wait=True).error) == (
        "weights.gguf: tensor blk.1.x: cannot read 50 bytes at offset 100: Input/output error"
    )
    faults.fail(0)
    reader.submit(make_request(2, (100, 50)))  # the threads are still alive
    assert bytes_of(reader.take_completed(wait=True), 0) == content[100:150].tobytes()
    reader.close()


def test_a_removed_file_can_still_be_read(
    path: Path, reader: FileReader, content: np.ndarray
) -> None:
    path.unlink()
    reader.submit(make_request(1, (3, 9000)))
    assert bytes_of(reader.take_completed(wait=True), 0) == content[3:9003].tobytes()


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"gone\.gguf: cannot be opened: No such file"):
        FileReader([tmp_path / "gone.gguf"])


def test_nothing_stays_in_the_page_cache(path: Path) -> None:
    pages = resident_pages(path)
    if pages is None:
        pytest.skip("no mincore here")
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    if resident_pages(path):
        pytest.skip("a file system in memory")
    reader = FileReader([path])
    reader.submit(make_request(1, (BLOCK_BYTES + 5, 30 * BLOCK_BYTES)))
    assert reader.take_completed(wait=True).error is None
    reader.close()
    assert resident_pages(path) <= 2


@pytest.fixture
def paused(
    path: Path, each_io: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[FileReader, Callable]]:
    """Open a reader of one range at a time; reads wait for the returned call."""
    faults = hold_reads(monkeypatch)
    reader = FileReader([path], num_threads=1)
    yield reader, faults.resume
    faults.resume()
    reader.close()


def has_started(reader: FileReader) -> bool:
    return reader.native.num_queued(True) == 1


def test_close_finishes_started_reads_only(
    paused: tuple[FileReader, Callable[[], None]], content: np.ndarray
) -> None:
    reader, resume = paused
    begun = make_request(0, (0, 10), (50, 10))
    reader.submit(begun)
    while not has_started(reader):
        pass
    closing = threading.Thread(target=reader.close)
    closing.start()
    queued: list[ReadRequest] = []

    def is_closed() -> bool:
        queued.append(make_request(len(queued) + 1, (0, 10)))
        with suppress(ShapeError):
            reader.submit(queued[-1])
            return False
        return True

    eventually(is_closed)
    resume()
    closing.join()
    reader.close()
    assert bytes_of(begun, 0) == content[:10].tobytes()
    assert not any(any(request.buffers[0]) for request in queued)


def test_memory_of_a_read_that_hangs_is_kept_until_it_returns(
    path: Path, each_io: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(file_reader, "CLOSE_S", 0.01)
    faults = add_faults(monkeypatch)
    faults.hang(1)
    reader, memory = FileReader([path]), Arena(BLOCK_BYTES)
    kept = weakref.ref(memory)
    reader.keep_alive(memory)
    reader.submit(make_request(1, (0, 10)))
    eventually(lambda: faults.num_hung == 1)
    del memory
    reader.close()
    del reader
    gc.collect()
    assert kept() is not None
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("hybridmoe: weights.gguf: the disk has not returned reads for 0.01 s")
    faults.resume()

    def is_freed() -> bool:
        FileReader([path]).close()
        return kept() is None

    eventually(is_freed)


def test_a_dropped_reader_frees_its_memory_and_files(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    reader, memory = FileReader([path]), Arena(BLOCK_BYTES)
    kept = weakref.ref(memory)
    reader.keep_alive(memory)
    reader.submit(make_request(1, (0, 10)))
    del memory, reader
    gc.collect()
    assert kept() is None
    assert len(os.listdir("/proc/self/fd")) == before


def test_files_on_several_disks_are_read_from_each(path: Path, content: np.ndarray) -> None:
    memory_disk = Path("/dev/shm")
    if not memory_disk.is_dir() or memory_disk.stat().st_dev == path.stat().st_dev:
        pytest.skip("one disk here")
    with tempfile.TemporaryDirectory(dir=memory_disk) as folder:
        copy = Path(folder) / "other.gguf"
        copy.write_bytes(content.tobytes())
        reader = FileReader([path, copy], num_threads=3)
        assert " for each of 2 disks" in reader.backend
        request = make_request(1, (5, 100), (5, 100))
        request.ranges = [part._replace(file_index=i) for i, part in enumerate(request.ranges)]
        reader.submit(request)
        taken = reader.take_completed(wait=True)
        assert taken is request and taken.error is None
        assert bytes_of(taken, 0) == bytes_of(taken, 1) == content[5:105].tobytes()
        reader.close()


@pytest.mark.parametrize("name", ["threads", "uring", "auto"])
def test_the_read_backend_is_named(
    each_io: str, name: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if each_io == "threads" and name != "threads":
        pytest.skip("the other backend's")
    monkeypatch.setenv("HYBRIDMOE_IO", name)
    reader = FileReader([path], num_threads=3)
    if name == "threads":
        assert reader.backend == "3 threads (HYBRIDMOE_IO=threads)"
    elif name == "uring" or reader.native.is_direct:
        assert reader.backend == "io_uring"
    reader.close()
    reader = FileReader([path], piece_bytes=3 << 20)
    if name == "uring":
        assert reader.backend == "io_uring"
    elif name == "auto" and reader.native.is_direct:
        why = "matrices of 3.00 MiB cost them less than io_uring"
        assert reader.backend == f"4 threads ({why})"
    reader.close()
    refuse_direct_at_open(monkeypatch)
    reader = FileReader([path], num_threads=3)
    if name == "auto":
        assert reader.backend == "3 threads (the file system takes no direct reads)"
    reader.close()
