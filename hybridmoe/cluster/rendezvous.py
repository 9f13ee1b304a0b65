"""Place where ranks meet: environment of the process, address and secret.

Nothing is taken from torchrun but the environment (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT): its
store listens on all interfaces, without a secret.
"""

import ipaddress
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hybridmoe.cluster.agreement import Secret
from hybridmoe.cluster.key_file import read_key_file
from hybridmoe.errors import ClusterError, ConfigError

__all__ = ["MeetingPlace", "find_meeting_place", "find_rank"]

_MOST_RANKS = 256


def find_rank() -> int:
    """Read RANK; 0 where it is not set. Errors: ConfigError."""
    return _number("RANK", 0, _MOST_RANKS - 1, default=0)


@dataclass(frozen=True)
class MeetingPlace:
    """Address of rank 0, and what ranks need to meet there."""

    rank: int
    num_ranks: int
    host: str  # at rank 0 a numeric address of this machine
    port: int
    secret: Secret

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def listen(self) -> socket.socket:
        """Listen, on rank 0. Errors: ClusterError if the address is taken or not here."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            return socket.create_server((self.host, self.port), family=family, backlog=_MOST_RANKS)
        except OSError as error:
            raise ClusterError(f"rank 0 cannot listen at {self}: {_reason(error)}") from None

    def addresses(self) -> Sequence[str]:
        """Look up the numeric addresses of rank 0, which may change. Errors: OSError."""
        return _look_up(self.host, self.port)


def find_meeting_place(address: str | None, key_file: Path | None) -> MeetingPlace:
    """Read options and environment. Errors: ConfigError.

    address: HOST:PORT; None = the port above torchrun's.
    """
    if address is None:
        host = os.environ.get("MASTER_ADDR", "")
        port = _number("MASTER_PORT", 1, 65534) + 1 if host else 0
    else:
        host, _, digits = address.rpartition(":")
        port = int(digits)
    for name in ("RANK", "WORLD_SIZE", *(() if host else ("MASTER_ADDR",))):
        if not os.environ.get(name):
            raise ConfigError(
                f"expert_parallel: {name} is not set: start every rank by torchrun, or set RANK"
                " and WORLD_SIZE, and --cluster-address"
            )
    num_ranks = _number("WORLD_SIZE", 2, _MOST_RANKS)
    rank = _number("RANK", 0, num_ranks - 1)
    host, found = _resolve(host.strip("[]"), port, rank)
    secret = Secret(b"" if key_file is None else read_key_file(key_file))
    others = [numeric for numeric in found if not ipaddress.ip_address(numeric).is_loopback]
    if key_file is None and others:
        raise ConfigError(
            f"cluster_address {others[0]} is reachable from other machines: give every rank the"
            " same --cluster-key-file"
        )
    return MeetingPlace(rank, num_ranks, host, port, secret)


def _resolve(host: str, port: int, rank: int) -> tuple[str, Sequence[str]]:
    """Look a name up. Returns the host to use, and its addresses, one at rank 0."""
    try:
        found = _look_up(host, port)
    except OSError as error:
        raise ConfigError(f"cluster_address {host!r:.200}: {_reason(error)}") from None
    for numeric in found:
        if ipaddress.ip_address(numeric).is_unspecified:
            raise ConfigError(f"cluster_address {numeric}: expected the address of one interface")
    if rank:
        return (found[0] if len(found) == 1 and found[0] == host else host), found
    own = next((numeric for numeric in found if _is_here(numeric)), found[0])
    return own, [own]


def _look_up(host: str, port: int) -> list[str]:
    """Numeric addresses of a name, those that other machines reach first. Errors: OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    numeric = dict.fromkeys(str(address[4][0]) for address in found)
    return sorted(numeric, key=lambda one: ipaddress.ip_address(one).is_loopback)


def _is_here(numeric: str) -> bool:
    """True if this machine has the address."""
    family = socket.AF_INET6 if ":" in numeric else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((numeric, 0))
        return True
    return False


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or str(error)
    return os.strerror(error.errno)  # without what Python adds


def _number(name: str, low: int, high: int, default: int | None = None) -> int:
    text = os.environ.get(name, "")
    if not text and default is not None:
        return default
    if not text.isascii() or not text.isdigit() or not low <= int(text[:9]) <= high:
        raise ConfigError(f"{name}={text!r:.40}: expected a number from {low} to {high}")
    return int(text)
