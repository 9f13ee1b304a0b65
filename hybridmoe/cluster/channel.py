"""Connection of a handshake: a worker and rank 0 prove the secret to each other before all else.

    worker    magic · its rank · its random number
    rank 0    magic · code · rank 0's random number
    worker    length · code · its `Hello`
    both      length · code · word · body, as often as they like

Each code is of both numbers and of the message's place in its direction (agreement.py): nothing can
be made, replayed or left out without the secret. Both ends show every two seconds that they live.
"""

import contextlib
import secrets
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from enum import IntEnum
from queue import Empty, SimpleQueue
from typing import NamedTuple

from hybridmoe.cluster.agreement import Hello, Secret, Session, Terms
from hybridmoe.errors import ClusterError

__all__ = ["ANSWER_S", "Channel", "DismissedError", "OtherKeyError", "StrangerError", "Visit"]
__all__ += ["Word", "let_in", "show_up"]

ANSWER_S = 10.0  # for all of a greeting
_PULSE_S = 2.0  # between two signs of life
_SILENCE_S = 30.0  # of an end that may be reading its file, after which it counts as dead
_LEAVE_S = 5.0  # for the other end to take the last word
_SEND_S = 5.0
_TICK_S = 0.1
_MAGIC = b"hmJOIN\r\n"
_FIRST = struct.Struct("<8sI16s")
_SECOND = struct.Struct("<8s32s16s")
_LENGTH = struct.Struct("<I")
_MOST_BYTES = 1 << 16


class StrangerError(Exception):
    """The other end is no rank of a cluster."""


class OtherKeyError(Exception):
    """The other end has another secret; `args` has its rank."""


class DismissedError(Exception):
    """This end has said its last word."""


class Word(IntEnum):
    """Kinds of messages."""

    ALIVE = 0
    NOTE = 1  # a line for people, from rank 0
    TERMS = 2  # rank 0's `Terms`
    READY = 3  # the worker has placed its share; or a line on why it cannot
    ADDRESS = 4  # of gloo's sockets
    FAREWELL = 5  # rank 0 has ended in order
    ABORT = 6  # rank 0 does not go on, and another one may come; a line on why
    SUPERSEDED = 7  # another process of the same rank has come


class Channel:
    """Messages in both directions. Thread-safe; `hear` is one thread's."""

    def __init__(self, connection: socket.socket, session: Session, side: int, peer: str) -> None:
        """Take over a connection. side: 0 = rank 0. peer: name of the other end."""
        self.peer, self._session, self._side = peer, session, side
        self._connection = connection
        connection.settimeout(_SEND_S)
        self._num_sent = self._num_heard = 0
        self._sending = threading.Lock()
        self._incoming = bytearray()
        self._heard: SimpleQueue[tuple[Word, bytes]] = SimpleQueue()
        self._heard_s = time.monotonic()
        self._failure: str | None = None
        self._left_s: float | None = None
        self._thread = threading.Thread(target=self._run, name="hybridmoe-channel", daemon=True)
        self._thread.start()

    @property
    def own_address(self) -> str:
        """Address of the interface that this connection goes through."""
        return str(self._connection.getsockname()[0])

    def say(self, word: Word, body: bytes = b"") -> None:
        """Send a message. Errors: ClusterError if the other end is away."""
        with self._sending:
            place = self._place(self._side, self._num_sent)
            sealed = self._session.seal(place, bytes([word]) + body)
            self._num_sent += 1
            try:
                self._connection.sendall(_LENGTH.pack(len(sealed)) + sealed)
            except OSError as error:
                raise ClusterError(f"{self.peer} is away: {_why(error)}") from None

    def hear(self, until: Callable[[], bool] = lambda: False) -> tuple[Word, bytes] | None:
        """Wait for a message; None once `until` holds.

        Errors: ClusterError if the other end is away; DismissedError if this one has left.
        """
        while True:
            failure = self._failure  # behind which no message comes
            with contextlib.suppress(Empty):
                return self._heard.get(timeout=_TICK_S)
            if self._left_s is not None:
                raise DismissedError
            if failure is not None:
                raise ClusterError(failure)
            if until():
                return None

    def leave(self, word: Word | None = None, body: bytes = b"") -> None:
        """Say a last word, if any. The connection is closed once the other end has taken it."""
        if self._left_s is not None:
            return
        self._left_s = time.monotonic()
        with contextlib.suppress(ClusterError, OSError):
            if word is not None:
                self.say(word, body)
            self._connection.shutdown(socket.SHUT_WR)

    def join(self) -> None:
        """Wait until the connection is closed, after `leave`: seconds at most."""
        self._thread.join()

    def _run(self) -> None:
        """Read, and show that this end lives, until either has left."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        pulse_s = time.monotonic()
        with self._connection:
            try:
                while True:
                    if poll.poll(1000 * _TICK_S):
                        self._read()
                    elif self._is_over():  # with nothing to read: this end may have been stopped
                        return
                    now = time.monotonic()
                    if self._left_s is None and now >= pulse_s:
                        pulse_s = now + _PULSE_S
                        self.say(Word.ALIVE)
            except OSError as error:
                self._failure = f"{self.peer} is away: {_why(error)}"
            except ClusterError as error:
                self._failure = str(error)

    def _is_over(self) -> bool:
        """True once the time for a last word has passed. Errors: ClusterError after a silence."""
        now = time.monotonic()
        if self._left_s is not None:
            return now > self._left_s + _LEAVE_S
        if now > self._heard_s + _SILENCE_S:
            raise ClusterError(f"{self.peer} is away: no sign of life for {_SILENCE_S:g} s")
        return False

    def _read(self) -> None:
        found = self._connection.recv(_MOST_BYTES)
        if not found:
            raise ClusterError(f"{self.peer} is away: its connection is closed")
        self._incoming += found
        while len(self._incoming) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._incoming)
            end = _LENGTH.size + min(length, _MOST_BYTES)
            if len(self._incoming) < end:
                return
            place = self._place(1 - self._side, self._num_heard)
            body = self._session.open(place, bytes(self._incoming[_LENGTH.size : end]))
            if not body or body[0] not in Word.__members__.values():
                raise ClusterError(f"{self.peer}: malformed handshake: message {self._num_heard}")
            del self._incoming[:end]
            self._num_heard += 1
            self._heard_s = time.monotonic()
            if body[0] != Word.ALIVE:
                self._heard.put((Word(body[0]), body[1:]))

    @staticmethod
    def _place(side: int, number: int) -> str:
        return f"message {number} of {side}"


class Visit(NamedTuple):
    """Worker that has proved the secret to rank 0."""

    rank: int
    hello: Hello
    channel: Channel


def show_up(
    connection: socket.socket, secret: Secret, rank: int, hello: Hello, peer: str
) -> Channel:
    """Greet rank 0, as a worker. The connection is closed where this fails.

    peer: name of rank 0. Errors: OtherKeyError, StrangerError; OSError if it is away.
    """
    end_s = time.monotonic() + ANSWER_S
    number = secrets.token_bytes(16)
    with _closed_on_error(connection):
        _send(connection, _FIRST.pack(_MAGIC, rank, number))
        _, code, ours = _SECOND.unpack(_receive(connection, _SECOND, end_s))
        session = Session(secret, rank, number, ours)
        is_right = session.open("challenge", code + ours) is not None
        sealed = session.seal("hello", hello.encode() if is_right else b"")
        _send(connection, _LENGTH.pack(len(sealed)) + sealed)
        if not is_right:
            raise OtherKeyError(0)
        return Channel(connection, session, 1, peer)


def let_in(connection: socket.socket, secret: Secret) -> Visit:
    """Greet a worker, as rank 0. The connection is closed where this fails.

    Errors: OtherKeyError, StrangerError; ClusterError for a hello of another version; OSError.
    """
    end_s = time.monotonic() + ANSWER_S
    number = secrets.token_bytes(16)
    with _closed_on_error(connection):
        _, rank, theirs = _FIRST.unpack(_receive(connection, _FIRST, end_s))
        session = Session(secret, rank, theirs, number)
        _send(connection, _SECOND.pack(_MAGIC, *_split(session.seal("challenge", number))))
        (length,) = _LENGTH.unpack(_receive_exactly(connection, _LENGTH.size, end_s))
        if length > _MOST_BYTES:
            raise StrangerError
        body = session.open("hello", _receive_exactly(connection, length, end_s))
        if body is None:
            raise OtherKeyError(rank)
        try:
            hello = Hello.decode(body)
        except ClusterError as error:
            line = f"rank {rank}: {error}: install the same version of hybridmoe"
            channel = Channel(connection, session, 0, f"rank {rank}")
            channel.leave(Word.TERMS, Terms(refusal=line).encode())
            channel.join()
            raise ClusterError(line) from None
        return Visit(rank, hello, Channel(connection, session, 0, f"rank {rank} ({hello.host})"))


def _split(sealed: bytes) -> tuple[bytes, bytes]:
    return sealed[:32], sealed[32:]


def _send(connection: socket.socket, message: bytes) -> None:
    connection.settimeout(_SEND_S)
    connection.sendall(message)


def _receive(connection: socket.socket, form: struct.Struct, end_s: float) -> bytes:
    """Receive a message that begins with the magic. Errors: OSError, StrangerError."""
    magic = _receive_exactly(connection, len(_MAGIC), end_s)
    if magic != _MAGIC:
        raise StrangerError
    return magic + _receive_exactly(connection, form.size - len(_MAGIC), end_s)


def _receive_exactly(connection: socket.socket, num_bytes: int, end_s: float) -> bytes:
    found = b""
    while len(found) < num_bytes:
        connection.settimeout(max(0.001, end_s - time.monotonic()))
        more = connection.recv(num_bytes - len(found))
        if not more:
            raise ConnectionResetError
        found += more
    return found


@contextlib.contextmanager
def _closed_on_error(connection: socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.close()
        raise


def _why(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"it has taken nothing for {_SEND_S:g} s"
    return "its connection is closed"
