"""Faults of a KV cache on disk: damaged pages, folders that cannot be used, slow and full disks."""

import errno
import logging
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from engine_run import MakeEngine, Running, request, run
from hash_model import MODEL
from hash_run import IDS, PAGE_BYTES, HashRun, computed, files
from waiting import eventually

from hybridmoe.engine import kv_disk
from hybridmoe.engine.kv_disk_files import DamagedPageError, PageFolder
from hybridmoe.engine.kv_rows import RowLayout


def flipped(at: int) -> Callable[[bytes], bytes]:
    def flip(data: bytes) -> bytes:
        found = bytearray(data)
        found[at] ^= 1
        return bytes(found)

    return flip


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "no header": lambda data: data[:20],
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"x",
    "zeros": lambda data: bytes(len(data)),
    "magic": flipped(0),
    "checksum": flipped(8),
    "count": lambda data: data[:12] + b"\xff\xff\xff\xff" + data[16:],
    "parent": flipped(20),
    "ids": flipped(48),
    "rows": flipped(-1),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_page_is_a_warning_and_computed_again(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    computed(tmp_path)
    for path in files(tmp_path):
        path.write_bytes(damage(path.read_bytes()))
    again = HashRun(tmp_path)
    assert again.respond(IDS).disk_tokens == 0
    assert again.disk.flush(60)
    assert again.disk.stats().written_pages == 5
    again.respond(IDS)
    stats = again.close()
    assert stats.errors > 0
    assert stats.written_pages == 6  # of the last, shorter one the sequence has a copy
    (record,) = caplog.records
    assert "damaged" in record.message and "\n" not in record.message
    last = HashRun(tmp_path)
    assert last.respond(IDS).disk_tokens == 299  # written anew
    last.close()


def test_a_page_that_is_written_anew_while_a_damaged_one_is_read_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed(tmp_path)
    folder = PageFolder(tmp_path, "hash f32 2 2304", RowLayout.of(MODEL, "f32"))
    first = folder.root_hash.hex()[:32]
    (path,) = (path for path in files(tmp_path) if path.name.startswith(first))
    whole, beside, checksum = path.read_bytes(), tmp_path / "beside", zlib.crc32
    path.write_bytes(flipped(-1)(whole))
    beside.write_bytes(whole)

    def write_anew(*args: Any) -> int:
        beside.replace(path)
        return checksum(*args)

    monkeypatch.setattr(zlib, "crc32", write_anew)
    with pytest.raises(DamagedPageError):
        folder.read(folder.root_hash, IDS[:64])
    monkeypatch.undo()
    assert folder.read(folder.root_hash, IDS[:64]) is not None


def test_a_page_under_anothers_name_is_not_used(tmp_path: Path) -> None:
    computed(tmp_path)
    whole = [path for path in files(tmp_path) if path.stat().st_size == PAGE_BYTES]
    contents = [path.read_bytes() for path in whole]
    for path, content in zip(whole, [*contents[1:], contents[0]], strict=True):
        path.write_bytes(content)
    again = HashRun(tmp_path)
    assert again.respond(IDS).disk_tokens == 0
    again.close()


def _open_to_all(folder: Path) -> None:
    folder.chmod(0o777)


def _open_inside(folder: Path) -> None:
    next(folder.glob("kv-*")).chmod(0o770)


def _a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"")


@pytest.mark.parametrize("change", [_open_to_all, _open_inside, _a_file])
def test_a_folder_that_cannot_be_trusted_or_used_is_a_warning(
    tmp_path: Path, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "kv"
    computed(folder)
    change(folder)
    run = HashRun(folder)
    assert run.respond(IDS).disk_tokens == 0
    stats = run.close()
    assert (stats.written_pages, stats.read_bytes) == (0, 0)
    (record,) = caplog.records
    assert str(folder) in record.message


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_write_that_fails_is_a_warning(
    tmp_path: Path,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    computed(tmp_path, IDS[:200])
    before = len(files(tmp_path))

    def fail(*_: Any, **__: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(PageFolder, "_write", fail)
    run = HashRun(tmp_path)
    assert run.respond(IDS).disk_tokens == 200
    assert run.respond(IDS[::-1]).disk_tokens == 0
    stats = run.close()
    assert stats.written_pages == 0 and stats.errors == 1  # then it pauses
    (record,) = caplog.records
    wanted = "the disk is full" if number == errno.ENOSPC else os.strerror(number)
    assert wanted in record.message
    assert (len(files(tmp_path)) < before) == (number == errno.ENOSPC)  # makes space


def test_a_read_that_fails_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    computed(tmp_path)
    real = os.open

    def fail(path: Any, flags: int, *mode: int, **options: Any) -> int:
        if str(tmp_path) in str(path) and not flags & os.O_CREAT:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", fail)
    run = HashRun(tmp_path)
    assert run.respond(IDS).disk_tokens == 0
    assert run.close().errors > 0
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_folder_that_is_removed_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    run = HashRun(folder)
    run.respond(IDS, 1)
    assert run.disk.flush(60)
    shutil.rmtree(folder)
    for _ in range(2):  # the first finds the pages gone, the second writes them again
        run.respond(IDS, 1)
        assert run.disk.flush(60)
    stats = run.close()
    assert stats.errors == 0
    again = HashRun(folder)
    assert again.respond(IDS).disk_tokens == 299
    again.close()


def test_a_full_queue_drops_pages_and_offers_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = threading.Event()
    write = PageFolder.write

    def wait(*args: Any) -> int:
        assert may_write.wait(60)
        return write(*args)

    monkeypatch.setattr(PageFolder, "write", wait)
    monkeypatch.setattr("hybridmoe.engine.kv_disk_writer._QUEUE_BYTES", 0)
    monkeypatch.setattr("hybridmoe.engine.kv_disk_writer._QUEUE_PAGES", 2)
    run = HashRun(tmp_path)
    run.respond(IDS, 1)
    assert run.disk.stats().dropped_pages > 0
    may_write.set()
    for _ in range(4):
        assert run.disk.flush(60)
        run.respond(IDS, 1)
    run.close()
    again = HashRun(tmp_path)
    assert again.respond(IDS).disk_tokens == 299
    again.close()


def test_others_run_while_a_request_waits_for_the_disk_and_a_stall_ends_it(
    make: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"kv_disk": f"{tmp_path}=1GiB"}
    ids = [i * 7 % 250 for i in range(150)]
    first = make(**options)
    (wanted,) = run(first, request(ids, 5))
    first.close()
    is_reading, may_read = threading.Event(), threading.Event()
    read = PageFolder.read

    def wait(folder: PageFolder, parent: bytes, page: Sequence[int]) -> Any:
        if page[0] == ids[0] and page[1] == ids[1]:
            is_reading.set()
            assert may_read.wait(600)
        return read(folder, parent, page)

    monkeypatch.setattr(PageFolder, "read", wait)
    engine = make(**options)
    slow = Running(engine, request(ids, 5))
    assert is_reading.wait(600)
    (other,) = run(engine, request(ids[::-1], 20))  # runs to its end meanwhile
    assert len(other.ids) == 20 and slow.queue.empty()
    may_read.set()
    response = slow.wait()
    assert response.end.usage.disk_tokens == 149 and response.ids == wanted.ids
    may_read.clear()
    monkeypatch.setattr(kv_disk, "_STALL_S", 0.05)
    engine = make(**options)
    response = run(engine, request(ids, 5))[0]
    assert response.end.usage.disk_tokens == 0 and response.ids == wanted.ids
    may_read.set()


def test_a_request_that_waits_for_the_disk_can_be_cancelled(
    make: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_read = threading.Event()
    monkeypatch.setattr(PageFolder, "read", lambda *_: may_read.wait(600) and None)
    engine = make(kv_disk=f"{tmp_path}=1GiB")
    running = Running(engine, request(list(range(150)), 5))
    eventually(lambda: engine.stats().running == 1)
    running.handle.cancel()
    assert running.wait().end.reason == "cancelled"
    assert engine.stats().kv_pages_used == 0
    may_read.set()
