"""Disks that fail, hang or change in mid-run: one line or the same bits later, and no leaks."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from engine_run import request, run
from gguf import GGMLQuantizationType as Type
from read_faults import add_faults, add_hangs, check_every_step
from tiny_gguf import write_tiny
from waiting import eventually

import hybridmoe
from hybridmoe import _C
from hybridmoe.engine.request import Finished, TokenEvent
from hybridmoe.errors import DiskError, StalledReadError
from hybridmoe.experts.disk.cached_experts import CachedExperts
from hybridmoe.placement import placer, ram

pytestmark = pytest.mark.usefixtures("each_io", "exact_kernels")

PROMPTS = [[5 + i, 9, 3 * i + 1] for i in range(3)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "tiny.gguf"
    write_tiny(path, type=Type.Q8_0, layers=4)
    return path


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, each_io: str) -> Iterator[_C.ReadFaults]:
    disk = add_hangs(monkeypatch)
    yield disk
    disk.release()


@pytest.fixture(autouse=True)
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    check_every_step(monkeypatch)


def open_cached(path: Path, **options: Any) -> hybridmoe.LLM:
    """Open the model with fewer slots than experts."""
    llm = hybridmoe.load(path, context_tokens=256, expert_ram="2MiB", **options)
    assert isinstance(llm.experts, CachedExperts)
    assert 0 < llm.experts.plan.num_slots < 12
    return llm


def answers(llm: hybridmoe.LLM) -> list[Any]:
    return [answer.ids for answer in run(llm.engine, *(request(p, 8) for p in PROMPTS))]


@pytest.fixture(scope="module")
def whole(path: Path) -> list[Any]:
    with hybridmoe.load(path, context_tokens=256) as llm:
        return answers(llm)


class Asked:
    """One request under way."""

    def __init__(self, llm: hybridmoe.LLM, prompt: list[int]) -> None:
        self._events: SimpleQueue[Any] = SimpleQueue()
        self.handle = llm.engine.submit(request(prompt, 8), self._events.put)
        self.ids: list[int] = []

    def finish(self) -> Finished:
        while not isinstance(event := self._events.get(), Finished):
            if isinstance(event, TokenEvent):
                self.ids.append(event.token_id)
        return event


def test_a_request_can_be_cancelled_while_the_disk_hangs_and_others_lose_nothing(
    path: Path, whole: list[Any], disk: _C.ReadFaults
) -> None:
    with open_cached(path, expert_prefetch=1) as llm:
        disk.hang()
        first, second, third = (Asked(llm, prompt) for prompt in PROMPTS)
        eventually(lambda: disk.num_hung > 0)
        second.handle.cancel()
        assert second.finish().reason == "cancelled"
        disk.resume()
        assert first.finish().reason == third.finish().reason == "length"
        assert [first.ids, third.ids] == [whole[0], whole[2]]
        assert answers(llm) == whole


def test_nothing_waits_for_a_disk_that_hangs_when_the_model_is_closed(
    path: Path, disk: _C.ReadFaults, caplog: pytest.LogCaptureFixture
) -> None:
    llm = open_cached(path)
    disk.hang()
    asked = Asked(llm, PROMPTS[0])
    eventually(lambda: disk.num_hung > 0)
    llm.close()
    assert asked.finish().reason == "cancelled"
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("hybridmoe: tiny.gguf: the disk has not returned reads for ")
    assert "\n" not in line


def test_logits_end_with_one_line(path: Path, disk: _C.ReadFaults) -> None:
    llm = open_cached(path)
    disk.hang()
    caught: SimpleQueue[BaseException] = SimpleQueue()

    def ask() -> None:
        try:
            llm.logits([5, 9, 1])
        except BaseException as error:
            caught.put(error)

    thread = threading.Thread(target=ask)
    thread.start()
    eventually(lambda: disk.num_hung > 0)
    llm.close()
    thread.join()
    error = caught.get()
    assert isinstance(error, StalledReadError)
    assert str(error).startswith("no read has returned for ")


def test_loading_can_be_given_up_while_the_disk_hangs(path: Path, disk: _C.ReadFaults) -> None:
    class GivenUp(Exception):
        pass

    def progress(step: hybridmoe.Progress) -> None:
        if disk.num_hung:
            raise GivenUp
        if step.phase == "load":
            disk.hang()

    with pytest.raises(GivenUp):
        hybridmoe.load(path, context_tokens=256, expert_ram="2MiB", progress=progress)


@pytest.mark.parametrize("error", [0, errno.ENOMEM, errno.EPERM, errno.EOPNOTSUPP])
@pytest.mark.parametrize("num_good", [40, 97])
def test_threads_go_on_where_io_uring_fails(
    path: Path,
    whole: list[Any],
    error: int,
    num_good: int,
    each_io: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if each_io != "uring":
        pytest.skip("io_uring's")
    faults = add_faults(monkeypatch)
    with open_cached(path, expert_prefetch=1) as llm:
        assert llm.expert_reads == "io_uring"
        faults.fail_rings(num_good, error)
        assert answers(llm) == whole
        why = os.strerror(error) if error else "io_uring_enter: Bad address"
        assert llm.expert_reads == f"4 threads (io_uring failed: {why})"
        assert answers(llm) == whole
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"hybridmoe: io_uring failed ({why}): experts are read by threads"


def test_random_errors_fail_requests_alone_and_leak_nothing(
    path: Path, whole: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = add_faults(monkeypatch)
    num_failed = 0
    with open_cached(path, expert_prefetch=2) as llm:
        for i in range(40):
            faults.fail(errno.EIO, (0.0, 0.01, 0.1, 0.5)[i % 4])
            asked = Asked(llm, PROMPTS[i % 3])
            end = asked.finish()
            if end.reason == "error":
                num_failed += 1
                assert end.error is not None
                assert end.error.startswith("tiny.gguf: tensor blk."), end.error
                assert end.error.endswith("Input/output error"), end.error
            else:
                assert asked.ids == whole[i % 3]
        faults.fail(0)
        assert answers(llm) == whole
        assert isinstance(llm.experts, CachedExperts)
        llm.experts.native.check()
    assert 10 <= num_failed < 40


def test_a_file_that_is_written_to_is_noticed_and_one_that_is_replaced_is_not_read(
    path: Path, whole: list[Any], tmp_path: Path
) -> None:
    copy, other = tmp_path / "copy.gguf", tmp_path / "other.gguf"
    content = path.read_bytes()
    copy.write_bytes(content)
    other.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    os.utime(copy, ns=(1, 1))
    with open_cached(copy) as llm:
        copy.rename(tmp_path / "old.gguf")
        other.rename(copy)
        assert answers(llm) == whole
        with open(tmp_path / "old.gguf", "r+b") as file:
            file.seek(-100, os.SEEK_END)
            file.write(bytes(100))
        ends = [Asked(llm, prompt).finish() for prompt in PROMPTS]
        assert {end.reason for end in ends} == {"error"}
        for end in ends:
            assert str(end.error).startswith("copy.gguf: tensor blk.")
            assert str(end.error).endswith(
                "the file was changed after it was opened; load it again"
            )


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_file_that_changes_after_its_header_was_read_is_not_loaded(
    path: Path, is_replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, other = tmp_path / "copy.gguf", tmp_path / "other.gguf"
    for file in (copy, other):
        file.write_bytes(path.read_bytes())
        os.utime(file, ns=(1, 1))
    really_read = ram.read_weights

    def read_weights(*arguments: Any, **options: Any) -> Any:
        if is_replaced:
            other.rename(copy)
        else:
            os.utime(copy, ns=(2, 2))
        return really_read(*arguments, **options)

    monkeypatch.setattr(placer, "read_weights", read_weights)
    with pytest.raises(DiskError, match=r"^copy\.gguf: the file was changed while it was loaded"):
        open_cached(copy)
