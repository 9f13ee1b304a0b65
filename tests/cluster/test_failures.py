"""Ranks that die or err: one line, no wrong token, and the next response is right."""

import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from ranks import SHARES, WorkerThread, pooled, start_worker
from waiting import eventually

import hybridmoe
from hybridmoe.cluster import worker as worker_module
from hybridmoe.cluster.link import Link
from hybridmoe.cluster.message import Header, Kind
from hybridmoe.cluster.pooled_experts import Remote
from hybridmoe.cluster.rendezvous import MeetingPlace
from hybridmoe.errors import ClusterError, ConfigError, DiskError, HybridMoeError
from hybridmoe.experts.backend import CpuExperts

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 40, "ignore_eos": True}


@pytest.fixture
def llm(path: Path, place: MeetingPlace, worker: WorkerThread) -> Iterator[hybridmoe.LLM]:
    with pooled(path, place, SHARES, device="cpu", context_tokens=256) as llm:
        yield llm


def respond(llm: hybridmoe.LLM) -> list[int]:
    return llm.generate("Once upon a time", **GREEDY).token_ids


def test_a_killed_worker_ends_the_response_and_comes_back(path: Path, place: MeetingPlace) -> None:
    process = start_worker(path, place, 1)
    with pooled(path, place, SHARES, device="cpu", context_tokens=4096) as llm:
        right = respond(llm)
        stream = llm.generate(
            "Once", temperature=0.0, max_tokens=4000, ignore_eos=True, stream=True
        )
        with pytest.raises(HybridMoeError, match=r"^rank 1 \(.*\) is away: its connection is clo"):
            for i, _ in enumerate(stream):
                if i == 3:
                    process.send_signal(signal.SIGKILL)
        eventually(lambda: llm.engine.outage is not None)
        assert re.match(r"rank 1 \(.*\) is away", str(llm.engine.outage))
        with pytest.raises(ClusterError, match="is away"):
            respond(llm)
        process.communicate()
        again = start_worker(path, place, 1)
        eventually(lambda: llm.engine.outage is None)
        assert respond(llm) == right
    assert again.communicate()[1].count("\n") == 1
    assert again.returncode == 0


def test_an_error_of_a_worker_ends_the_step_alone(
    llm: hybridmoe.LLM, worker: WorkerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = respond(llm)
    compute, num_calls = worker_module._compute, 0

    def fail_once(*arguments: Any) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 5:
            raise DiskError("x.gguf: a bad\nsector")
        compute(*arguments)

    monkeypatch.setattr(worker_module, "_compute", fail_once)
    with pytest.raises(HybridMoeError, match=r"^rank 1 \(.*\): x.gguf: a bad sector$"):
        respond(llm)
    assert llm.engine.outage is None
    assert respond(llm) == right


def test_a_connection_lost_while_a_worker_computes_is_made_again(
    llm: hybridmoe.LLM, worker: WorkerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = respond(llm)
    compute, experts = worker_module._compute, cast(Any, llm.experts)
    (remote,) = experts._remotes

    def lose(*arguments: Any) -> None:
        remote.link.fail("rank 1 is away: cut")
        time.sleep(0.1)  # for the news
        compute(*arguments)

    monkeypatch.setattr(worker_module, "_compute", lose)
    with pytest.raises(HybridMoeError, match=r"^rank 1 is away: cut$"):
        respond(llm)
    monkeypatch.setattr(worker_module, "_compute", compute)
    eventually(lambda: len(worker.said) == 2 and llm.engine.outage is None)
    assert worker.said[1].endswith("its connection is closed; joining again")
    assert respond(llm) == right


def test_a_worker_that_is_interrupted_ends_while_it_waits_for_requests(
    path: Path, place: MeetingPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat, is_interrupted = Link.beat, threading.Event()

    def beat_or_stop(self: Link, *, is_first: bool) -> None:
        if is_first:
            beat(self, is_first=True)
        else:
            is_interrupted.wait()
            raise ConfigError("stands for KeyboardInterrupt")

    monkeypatch.setattr(Link, "beat", beat_or_stop)
    worker = WorkerThread(path, place, 1, expert_share=SHARES)
    with pooled(path, place, SHARES, device="cpu", context_tokens=256) as llm:
        is_interrupted.set()
        worker.join()
        assert isinstance(worker.error, ConfigError)
        eventually(lambda: "its connection is closed" in str(llm.engine.outage))


def test_an_error_of_rank_0_leaves_no_reply_for_the_next_step(
    llm: hybridmoe.LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = respond(llm)
    submit, num_calls = CpuExperts.submit, 0

    def fail_once(self: CpuExperts, *arguments: Any) -> Any:
        nonlocal num_calls
        if threading.current_thread().name == "hybridmoe-engine":
            num_calls += 1
            if num_calls in (5, 6):
                raise DiskError("x.gguf: a bad sector")
        return submit(self, *arguments)

    monkeypatch.setattr(CpuExperts, "submit", fail_once)
    for _ in range(2):
        with pytest.raises(HybridMoeError, match=r"^x.gguf: a bad sector$"):
            respond(llm)
    assert respond(llm) == right


def test_a_malformed_reply_ends_the_connection(
    llm: hybridmoe.LLM, worker: WorkerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = respond(llm)
    send, num_sums = Link.send, 0

    def send_wrong(self: Link, header: Header, line: str = "") -> None:
        nonlocal num_sums
        if header.kind is Kind.SUM:
            num_sums += 1
            header = header._replace(layer=header.layer + (num_sums == 3))
        send(self, header, line)

    monkeypatch.setattr(Link, "send", send_wrong)
    with pytest.raises(HybridMoeError, match=r"^rank 1 \(.*\): malformed message: Header\(kind"):
        respond(llm)
    eventually(lambda: len(worker.said) == 2 and llm.engine.outage is None)
    assert worker.said[1].endswith("joining again")
    assert respond(llm) == right


@pytest.mark.parametrize(
    ("layer", "expert", "problem"),
    [(0, 0, "layer 0 has no experts"), (1, 4, "ids from -1 to 4"), (1, -2, "ids from -2 to -1")],
)
def test_a_malformed_request_ends_the_connection(
    llm: hybridmoe.LLM, worker: WorkerThread, layer: int, expert: int, problem: str
) -> None:
    experts: Any = llm.experts
    experts.begin_step(1)
    (remote,) = experts._remotes
    assert isinstance(remote, Remote)
    frame = remote.link.outgoing
    frame.request(1).ids[:] = [[expert, -1]]
    header = remote.link.request(Header(Kind.REQUEST, layer, 1, 1, 1))
    with pytest.raises(ClusterError, match="its connection is closed"):
        remote.link.take_sum(header)
    eventually(lambda: len(worker.said) == 2 and llm.engine.outage is None)
    assert f"malformed request: {problem}" in worker.said[1]
    assert len(respond(llm)) == 40
