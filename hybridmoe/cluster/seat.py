"""Place of one worker at rank 0: one process of that rank at a time is admitted, and watched."""

import logging
import threading
import time
from collections.abc import Callable

from hybridmoe.cluster.agreement import Hello, Identity, Terms
from hybridmoe.cluster.channel import Channel, DismissedError, Visit, Word
from hybridmoe.cluster.link import SILENCE_S, Endpoint, Link, connect
from hybridmoe.cluster.message import FrameShape, printable
from hybridmoe.errors import ClusterError

__all__ = ["Seat", "shape_of"]

_log = logging.getLogger(__name__)


class Seat:
    """State of one worker. Properties may be read from any thread."""

    def __init__(
        self,
        rank: int,
        identity: Identity,
        shape: Callable[[Terms], FrameShape],
        changed: threading.Condition,
    ) -> None:
        """shape: of the messages under some terms. changed: notified when the state has changed."""
        self.rank = rank
        self._identity, self._shape, self._changed = identity, shape, changed
        self._terms: Terms | None = None
        self._is_closing = False
        self._problem: str | None = None  # that ends this rank 0
        self._guest: Channel | None = None  # of the newest process that is being admitted
        self.hello: Hello | None = None
        self._link: Link | None = None
        self._num_links = 0
        self._absence = f"rank {rank} has not joined"  # without a link
        self.misfit: str | None = None  # line on why its last attempt was refused

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

    def refuse(self) -> None:
        """Note a process of this rank that has another secret."""
        if self._guest is None:
            self._note(f"rank {self.rank} has another --cluster-key-file: refused")

    def receive(self, visit: Visit) -> None:
        """Admit a process of this rank, in a thread of its own, and watch it until it is lost."""
        channel = visit.channel
        with self._changed:
            older, self._guest = self._guest, channel
        if older is not None:
            older.leave(Word.SUPERSEDED)
        link = self._admitted(channel, visit.hello)
        channel.leave()
        with self._changed:
            if self._guest is channel:
                self._guest = None
        if link is None:
            channel.join()
        else:
            self._watch(link)

    def close(self, problem: str | None) -> None:
        """Let the worker end; or join again, if a problem ends this rank 0."""
        with self._changed:
            self._problem, self._is_closing = problem, True
            guest, link = self._guest, self.link
        if guest is not None:
            self._dismiss(guest)
        if link is not None:
            if problem is None:
                link.close()
            else:
                link.fail(problem)

    def _admitted(self, channel: Channel, hello: Hello) -> Link | None:
        """Connect to the worker; None, and a note, if that fails."""
        try:
            return self._admit(channel, hello)
        except DismissedError:
            pass
        except ClusterError as error:
            self._note(str(error))
        return None

    def _watch(self, link: Link) -> None:
        """Exchange beats until the connection ends."""
        if self._num_links > 1:
            _log.warning("%s is back", self.name)
        link.beat(is_first=True)
        absence = link.failure or f"{self.name} is away"
        with self._changed:
            if self._link is link:  # else another process is here already
                self._link, self._absence = None, absence
                self._changed.notify_all()
        if not self._is_closing:
            _log.warning("%s", absence)

    def _dismiss(self, channel: Channel) -> None:
        """Say why this rank 0 ends."""
        if self._problem is None:
            channel.leave(Word.FAREWELL)
        else:
            channel.leave(Word.ABORT, self._problem.encode())

    def _note(self, absence: str) -> None:
        """Note why the worker is not there, unless another process of its rank is."""
        with self._changed:
            if self.link is not None or self._absence == absence:
                return
            self._absence = absence
            self._changed.notify_all()
        # Before the terms a misfit ends rank 0, which says why.
        if not self._is_closing and (self._terms is not None or absence != self.misfit):
            _log.warning("%s", absence)

    def _admit(self, channel: Channel, hello: Hello) -> Link:
        """Connect to the worker. Errors: ClusterError, DismissedError."""
        misfit = self._identity.difference(hello.identity, channel.peer)
        if misfit is not None:
            channel.leave(Word.TERMS, Terms(refusal=misfit).encode())
            self._refuse(misfit)
        if self._is_closing:
            self._dismiss(channel)
        self._await_end_of_other(channel)
        with self._changed:
            self.hello, self.misfit = hello, None
            self._absence = f"{self.name} is getting ready"
            self._changed.notify_all()
        _expect_none(channel, channel.hear(until=lambda: self._terms is not None))
        terms = self._terms
        assert terms is not None
        channel.say(Word.TERMS, terms.encode())
        found = channel.hear()
        if found is None or found[0] is not Word.READY:
            raise _malformed(channel, found)
        if found[1]:
            self._refuse(f"{self.name}: {printable(found[1])}")
        end = Endpoint(0, channel.own_address, self.name)
        link = connect(channel, end, self._shape(terms))
        with self._changed:
            if self._guest is channel and not self._is_closing:
                self._link = link
                self._num_links += 1
                self._changed.notify_all()
                return link
        link.fail(f"{self.name}: another process has come")
        raise DismissedError

    def _await_end_of_other(self, channel: Channel) -> None:
        """Wait while another process of this rank is connected, which may have died unnoticed."""
        until_s = time.monotonic() + SILENCE_S + 1.0
        found = channel.hear(until=lambda: self.link is None or time.monotonic() > until_s)
        _expect_none(channel, found)
        if self.link is not None:
            channel.say(Word.NOTE, f"another process is rank {self.rank}".encode())
            _expect_none(channel, channel.hear(until=lambda: self.link is None))

    def _refuse(self, line: str) -> None:
        """Note that this attempt does not fit. Errors: ClusterError."""
        self.misfit = line
        raise ClusterError(line)


def _expect_none(channel: Channel, found: tuple[Word, bytes] | None) -> None:
    if found is not None:
        raise _malformed(channel, found)


def _malformed(channel: Channel, found: tuple[Word, bytes] | None) -> ClusterError:
    return ClusterError(f"{channel.peer}: malformed handshake: {found and found[0].name.lower()}")


def shape_of(top_k: int, hidden: int) -> Callable[[Terms], FrameShape]:
    """Sizes of a model's messages under some terms."""
    return lambda terms: FrameShape(terms.max_tokens, top_k, hidden)
