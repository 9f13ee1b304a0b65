"""Place of one worker at rank 0: a thread that admits it, watches it, and admits it again.

Keys in the store, of worker R's attempt A (a random number that it chose):

    join/R           A; a later attempt replaces it
    challenge/R/A    rank 0's random number, and its proof that it knows the secret
    hello/R/A        the worker's `Hello`; empty if that proof is wrong
    terms/R/A        rank 0's `Terms`, once all workers are there
    alive/R/A        a number that grows while the worker waits for terms and places its share
    ready/R/A        the worker has placed its share, and both ends connect; or why it cannot, or
                     that it has read a refusal
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable

from torch.distributed.distributed_c10d import Store

from hybridmoe.cluster.agreement import Hello, Identity, Session, Terms
from hybridmoe.cluster.link import Endpoint, Link, connect
from hybridmoe.cluster.message import FrameShape, printable
from hybridmoe.cluster.rendezvous import MeetingPlace, read_key, write_key
from hybridmoe.errors import ClusterError

__all__ = ["NUMBER_BYTES", "Seat", "shape_of"]

_log = logging.getLogger(__name__)

NUMBER_BYTES = 16
_POLL_S = 0.05
_ANSWER_S = 15.0  # for a worker's next word in the handshake, or to read why it is refused
_ALIVE_S = 30.0  # without a sign of life of a worker that waits or reads its file


class SupersededError(Exception):
    """Newer attempt of the same worker, or the end of the cluster."""


class Seat:
    """State of one worker, and its thread. Properties may be read from any thread."""

    def __init__(
        self,
        rank: int,
        place: MeetingPlace,
        identity: Identity,
        shape: Callable[[Terms], FrameShape],
        changed: threading.Condition,
    ) -> None:
        """shape: of the messages under some terms. changed: notified when the state has changed."""
        self.rank = rank
        self._place, self._identity, self._shape = place, identity, shape
        self._changed = changed
        self._terms: Terms | None = None
        self._is_closing = self._is_ending = False
        self._attempt = b""
        self.hello: Hello | None = None
        self._link: Link | None = None
        self._absence = f"rank {rank} has not joined"  # without a link
        self.misfit: str | None = None  # line on why its last attempt was refused
        self._thread = threading.Thread(
            target=self._run, name=f"hybridmoe-rank-{rank}", daemon=True
        )
        self._thread.start()

    @property
    def name(self) -> str:
        host = "" if self.hello is None else f" ({self.hello.host})"
        return f"rank {self.rank}{host}"

    @property
    def link(self) -> Link | None:
        """Connection that lives."""
        link = self._link
        return None if link is None or link.failure is not None else link

    @property
    def absence(self) -> str | None:
        """Line on why it is away; None while it is connected."""
        link = self._link
        return self._absence if link is None else link.failure

    def offer(self, terms: Terms) -> None:
        """Set the terms, of this attempt and all later ones."""
        self._terms = terms

    def close(self, *, is_end: bool) -> None:
        """Let the worker end, or, if not `is_end`, join again."""
        self._is_ending, self._is_closing = is_end, True
        self._close_link()

    def join(self) -> None:
        """Wait for the end of the thread, after `close`."""
        self._thread.join()

    def _run(self) -> None:
        store: Store | None = None
        num_links = 0
        while not self._is_closing:
            try:
                if store is None:
                    store = self._place.join_store(5.0)
                link = self._admit(store)
                self._set(link, "")
                if num_links:
                    _log.warning("%s is back", self.name)
                num_links += 1
                if self._is_closing:
                    self._close_link()
                link.beat(is_first=True)
                self._set(None, link.failure or f"{self.name} is away")
            except SupersededError:
                continue
            except ClusterError as error:
                self._set(None, str(error))
            except RuntimeError:  # the store
                store = None
            if not self._is_closing:
                _log.warning("%s", self._absence)

    def _close_link(self) -> None:
        link = self._link
        if link is None:
            return
        if self._is_ending:
            link.close()
        else:
            link.fail(f"{self.name}: rank 0 does not go on")

    def _set(self, link: Link | None, absence: str) -> None:
        with self._changed:
            self._link, self._absence = link, absence
            self._changed.notify_all()

    def _admit(self, store: Store) -> Link:
        """Wait for the worker and connect to it. Errors: ClusterError, SupersededError."""
        key = f"join/{self.rank}"
        while (attempt := self._newest(store)) in (b"", self._attempt):
            if self._is_closing:
                raise SupersededError
            time.sleep(_POLL_S)
        self._attempt = attempt
        if len(attempt) != NUMBER_BYTES:
            raise ClusterError(f"rank {self.rank}: malformed handshake: {key}")
        session = Session(self._place.secret, self.rank, attempt, secrets.token_bytes(NUMBER_BYTES))
        of = f"{self.rank}/{attempt.hex()}"
        write_key(store, f"challenge/{of}", session.seal("challenge", session.ours))
        sealed = self._wait(store, f"hello/{of}")
        body = session.open("hello", sealed)
        if body is None:
            raise ClusterError(f"rank {self.rank} has another --cluster-key-file: refused")
        hello = Hello.decode(body)
        misfit = self._identity.difference(hello.identity, f"rank {self.rank} ({hello.host})")
        if misfit is not None:
            self._send_terms(store, session, of, Terms(refusal=misfit))
            self._wait_until_read(store, f"ready/{of}")  # rank 0 ends of this, the store with it
            self._refuse(misfit)
        self.hello, self.misfit = hello, None
        self._set(None, f"{self.name} is getting ready")
        pulse = _Pulse(f"alive/{of}")
        while (terms := self._terms) is None:
            self._check(store)
            pulse.check(store, self.name)
            time.sleep(_POLL_S)
        self._send_terms(store, session, of, terms)
        problem = session.open("ready", self._wait(store, f"ready/{of}", pulse))
        if problem is None or problem:
            line = "malformed handshake" if problem is None else printable(problem)
            self._refuse(f"{self.name}: {line}")
        end = Endpoint(0, self._place.host, self.name)
        return connect(store, session.name, end, self._shape(terms))

    def _refuse(self, line: str) -> None:
        """Note that this attempt does not fit. Errors: ClusterError."""
        self.misfit = line
        raise ClusterError(line)

    def _send_terms(self, store: Store, session: Session, of: str, terms: Terms) -> None:
        write_key(store, f"terms/{of}", session.seal("terms", terms.encode()))

    def _wait(self, store: Store, key: str, pulse: "_Pulse | None" = None) -> bytes:
        """Wait for a key of this attempt; with a pulse, as long as that is felt."""
        end_s = time.monotonic() + _ANSWER_S
        while not store.check([key]):
            self._check(store)
            if pulse is not None:
                pulse.check(store, self.name)
            elif time.monotonic() > end_s:
                raise ClusterError(f"rank {self.rank} has not said {key.partition('/')[0]}")
            time.sleep(_POLL_S)
        return read_key(store, key)

    def _wait_until_read(self, store: Store, key: str) -> None:
        """Wait for a refused worker, also while rank 0 is ending."""
        end_s = time.monotonic() + _ANSWER_S
        while not store.check([key]) and time.monotonic() < end_s:
            time.sleep(_POLL_S)

    def _check(self, store: Store) -> None:
        """Raise SupersededError if this attempt counts no more."""
        if self._is_closing or self._newest(store) != self._attempt:
            raise SupersededError

    def _newest(self, store: Store) -> bytes:
        key = f"join/{self.rank}"
        return read_key(store, key) if store.check([key]) else b""


class _Pulse:
    """Signs of life of a worker that may be at work for minutes."""

    def __init__(self, key: str) -> None:
        self._key, self._latest, self._felt_s = key, b"", time.monotonic()

    def check(self, store: Store, name: str) -> None:
        """Look for a new sign. Errors: ClusterError without one for long."""
        now = time.monotonic()
        found = read_key(store, self._key) if store.check([self._key]) else b""
        if found != self._latest:
            self._latest, self._felt_s = found, now
        elif now > self._felt_s + _ALIVE_S:
            raise ClusterError(f"{name} is away: no sign of life for {_ALIVE_S:g} s")


def shape_of(top_k: int, hidden: int) -> Callable[[Terms], FrameShape]:
    """Sizes of a model's messages under some terms."""
    return lambda terms: FrameShape(terms.max_tokens, top_k, hidden)
