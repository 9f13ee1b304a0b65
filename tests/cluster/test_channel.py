"""Handshake of two ranks: both prove the secret, lose nothing, and notice what is not theirs."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from ranks import hello

from hybridmoe.cluster import channel as channel_module
from hybridmoe.cluster.agreement import Hello, Secret, Terms
from hybridmoe.cluster.channel import (
    Channel,
    DismissedError,
    OtherKeyError,
    StrangerError,
    Visit,
    Word,
    let_in,
    show_up,
)
from hybridmoe.errors import ClusterError

SECRET = Secret(b"the secret of this cluster")
HELLO = hello(num_ranks=4)


def greet(theirs: Secret = SECRET) -> tuple[Any, Any]:
    """Greetings of rank 0 and of a worker: a result each, or an error."""
    ends, found = socket.socketpair(), [None, None]

    def be(index: int, act: Any) -> None:
        try:
            found[index] = act()
        except Exception as error:
            found[index] = error

    tasks = (
        lambda: let_in(ends[0], SECRET),
        lambda: show_up(ends[1], theirs, 3, HELLO, "rank 0"),
    )
    threads = [threading.Thread(target=be, args=pair) for pair in enumerate(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found[0], found[1]


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    visit, worker = greet()
    assert isinstance(visit, Visit) and isinstance(worker, Channel)
    yield visit.channel, worker
    for channel in (visit.channel, worker):
        channel.leave()
        channel.join()


def test_both_prove_the_secret_and_words_arrive_in_order(pair: tuple[Channel, Channel]) -> None:
    rank_0, worker = pair
    assert rank_0.peer == "rank 3 (b)" and worker.peer == "rank 0"
    for number in range(300):
        rank_0.say(Word.ADDRESS, bytes([number % 256]) * 200)
    for number in range(300):
        assert worker.hear() == (Word.ADDRESS, bytes([number % 256]) * 200)
    worker.say(Word.READY)
    assert rank_0.hear() == (Word.READY, b"")
    assert rank_0.hear(until=lambda: True) is None


def test_another_secret_is_noticed_by_both() -> None:
    rank_0, worker = greet(Secret(b"another secret than that"))
    assert isinstance(rank_0, OtherKeyError) and rank_0.args == (3,)
    assert isinstance(worker, OtherKeyError)


def test_a_last_word_arrives_although_signs_of_life_are_unread(
    pair: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "_PULSE_S", 0.0)
    rank_0, worker = pair
    rank_0.leave(Word.FAREWELL)
    assert worker.hear() == (Word.FAREWELL, b"")
    with pytest.raises(ClusterError, match=r"^rank 0 is away: its connection is closed$"):
        worker.hear()
    with pytest.raises(DismissedError):
        rank_0.hear()
    worker.leave()
    began_s = time.monotonic()
    rank_0.join()
    assert time.monotonic() - began_s < channel_module._LEAVE_S


def test_an_end_that_shows_no_life_counts_as_dead(
    pair: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "_PULSE_S", 1000.0)
    monkeypatch.setattr(channel_module, "_SILENCE_S", 0.3)
    for channel in pair:
        with pytest.raises(ClusterError, match=r"is away: (no sign of life for 0.3 s|its conn)"):
            channel.hear()


@pytest.mark.parametrize("change", ["flip", "swap", "repeat", "replay"])
def test_what_the_other_end_did_not_say_ends_the_channel(change: str) -> None:
    """Play the man in the middle, without the secret."""
    found: list[Visit] = []

    def be_worker(end: socket.socket) -> None:
        channel = show_up(end, SECRET, 3, HELLO, "rank 0")
        channel.say(Word.READY, b"one")
        channel.say(Word.READY, b"two")
        with contextlib.suppress(ClusterError):
            channel.hear()
        channel.leave()
        channel.join()

    def message(source: socket.socket) -> bytes:
        length = source.recv(4, socket.MSG_WAITALL)
        return length + source.recv(struct.unpack("<I", length)[0], socket.MSG_WAITALL)

    worker_end, to_worker = socket.socketpair()
    rank_0_end, to_rank_0 = socket.socketpair()
    threads = [
        threading.Thread(target=be_worker, args=(worker_end,)),
        threading.Thread(target=lambda: found.append(let_in(rank_0_end, SECRET))),
    ]
    with to_worker, to_rank_0:
        for thread in threads:
            thread.start()
        to_rank_0.sendall(to_worker.recv(28, socket.MSG_WAITALL))
        to_worker.sendall(to_rank_0.recv(56, socket.MSG_WAITALL))
        hello = message(to_worker)
        to_rank_0.sendall(hello)
        first, second, _ = (message(to_worker) for _ in range(3))
        changed = {
            "flip": first[:-1] + bytes([first[-1] ^ 1]),
            "swap": second + first,
            "repeat": first + first,
            "replay": hello,
        }[change]
        to_rank_0.sendall(changed)
        threads[1].join()
        channel = found[0].channel
        with pytest.raises(ClusterError, match=r"^rank 3 \(b\): malformed handshake: message \d$"):
            while True:
                (word, body) = channel.hear() or (None, b"")
                assert word is Word.READY and body == {"repeat": b"one"}.get(change, body)
        channel.leave()
        channel.join()
    threads[0].join()


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"GET / HTTP/1.1\r\n\r\n" * 9, StrangerError),
        (struct.pack("<8sI16s", b"hmJOIN\r\n", 1, b"x" * 16) + b"\xff" * 9, StrangerError),
        (struct.pack("<8sI16s", b"hmJOIN\r\n", 1, b"x" * 16) + b"\x20\0\0\0" + b"x" * 32,
         OtherKeyError),
        (b"hmJOIN\r\n", TimeoutError),
        (b"", TimeoutError),
        (None, ConnectionResetError),
    ],
)  # fmt: skip
def test_strangers_are_left_within_the_time_for_an_answer(
    sent: bytes | None, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "ANSWER_S", 0.2)
    stranger, own = socket.socketpair()
    with stranger:
        if sent is None:
            stranger.shutdown(socket.SHUT_WR)
        else:
            stranger.sendall(sent)
        with pytest.raises(error):
            let_in(own, SECRET)
    assert own.fileno() == -1


def test_a_rank_0_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "ANSWER_S", 0.2)
    silent, own = socket.socketpair()
    with silent, pytest.raises(TimeoutError):
        show_up(own, SECRET, 1, HELLO, "rank 0")
    assert own.fileno() == -1


def test_a_hello_of_another_version_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hello, "encode", lambda self: b'{"protocol": 9}')
    rank_0, worker = greet()
    assert isinstance(worker, Channel)
    line = "rank 3: malformed handshake: expected fields protocol, version"
    assert isinstance(rank_0, ClusterError) and str(rank_0).startswith(line)
    word, body = worker.hear() or (None, b"")
    assert word is Word.TERMS and Terms.decode(body).refusal == str(rank_0)
    assert str(rank_0).endswith(": install the same version of hybridmoe")
    worker.leave()
    worker.join()
