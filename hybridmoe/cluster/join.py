"""A worker's side of the handshake; seat.py is rank 0's, and lists the keys in the store."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from torch.distributed.distributed_c10d import Store

from hybridmoe.cluster.agreement import Hello, Session, Terms
from hybridmoe.cluster.link import Endpoint, Link, connect, why_lost
from hybridmoe.cluster.message import FrameShape
from hybridmoe.cluster.rendezvous import MeetingPlace, is_farewell, read_key, write_key
from hybridmoe.cluster.seat import NUMBER_BYTES
from hybridmoe.errors import ClusterError, ConfigError, HybridMoeError

__all__ = ["FarewellError", "join"]

_POLL_S = 0.05
_ANSWER_S = 15.0  # for rank 0's first word
_PULSE_S = 2.0  # between two signs of life
_CODE_BYTES = 32


class FarewellError(Exception):
    """Rank 0 has ended in order, before this worker had joined."""


def join(
    place: MeetingPlace,
    store: Store,
    hello: Hello,
    prepare: Callable[[Terms], FrameShape],
) -> Link:
    """Join, place the share of the terms, and connect to rank 0.

    prepare: places the share; returns the sizes of messages.
    Errors: FarewellError; ConfigError if rank 0 refuses, has another secret, or has another process
    of this rank; ClusterError if it is lost; those of prepare.
    """
    try:
        attempt = _Attempt(place, store)
        session = attempt.introduce(hello)
        with attempt.signs_of_life():
            terms = attempt.take_terms(session)
            try:
                shape = prepare(terms)
            except HybridMoeError as error:
                attempt.say("ready", session, str(error))
                raise
        attempt.say("ready", session)
        end = Endpoint(1, place.own_address(), f"rank 0 at {place}")
        return connect(store, session.name, end, shape)
    except RuntimeError as error:  # of the store
        raise ClusterError(f"rank 0 at {place} is away: {why_lost(error)}") from None


class _Attempt:
    """Keys of one attempt. Methods raise RuntimeError if the store is lost."""

    def __init__(self, place: MeetingPlace, store: Store) -> None:
        self._place, self._store = place, store
        self._number = secrets.token_bytes(NUMBER_BYTES)
        write_key(store, f"join/{place.rank}", self._number)

    def introduce(self, hello: Hello) -> Session:
        """Check rank 0's proof, and say hello."""
        place = self._place
        sealed = self._wait("challenge", _ANSWER_S)
        session = Session(place.secret, place.rank, self._number, sealed[_CODE_BYTES:])
        if len(session.ours) != NUMBER_BYTES or session.open("challenge", sealed) is None:
            write_key(self._store, self._key("hello"), b"")
            raise ConfigError(f"cluster_key_file: rank 0 at {place} has another key")
        write_key(self._store, self._key("hello"), session.seal("hello", hello.encode()))
        return session

    def take_terms(self, session: Session) -> Terms:
        """Wait until rank 0 has heard of all workers, and read the terms."""
        body = session.open("terms", self._wait("terms", None))
        if body is None:
            raise ClusterError(f"rank 0 at {self._place}: malformed handshake: terms")
        terms = Terms.decode(body)
        if terms.refusal:
            self.say("ready", session)
            raise ConfigError(f"rank 0 at {self._place} refuses: {terms.refusal}")
        if len(terms.shares) != self._place.num_ranks:
            raise ClusterError(f"rank 0 at {self._place}: malformed handshake: {terms.shares}")
        return terms

    def say(self, name: str, session: Session, line: str = "") -> None:
        """Write a key for rank 0."""
        write_key(self._store, self._key(name), session.seal(name, line.encode()))

    @contextmanager
    def signs_of_life(self) -> Iterator[None]:
        """Show rank 0 that this process lives, however long its file takes."""
        is_over = threading.Event()

        def show() -> None:
            number = 0
            with suppress(RuntimeError):  # the other thread sees that, too
                while not is_over.wait(_PULSE_S):
                    number += 1
                    write_key(self._store, self._key("alive"), number.to_bytes(8, "little"))

        thread = threading.Thread(target=show, name="hybridmoe-alive", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def _key(self, name: str) -> str:
        return f"{name}/{self._place.rank}/{self._number.hex()}"

    def _wait(self, name: str, seconds: float | None) -> bytes:
        end_s = None if seconds is None else time.monotonic() + seconds
        rank, key = self._place.rank, self._key(name)
        while not self._store.check([key]):
            if is_farewell(self._store, self._place):
                raise FarewellError
            if read_key(self._store, f"join/{rank}") != self._number:
                raise ConfigError(
                    f"RANK={rank}: another process has joined rank 0 at {self._place} as rank"
                    f" {rank}"
                )
            if end_s is not None and time.monotonic() > end_s:
                raise ClusterError(
                    f"rank 0 at {self._place} does not answer: is another process rank {rank}?"
                )
            time.sleep(_POLL_S)
        return read_key(self._store, key)
