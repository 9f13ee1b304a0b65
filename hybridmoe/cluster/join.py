"""A worker's side of the handshake; seat.py is rank 0's."""

import socket
import time
from collections.abc import Callable
from contextlib import suppress

from hybridmoe.cluster.agreement import Hello, Terms
from hybridmoe.cluster.channel import Channel, OtherKeyError, StrangerError, Word, show_up
from hybridmoe.cluster.link import Endpoint, Link, connect
from hybridmoe.cluster.message import FrameShape, printable
from hybridmoe.cluster.rendezvous import MeetingPlace
from hybridmoe.errors import ClusterError, ConfigError, HybridMoeError

__all__ = ["FarewellError", "join", "meet"]

_REACH_S = 2.0  # for one address of rank 0
_PAUSE_S = 0.2  # between two attempts


class FarewellError(Exception):
    """Rank 0 has ended in order, before this worker had joined."""


def meet(
    place: MeetingPlace, hello: Hello, patience_s: float, report: Callable[[str], None]
) -> Channel:
    """Prove the secret to rank 0, and have it proved. report: gets a line, if it is not there yet.

    Errors: ConfigError if it has another secret; ClusterError if it is not there in time.
    """
    end_s, said = time.monotonic() + patience_s, ""
    while True:
        why = ""
        with suppress(OSError):  # it is away, or its name is unknown for now
            for address in place.addresses():
                try:
                    return _meet_at(address, place, hello)
                except StrangerError:
                    why = f": another service listens at {address}"
                except OtherKeyError:
                    line = f"cluster_key_file: rank 0 at {place} has another key"
                    raise ConfigError(line) from None
                except OSError:
                    continue
        if time.monotonic() > end_s:
            raise ClusterError(f"rank 0 does not listen at {place}{why}")
        line = f"waiting for rank 0 at {place}{why}"
        if not said or (why and line != said):
            report(line)
            said = line
        time.sleep(_PAUSE_S)


def _meet_at(address: str, place: MeetingPlace, hello: Hello) -> Channel:
    """Errors: as `show_up`."""
    connection = socket.create_connection((address, place.port), timeout=_REACH_S)
    return show_up(connection, place.secret, place.rank, hello, f"rank 0 at {place}")


def join(
    channel: Channel,
    place: MeetingPlace,
    prepare: Callable[[Terms], FrameShape],
    report: Callable[[str], None],
) -> Link:
    """Place the share of the terms, and connect to rank 0.

    prepare: places the share; returns the sizes of messages. report: gets rank 0's lines.
    Errors: FarewellError; ConfigError if rank 0 refuses or has another process of this rank;
    ClusterError if it is lost; those of prepare.
    """
    try:
        terms = _take_terms(channel, place, report)
        try:
            shape = prepare(terms)
        except HybridMoeError as error:
            channel.leave(Word.READY, str(error).encode())
            raise
        channel.say(Word.READY)
        end = Endpoint(1, channel.own_address, channel.peer)
        return connect(channel, end, shape)
    finally:
        channel.leave()


def _take_terms(channel: Channel, place: MeetingPlace, report: Callable[[str], None]) -> Terms:
    """Wait until rank 0 has heard of all workers, and read the terms."""
    while True:
        found = channel.hear()
        assert found is not None, "waits without an end"
        word, body = found
        if word is Word.NOTE:
            report(f"{channel.peer}: {printable(body)}")
        elif word is Word.FAREWELL:
            raise FarewellError
        elif word is Word.ABORT:
            raise ClusterError(f"{channel.peer} has ended: {printable(body)}")
        elif word is Word.SUPERSEDED:
            raise ConfigError(
                f"RANK={place.rank}: another process has joined rank 0 at {place} as rank"
                f" {place.rank}"
            )
        elif word is Word.TERMS:
            terms = Terms.decode(body)
            if terms.refusal:
                raise ConfigError(f"{channel.peer} refuses: {terms.refusal}")
            if len(terms.shares) != place.num_ranks:
                raise ClusterError(f"{channel.peer}: malformed handshake: {terms.shares}")
            return terms
        else:
            raise ClusterError(f"{channel.peer}: malformed handshake: {word.name.lower()}")
