"""Connection of rank 0 and one worker: a gloo group of two, and beats that show that both live.

A group of its own for each worker: one that dies takes no other connection with it, and joins again
in a new group. gloo takes a message without a further round trip if its receive is posted by then,
so that each end posts the next one before it sends.
"""

import contextlib
import datetime
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.distributed_c10d import ProcessGroupGloo, Store, Work

from hybridmoe.cluster.channel import Channel, Word
from hybridmoe.cluster.message import Frame, FrameShape, Header, Kind
from hybridmoe.errors import ClusterError, StalledReadError

__all__ = ["SILENCE_S", "Endpoint", "Link", "connect", "why_lost"]

BEAT_S = 1.0  # between two beats
FAREWELL_S = 5.0  # for the other end to take it
SILENCE_S = 7.0  # of the other end, after which it counts as dead
_CONNECT_S = 10.0
_LONG = datetime.timedelta(days=1)  # for a message: beats end the wait if the other end dies
_AT_ONCE = datetime.timedelta(milliseconds=1)
_MESSAGES, _BEATS, _NEVER = range(3)  # tags
_BEAT = struct.Struct("<QQ")  # number, 1 = the step under way is wanted no more


class Group(Protocol):
    """A gloo group, as far as this module needs it: its stub lacks these."""

    def send(self, tensors: list[Tensor], rank: int, tag: int) -> Work: ...
    def recv(self, tensors: list[Tensor], rank: int, tag: int) -> Work: ...


class Endpoint(NamedTuple):
    """Side of a connection that a process is on."""

    rank: int  # in the group of two
    address: str  # of the interface that data go through
    peer: str  # name of the other side, for messages


def connect(channel: Channel, end: Endpoint, shape: FrameShape) -> "Link":
    """Connect both ends of a channel, which both call this. Errors: ClusterError."""
    gloo: Any = ProcessGroupGloo  # its stub lacks what follows
    options = gloo._Options()
    options._timeout = datetime.timedelta(seconds=_CONNECT_S)
    options._threads = 1
    try:
        options._devices = [gloo.create_device(hostname=end.address)]
        group = gloo(_Addresses(channel), end.rank, 2, options)
    except RuntimeError as error:
        raise ClusterError(f"{end.peer}: no connection: {_first_line(error)}") from None
    return Link(group, end, shape)


class _Addresses(Store):
    """Addresses of gloo's sockets, as gloo exchanges them: over the channel."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel
        self._known: dict[str, bytes] = {}

    def has_extended_api(self) -> bool:
        return False

    def set(self, key: str, value: bytes) -> None:  # type: ignore[override]  # as it is called
        self._known[key] = value
        self._channel.say(Word.ADDRESS, key.encode() + b"\0" + value)

    def get(self, key: str) -> bytes:
        self.wait([key])
        return self._known[key]

    def wait(self, keys: list[str], timeout: datetime.timedelta | None = None) -> None:
        until_s = time.monotonic() + _CONNECT_S
        while not self._known.keys() >= set(keys):
            found = self._channel.hear(until=lambda: time.monotonic() > until_s)
            if found is None or found[0] is not Word.ADDRESS:
                raise ClusterError(f"{self._channel.peer}: no connection: no address of it")
            name, _, value = found[1].partition(b"\0")
            self._known[name.decode()] = value


class Link:
    """Messages in both directions: one thread's, and beside it `beat`, another's."""

    def __init__(self, group: Group, end: Endpoint, shape: FrameShape) -> None:
        self.peer = end.peer
        self.outgoing, self._incoming = Frame(shape), Frame(shape)
        self._group = group
        self._other = 1 - end.rank
        self._farewell = Frame(FrameShape(0, 0, 0))
        self._failure: str | None = None
        self._is_over, self._failing = threading.Event(), threading.Lock()
        self._leaving_s: float | None = None  # when farewell was said
        self._sent: Work | None = None  # gloo drops a send that nothing refers to
        self._received: Work | None = None
        self._num_requests = self._num_pending = 0  # the latter without a reply
        self.is_unwanted = False  # the other end wants the step under way no more
        self.ask_unwanted: Callable[[], bool] = lambda: False
        self.post()

    @property
    def failure(self) -> str | None:
        """Line on what ended the connection; None as long as it lives."""
        return self._failure

    def post(self) -> None:
        """Let the next message come. Errors: ClusterError."""
        try:
            self._received = self._group.recv([self._incoming.memory], self._other, _MESSAGES)
        except RuntimeError as error:
            raise self._broken(error) from None

    def send(self, header: Header, line: str = "") -> None:
        """Send `outgoing` with this header; the reply's receive is posted. Errors: ClusterError."""
        try:
            data = self.outgoing.seal(header, line)
            self._sent = self._group.send([data], self._other, _MESSAGES)
        except RuntimeError as error:
            raise self._broken(error) from None

    def request(self, header: Header) -> Header:
        """Send a request; returns its header, numbered. Errors: ClusterError."""
        if self._received is None:
            self.post()
        self._num_requests += 1
        numbered = header._replace(number=self._num_requests)
        self.send(numbered)
        self._num_pending += 1
        return numbered

    def take_sum(self, request: Header) -> NDArray[np.float32]:
        """Wait for a request's sum (T, H), valid until the next one.

        Errors: ClusterError; StalledReadError if the worker gave up on its disk.
        """
        header, frame = self.receive()
        self._num_pending -= 1
        expected = request.number, request.layer, request.num_tokens
        if (header.number, header.layer, header.num_tokens) != expected:
            self.fail(f"{self.peer}: malformed message: {header}, expected a sum for {request}")
        elif header.kind is Kind.SUM:
            return frame.sums(header.num_tokens)
        elif header.kind is Kind.ABANDONED:
            raise StalledReadError(f"{self.peer}: its disk returns nothing")
        elif header.kind is Kind.FAILURE:
            raise ClusterError(f"{self.peer}: {frame.line}")
        else:
            self.fail(f"{self.peer} has ended")
        raise ClusterError(self._failure or "")

    def drain(self) -> None:
        """Drop replies to a step that has failed. Errors: ClusterError."""
        while self._num_pending:
            self.receive()
            self._num_pending -= 1
            self.post()

    def receive(self) -> tuple[Header, Frame]:
        """Wait for the message whose receive is posted. Errors: ClusterError."""
        received, self._received = self._received, None
        assert received is not None, "no receive is posted"
        try:
            received.wait(_LONG)
        except RuntimeError as error:
            raise self._broken(error) from None
        try:
            return self._incoming.read(), self._incoming
        except ClusterError as error:
            self.fail(f"{self.peer}: {error}")
            raise ClusterError(self._failure) from None

    def fail(self, line: str) -> None:
        """End the connection, with a line on why; both ends learn of it at once."""
        with self._failing:
            if self._failure is not None:
                return
            self._failure = line
        self._is_over.set()
        nothing = torch.empty(1, dtype=torch.uint8)
        with contextlib.suppress(RuntimeError):  # gloo closes a connection whose receive is late
            self._group.recv([nothing], self._other, _NEVER).wait(_AT_ONCE)

    def close(self) -> None:
        """Say farewell, upon which the other end closes the connection and `beat` ends."""
        if self._leaving_s is None and self._failure is None:
            self._leaving_s = time.monotonic()
            with contextlib.suppress(RuntimeError):
                data = self._farewell.seal(Header(Kind.FAREWELL))
                self._last = self._group.send([data], self._other, _MESSAGES)

    def beat(self, *, is_first: bool) -> None:
        """Exchange beats until the connection ends. is_first: rank 0 begins each exchange."""
        ours, theirs = _Beat(), _Beat()
        number, sent = 0, None
        try:
            while not self._is_over.is_set():
                number += 1
                posted = self._group.recv([theirs.memory], self._other, _BEATS)
                if is_first:
                    sent = self._send_beat(ours, number)
                posted.wait(datetime.timedelta(seconds=SILENCE_S))
                found, flags = _BEAT.unpack_from(theirs.view)
                if found != number:
                    self.fail(f"{self.peer}: malformed beat: number {found}, expected {number}")
                self.is_unwanted = bool(flags)
                if is_first:
                    self._is_over.wait(BEAT_S)
                else:
                    sent = self._send_beat(ours, number)
                if self._leaving_s is not None and time.monotonic() > self._leaving_s + FAREWELL_S:
                    self.fail(f"{self.peer} was too busy for a farewell")
        except RuntimeError as error:
            self._broken(error)
        del sent

    def _send_beat(self, beat: "_Beat", number: int) -> Work:
        _BEAT.pack_into(beat.view, 0, number, int(self.ask_unwanted()))
        return self._group.send([beat.memory], self._other, _BEATS)

    def _broken(self, error: RuntimeError) -> ClusterError:
        """Turn gloo's error into one line, and note it."""
        self.fail(f"{self.peer} is away: {why_lost(error)}")
        return ClusterError(self._failure or "")


class _Beat:
    """Memory of one beat."""

    def __init__(self) -> None:
        array = np.zeros(_BEAT.size, np.uint8)
        self.memory, self.view = torch.from_numpy(array), array.data


def why_lost(error: RuntimeError) -> str:
    """Say in a few words what torch says in many."""
    text = str(error)
    if "imed out" in text or "timeout" in text:
        return "no sign of life for seconds"
    if "Connection" in text or "closed" in text or "Broken pipe" in text:
        return "its connection is closed"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
