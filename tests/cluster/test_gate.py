"""Rank 0's gate: what strangers can take is bounded, and does not keep workers away."""

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ranks import free_port, hello
from waiting import eventually

from hybridmoe.cluster import channel as channel_module
from hybridmoe.cluster import gate as gate_module
from hybridmoe.cluster.agreement import Secret
from hybridmoe.cluster.channel import Visit, show_up
from hybridmoe.cluster.gate import Gate
from hybridmoe.cluster.rendezvous import MeetingPlace

SECRET = Secret(b"the secret of this cluster")
HELLO = hello()
FIRST = struct.pack("<8sI16s", b"hmJOIN\r\n", 1, b"x" * 16)


class Host:
    """Gate, and the visits that it has let in."""

    def __init__(self) -> None:
        self.place = MeetingPlace(0, 2, "127.0.0.1", free_port(), SECRET)
        self.visits: list[Visit] = []
        self.refused: list[int] = []
        self.gate = Gate(self.place, self._receive, self.refused.append)

    def _receive(self, visit: Visit) -> None:
        self.visits.append(visit)
        visit.channel.leave()
        visit.channel.join()

    def connect(self) -> socket.socket:
        return socket.create_connection((self.place.host, self.place.port), timeout=60)


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.gate.close()
    assert not any(thread.name == "hybridmoe-visit" for thread in threading.enumerate())


def memory_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_silent_strangers_do_not_keep_workers_away(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connect more than are borne at once, for longer than a test."""
    monkeypatch.setattr(channel_module, "ANSWER_S", 1000.0)
    with contextlib.ExitStack() as stack:
        strangers = [stack.enter_context(host.connect()) for _ in range(200)]
        show_up(host.connect(), SECRET, 1, HELLO, "rank 0").leave()
        eventually(lambda: len(host.visits) == 1)
        most = gate_module._MOST_STRANGERS
        assert len(host.gate._strangers) <= most
        eventually(lambda: len(host.gate._visits) <= most + 1)
        assert strangers[0].recv(1) == b""  # the oldest had to go


def test_strangers_cannot_fill_the_memory(host: Host) -> None:
    """As they could torch's store, by values of 8 MB without number."""
    before = memory_bytes()
    for first in (FIRST, FIRST + struct.pack("<I", 1 << 16), b""):
        for _ in range(40):
            with host.connect() as stranger, contextlib.suppress(OSError):
                stranger.sendall(first + b"x" * (8 << 20))
    eventually(lambda: not host.gate._strangers)
    assert memory_bytes() - before < 50 << 20
    assert not host.visits
    assert set(host.refused) <= {1}


def test_a_stranger_that_dribbles_is_left_after_the_time_for_an_answer(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "ANSWER_S", 0.5)
    with host.connect() as stranger, pytest.raises(OSError):
        for one in FIRST:
            stranger.sendall(bytes([one]))
            time.sleep(0.3)
    assert not host.visits


def test_an_end_does_not_wait_for_strangers(host: Host) -> None:
    with host.connect(), host.connect() as other:
        other.sendall(FIRST)
        eventually(lambda: len(host.gate._strangers) == 2)
        host.gate.close()
        assert not host.gate._visits
