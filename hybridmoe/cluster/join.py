"""A worker's side of the handshake; seat.py is rank 0's, and lists the keys in the store."""

import secrets
import time
from collections.abc import Callable

from torch.distributed.distributed_c10d import Store

from hybridmoe.cluster.agreement import Hello, Session, Terms
from hybridmoe.cluster.link import Endpoint, Link, connect
from hybridmoe.cluster.message import FrameShape
from hybridmoe.cluster.rendezvous import MeetingPlace, is_farewell, read_key, write_key
from hybridmoe.cluster.seat import NUMBER_BYTES
from hybridmoe.errors import ClusterError, ConfigError, HybridMoeError

__all__ = ["FarewellError", "join"]

_POLL_S = 0.05
_ANSWER_S = 15.0  # for rank 0's next word in the handshake
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
    Errors: FarewellError; ConfigError if rank 0 refuses, or has another secret; ClusterError if it
    is lost; those of prepare.
    """
    try:
        attempt = secrets.token_bytes(NUMBER_BYTES)
        of = f"{place.rank}/{attempt.hex()}"
        write_key(store, f"join/{place.rank}", attempt)
        sealed = _wait(place, store, f"challenge/{of}", _ANSWER_S)
        session = Session(place.secret, place.rank, attempt, sealed[_CODE_BYTES:])
        if len(session.ours) != NUMBER_BYTES or session.open("challenge", sealed) is None:
            write_key(store, f"hello/{of}", b"")
            raise ConfigError(f"cluster_key_file: rank 0 at {place} has another key")
        write_key(store, f"hello/{of}", session.seal("hello", hello.encode()))
        body = session.open("terms", _wait(place, store, f"terms/{of}", None))
        if body is None:
            raise ClusterError(f"rank 0 at {place}: malformed handshake: terms")
        terms = Terms.decode(body)
        if terms.refusal:
            write_key(store, f"ready/{of}", session.seal("ready", b""))
            raise ConfigError(f"rank 0 at {place} refuses: {terms.refusal}")
        if len(terms.shares) != place.num_ranks:
            raise ClusterError(f"rank 0 at {place}: malformed handshake: {terms.shares}")
        try:
            shape = prepare(terms)
        except HybridMoeError as error:
            write_key(store, f"ready/{of}", session.seal("ready", str(error).encode()))
            raise
        write_key(store, f"ready/{of}", session.seal("ready", b""))
        end = Endpoint(1, place.own_address(), f"rank 0 at {place}")
        return connect(store, session.name, end, shape)
    except RuntimeError as error:  # of the store
        line = str(error).splitlines()[0]
        raise ClusterError(f"rank 0 at {place} is away: {line:.200}") from None


def _wait(place: MeetingPlace, store: Store, key: str, seconds: float | None) -> bytes:
    end_s = None if seconds is None else time.monotonic() + seconds
    while not store.check([key]):
        if is_farewell(store, place):
            raise FarewellError
        if end_s is not None and time.monotonic() > end_s:
            raise ClusterError(f"rank 0 has not said {key.partition('/')[0]}")
        time.sleep(_POLL_S)
    return read_key(store, key)
