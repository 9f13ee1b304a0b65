"""Place where ranks meet: environment of the process, address, key, and a store at rank 0.

The store listens at the given address only, unlike torchrun's own, from which nothing is taken but
the environment: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Anyone who reaches the store can
write to it, so that nothing in it counts without the secret's code (agreement.py).
"""

import datetime
import hmac
import ipaddress
import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

import torch
from torch.distributed.distributed_c10d import Store

from hybridmoe.cluster.agreement import Secret
from hybridmoe.errors import ClusterError, ConfigError

__all__ = ["MeetingPlace", "find_meeting_place", "find_rank", "is_farewell", "read_key"]
__all__ += ["say_farewell", "write_key"]

_STORE_S = 30.0  # for one operation of the store
_CONNECT_S = 5.0  # of attempts to make it out, if it is another service
_LEAST_KEY_BYTES = 16
_MOST_KEY_BYTES = 1 << 16
_MOST_RANKS = 256
_MOST_VALUE_BYTES = 1 << 16
_FAREWELL = "farewell"


def find_rank() -> int:
    """Read RANK; 0 where it is not set. Errors: ConfigError."""
    return _number("RANK", 0, _MOST_RANKS - 1, default=0)


@dataclass(frozen=True)
class MeetingPlace:
    """Address of rank 0's store, and what ranks need to meet there."""

    rank: int
    num_ranks: int
    host: str  # a numeric address
    port: int
    secret: Secret

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def open_store(self) -> Store:
        """Start the store, on rank 0. Errors: ClusterError if the address is taken or not here."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.host, self.port))
            listener.listen(_MOST_RANKS)
            return self._store(listener.detach())
        except (OSError, RuntimeError) as error:
            listener.close()
            why = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
            raise ClusterError(f"rank 0 cannot listen at {self}: {why}") from None

    def join_store(self, patience_s: float, on_wait: Callable[[], None] = lambda: None) -> Store:
        """Connect to the store. Errors: ClusterError if it is not there in time.

        on_wait: called once, if it is not there yet.
        """
        end_s, is_waiting = time.monotonic() + patience_s, False
        while True:
            with suppress(OSError):
                socket.create_connection((self.host, self.port), timeout=2.0).close()
                if (store := self._connected()) is not None:
                    return store
            if time.monotonic() > end_s:
                raise ClusterError(f"rank 0 does not listen at {self}")
            if not is_waiting:
                is_waiting = True
                on_wait()
            time.sleep(0.2)

    def _connected(self) -> Store | None:
        """Connect to what listens; None if that is another service.

        In a thread, which is left behind where that service is silent: torch waits for it forever.
        """
        found: SimpleQueue[Store | None] = SimpleQueue()

        def connect() -> None:
            store = None
            with suppress(RuntimeError):
                store = self._store(None)
            found.put(store)

        threading.Thread(target=connect, name="hybridmoe-store", daemon=True).start()
        with suppress(Empty):
            return found.get(timeout=2 * _CONNECT_S)
        return None

    def own_address(self) -> str:
        """Address of the interface through which this process reaches rank 0."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:  # sends nothing
                probe.connect((self.host, self.port))
                return str(probe.getsockname()[0])
        except OSError as error:
            raise ClusterError(f"rank 0 at {self} cannot be reached: {error.strerror}") from None

    def _store(self, listener: int | None) -> Store:
        store: Store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
            self.host,
            self.port,
            None,
            listener is not None,
            datetime.timedelta(seconds=_CONNECT_S if listener is None else _STORE_S),
            wait_for_workers=False,
            master_listen_fd=listener,
        )
        store.set_timeout(datetime.timedelta(seconds=_STORE_S))
        return store


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
    numeric = _resolve(host.strip("[]"), port)
    secret = Secret(b"" if key_file is None else _read_key(key_file))
    if key_file is None and not ipaddress.ip_address(numeric).is_loopback:
        raise ConfigError(
            f"cluster_address {numeric} is reachable from other machines: give every rank the same"
            " --cluster-key-file"
        )
    return MeetingPlace(rank, num_ranks, numeric, port, secret)


def write_key(store: Store, key: str, value: bytes) -> None:
    """Set a key of the store. Errors: RuntimeError if it is lost."""
    store.set(key, value.hex())


def read_key(store: Store, key: str) -> bytes:
    """Read a key that is there; empty where anyone has put there what `write_key` does not.

    Errors: RuntimeError if the store is lost.
    """
    found = store.get(key)
    try:
        return bytes.fromhex(found.decode()) if len(found) <= 2 * _MOST_VALUE_BYTES else b""
    except ValueError:
        return b""


def say_farewell(store: Store, place: MeetingPlace) -> None:
    """Let workers end that are joining. Errors: RuntimeError if the store is lost."""
    write_key(store, _FAREWELL, _farewell_of(place))


def is_farewell(store: Store, place: MeetingPlace) -> bool:
    """True once rank 0 has said farewell. Errors: RuntimeError if the store is lost."""
    return store.check([_FAREWELL]) and hmac.compare_digest(
        read_key(store, _FAREWELL), _farewell_of(place)
    )


def _farewell_of(place: MeetingPlace) -> bytes:
    return place.secret.mac(b"farewell", str(place).encode())


def _resolve(host: str, port: int) -> str:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"cluster_address {host!r:.200}: {error.strerror}") from None
    numeric = str(found[0][4][0])
    if ipaddress.ip_address(numeric).is_unspecified:
        raise ConfigError(f"cluster_address {numeric}: expected the address of one interface")
    return numeric


def _read_key(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # a pipe would be waited for
            raise ConfigError(f"cluster_key_file {path}: expected a regular file")
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            raise ConfigError(
                f"cluster_key_file {path}: all users of this machine can read or write it"
                f" (mode {stat.S_IMODE(mode):o}): chmod 600"
            )
        with path.open("rb") as file:
            key = file.read(_MOST_KEY_BYTES + 1).strip()
    except OSError as error:
        raise ConfigError(f"cluster_key_file {path}: {error.strerror}") from None
    if not _LEAST_KEY_BYTES <= len(key) <= _MOST_KEY_BYTES:
        raise ConfigError(
            f"cluster_key_file {path}: {len(key)} bytes, expected {_LEAST_KEY_BYTES} to"
            f" {_MOST_KEY_BYTES}: head -c 32 /dev/urandom | base64 makes one"
        )
    return key


def _number(name: str, low: int, high: int, default: int | None = None) -> int:
    text = os.environ.get(name, "")
    if not text and default is not None:
        return default
    if not text.isascii() or not text.isdigit() or not low <= int(text[:9]) <= high:
        raise ConfigError(f"{name}={text!r:.40}: expected a number from {low} to {high}")
    return int(text)
