"""Workers of a cluster as rank 0 knows them: gathered once, then watched, and taken back."""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from hybridmoe.cluster.agreement import Identity, Terms
from hybridmoe.cluster.channel import Visit, Word
from hybridmoe.cluster.gate import Gate
from hybridmoe.cluster.message import FrameShape
from hybridmoe.cluster.pooled_experts import Remote
from hybridmoe.cluster.rendezvous import MeetingPlace
from hybridmoe.cluster.seat import Seat
from hybridmoe.errors import ClusterError
from hybridmoe.planning.expert_shares import HostRate

__all__ = ["Hosts"]

_log = logging.getLogger(__name__)
_TICK_S = 0.5
_OTHERS_S = 2.0

Progress = Callable[[int, int], None]  # workers that are there, of all


class Hosts:
    """All workers of rank 0. Implements `pooled_experts.Links`; thread-safe."""

    def __init__(
        self, place: MeetingPlace, identity: Identity, shape: Callable[[Terms], FrameShape]
    ) -> None:
        """Start to listen. shape: of messages, under some terms. Errors: ClusterError."""
        self._place, self._identity = place, identity
        self._changed = threading.Condition()
        self._terms: Terms | None = None
        self.seats = [
            Seat(rank, identity, shape, self._changed) for rank in range(1, place.num_ranks)
        ]
        self._gate = Gate(place, self._receive, self._refuse)

    def gather(self, wait_s: float, progress: Progress) -> tuple[HostRate, ...]:
        """Wait until every worker has said hello. Returns what each has, by rank.

        progress: called again and again; may raise. Errors: ClusterError if one does not come in
        time, or has another file, version or configuration.
        """
        self._wait_for_all(lambda seat: seat.hello is not None, wait_s, progress)
        return tuple(
            HostRate(seat.name, seat.hello.ram_bytes, seat.hello.read_gbs)
            for seat in self.seats
            if seat.hello is not None
        )

    def offer(self, terms: Terms) -> None:
        """Set the shares, by which workers place their experts now and whenever they come back."""
        self._terms = terms
        for seat in self.seats:
            seat.offer(terms)

    def connect(self, wait_s: float, progress: Progress) -> None:
        """Wait until every worker is ready. Errors: as `gather`."""
        self._wait_for_all(lambda seat: seat.link is not None, wait_s, progress)

    @property
    def outage(self) -> str | None:
        """Line on a worker that is away; None if all are there."""
        return next((line for seat in self.seats if (line := seat.absence) is not None), None)

    def current(self) -> Sequence[Remote]:
        """Return the workers by rank. Errors: ClusterError if one is away."""
        assert self._terms is not None, "offer comes first"
        shares, remotes = self._terms.ranges, []
        for seat in self.seats:
            link = seat.link
            if link is None:
                raise ClusterError(seat.absence or f"{seat.name} is away")
            remotes.append(Remote(link, shares[seat.rank]))
        return remotes

    def close(self, problem: str | None = None) -> None:
        """Let workers end; or wait for another rank 0, if a problem ends this one.

        Takes seconds where one is hung.
        """
        for seat in self.seats:
            seat.close(problem)
        self._gate.close()

    def _receive(self, visit: Visit) -> None:
        """Show a worker to its seat."""
        if 0 < visit.rank < self._place.num_ranks:
            self.seats[visit.rank - 1].receive(visit)
            return
        channel = visit.channel
        misfit = self._identity.difference(visit.hello.identity, channel.peer)
        line = misfit or f"{channel.peer}: expected a rank from 1 to {self._place.num_ranks - 1}"
        _log.warning("%s", line)
        channel.leave(Word.TERMS, Terms(refusal=line).encode())
        channel.join()

    def _refuse(self, rank: int) -> None:
        if 0 < rank < self._place.num_ranks:
            self.seats[rank - 1].refuse()

    def _wait_for_all(
        self, is_there: Callable[[Seat], bool], wait_s: float, progress: Progress
    ) -> None:
        end_s = time.monotonic() + wait_s
        while True:
            with self._changed:
                found = sum(map(is_there, self.seats))
                if found < len(self.seats) and self._misfit is None:
                    self._changed.wait(_TICK_S)
            if self._misfit is not None:
                self._wait_for_other_misfits()
                raise ClusterError(self._misfit)
            progress(found, len(self.seats))
            if found == len(self.seats):
                return
            if time.monotonic() > end_s:
                raise ClusterError(f"{self.outage}, after {wait_s:g} s at {self._place}")

    def _wait_for_other_misfits(self) -> None:
        """Give workers that come at the same time a moment to learn if they fit."""
        end_s = time.monotonic() + _OTHERS_S
        with self._changed:
            while not all(seat.hello or seat.misfit for seat in self.seats):
                if not self._changed.wait(end_s - time.monotonic()):
                    return

    @property
    def _misfit(self) -> str | None:
        return next((seat.misfit for seat in self.seats if seat.misfit), None)
