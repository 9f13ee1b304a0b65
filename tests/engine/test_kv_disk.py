"""KV cache on disk: nothing but right tokens comes back, whatever happens to the files."""

import errno
import logging
import os
import shutil
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from engine_run import MakeEngine, Running, request, run
from hash_model import MODEL
from hash_run import HashRun
from waiting import eventually

from hybridmoe.config import EngineConfig
from hybridmoe.device.cpu import CpuDevice
from hybridmoe.engine import kv_disk
from hybridmoe.engine.kv_disk_files import PageFolder, chain_hash, page_files
from hybridmoe.engine.kv_rows import RowLayout
from hybridmoe.errors import ConfigError
from hybridmoe.option import FolderLimit

IDS = [i * 7 % 3 for i in range(300)]  # for HashModel; four pages and a part of a fifth
PAGE_BYTES = 48 + 64 * (4 + 2 * 576 * 4)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def computed(folder: Path, ids: Sequence[int] = IDS, **options: Any) -> None:
    """Compute a prompt, and write its pages."""
    run = HashRun(folder, **options)
    run.respond(list(ids), 1)
    assert run.close().errors == 0


@pytest.mark.parametrize("kv_type", ["f16", "int8"])
def test_a_second_engine_gives_the_same_bits_without_a_prefill(
    make: MakeEngine, tmp_path: Path, kv_type: str
) -> None:
    options = {"kv_disk": f"{tmp_path / 'made' / 'kv'}=1GiB", "kv_type": kv_type}
    ids = [i * 7 % 250 for i in range(150)]
    first = make(**options)
    (cold,) = run(first, request(ids, 30, top_logprobs=5))
    assert cold.end.usage.disk_tokens == 0
    first.close()
    second = make(**options)
    (warm,) = run(second, request(ids, 30, top_logprobs=5))
    assert warm.end.usage.cached_tokens == warm.end.usage.disk_tokens == 149
    assert warm.progress[-1].cached_tokens == 149
    assert [(t.token_id, t.logprob, t.top) for t in warm.tokens] == [
        (t.token_id, t.logprob, t.top) for t in cold.tokens
    ]
    stats = second.stats()
    assert stats.cached_tokens == 149 and stats.prompt_tokens == 1
    assert stats.kv_disk is not None and stats.kv_disk.loaded_tokens == 149
    longer = [*ids, *cold.ids]  # the conversation goes on: the response was written, too
    (third,) = run(make(**options), request(longer, 1))
    assert third.end.usage.disk_tokens == len(longer) - 1


@pytest.mark.parametrize("num_common", [0, 1, 64, 100, 128, 290, 299])
def test_a_prefix_is_found_up_to_its_last_token(tmp_path: Path, num_common: int) -> None:
    computed(tmp_path)
    other = [*IDS[:num_common], *((i + 1) % 3 for i in IDS[num_common:])]
    again = HashRun(tmp_path)
    assert again.respond(other).cached_tokens == num_common
    assert again.respond(other).cached_tokens == 299  # in memory now
    again.close()


def test_what_is_in_memory_is_not_read_and_what_is_on_disk_is_not_written_again(
    tmp_path: Path,
) -> None:
    computed(tmp_path, IDS[:200])
    again = HashRun(tmp_path)
    usage = again.respond(IDS[:130], 1)
    assert (usage.cached_tokens, usage.disk_tokens) == (129, 129)
    usage = again.respond(IDS, 1)
    assert (usage.cached_tokens, usage.disk_tokens) == (200, 70)
    stats = again.close()
    assert stats.written_pages == 3  # the third of 130 tokens, the fourth, the fifth of 300
    assert stats.num_bytes == sum(path.stat().st_size for path in files(tmp_path))


@pytest.mark.parametrize("other", [{"model": "other"}, {"devices": [CpuDevice(), CpuDevice()]}])
def test_pages_are_of_one_model_but_of_any_device(tmp_path: Path, other: dict[str, Any]) -> None:
    computed(tmp_path)
    again = HashRun(tmp_path, **other)
    assert again.respond(IDS).disk_tokens == (0 if "model" in other else 299)
    again.close()


def test_pages_of_gpus_are_kept_too(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="needs triton")
    from two_gpus import two_devices

    for expected in (0, 299):
        gpus = HashRun(tmp_path, devices=two_devices(), kv_type="f16")
        assert gpus.respond(IDS).disk_tokens == expected
        gpus.close()


def flipped(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


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


def test_a_page_under_anothers_name_is_not_used(tmp_path: Path) -> None:
    computed(tmp_path)
    whole = [path for path in files(tmp_path) if path.stat().st_size == PAGE_BYTES]
    contents = [path.read_bytes() for path in whole]
    for path, content in zip(whole, [*contents[1:], contents[0]], strict=True):
        path.write_bytes(content)
    again = HashRun(tmp_path)
    assert again.respond(IDS).disk_tokens == 0
    again.close()


def held(folder: Path, ids: Sequence[int]) -> int:
    """Number of pages on disk from the first on."""
    pages = PageFolder(folder, "hash f32 2 2304", RowLayout.of(MODEL, "f32"))
    parent, num_pages = pages.root_hash, 0
    while pages.read(parent, page := ids[num_pages * 64 : num_pages * 64 + 64]) is not None:
        parent, num_pages = chain_hash(parent, page), num_pages + 1
    return num_pages


def test_the_least_recently_used_pages_go_and_of_a_sequence_the_last(tmp_path: Path) -> None:
    limit = 12 * PAGE_BYTES
    run = HashRun(tmp_path, limit, num_tokens=2048)  # all pages stay in memory
    prompts = [[i % 3, *IDS[:255]] for i in range(3)]
    for prompt in [*prompts, prompts[0]]:  # four pages each
        run.respond(prompt, 1)
        assert run.disk.flush(60)
    assert [held(tmp_path, prompt) for prompt in prompts] == [4, 4, 4]
    run.respond(IDS[::-1], 1)
    stats = run.close()
    assert stats.num_bytes <= limit and stats.evicted_pages > 0
    assert stats.num_bytes == sum(path.stat().st_size for path in files(tmp_path))
    assert held(tmp_path, IDS[::-1]) == 5 and held(tmp_path, prompts[0]) == 4
    assert held(tmp_path, prompts[1]) == 0 < held(tmp_path, prompts[2]) < 4


def test_of_a_sequence_above_the_limit_the_first_pages_stay(tmp_path: Path) -> None:
    run = HashRun(tmp_path, 5 * PAGE_BYTES)
    for _ in range(2):
        run.respond(IDS * 3, 1)
        assert run.disk.flush(60)
    stats = run.close()
    assert stats.num_bytes <= 5 * PAGE_BYTES and stats.dropped_pages > 0
    assert held(tmp_path, IDS * 3) >= 4


def test_a_folder_above_its_limit_shrinks_at_the_start(tmp_path: Path) -> None:
    computed(tmp_path)
    stale = files(tmp_path)[0].with_name("0" * 32 + "-" + "1" * 32 + ".0123abcd.tmp")
    stale.write_bytes(b"half")
    os.utime(stale, (0, 0))
    foreign = tmp_path / "notes.txt"
    foreign.write_bytes(bytes(1 << 20))
    run = HashRun(tmp_path, 2 * PAGE_BYTES)
    assert run.disk.flush(60)
    assert run.close().num_bytes <= 2 * PAGE_BYTES
    left = files(tmp_path)
    assert foreign in left and stale not in left
    left.remove(foreign)
    assert sum(path.stat().st_size for path in left) <= 2 * PAGE_BYTES


def test_the_files_are_the_users_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    computed(folder)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files(folder)} == {0o600}
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}


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


def test_two_engines_share_a_folder(make: MakeEngine, tmp_path: Path) -> None:
    engines = [make(kv_disk=f"{tmp_path}=1GiB") for _ in range(2)]
    requests = [request([*range(100), *range(i, i + 80)], 10) for i in range(12)]
    plain = [response.ids for response in run(make(), *requests)]
    runs = [[Running(engine, r) for r in requests] for engine in engines]
    for running in runs:
        assert [one.wait().ids for one in running] == plain
    for engine in engines:
        engine.close()
        stats = engine.stats().kv_disk
        assert stats is not None and stats.errors == 0
    assert len({file.path for file in page_files(tmp_path)}) == len(files(tmp_path)) > 12


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("folder", "expected a folder and its size, such as DIR=20GiB"),
        ("=20GiB", "expected a folder and its size"),
        ("folder=much", "expected a size such as 12GiB"),
        ("folder=0", "expected a size of 1 byte or more"),
        (5, "expected a folder and its size"),
    ],
)
def test_unusable_values_are_refused(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^kv_disk=.*{message}"):
        EngineConfig(context_tokens=10, kv_disk=value)


def test_a_folder_is_a_path_and_bytes(make: MakeEngine, tmp_path: Path) -> None:
    config = EngineConfig(context_tokens=10, kv_disk="a=b=2KiB")  # type: ignore[arg-type]
    assert config.kv_disk == FolderLimit(Path("a=b"), 2048)
    assert EngineConfig(context_tokens=10, kv_disk=config.kv_disk).kv_disk == config.kv_disk
    with pytest.raises(ConfigError, match=r"expected at least .*KiB, two pages of 64 tokens$"):
        make(kv_disk=(tmp_path, 1024))
