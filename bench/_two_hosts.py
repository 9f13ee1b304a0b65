"""Two hosts on one machine: network namespaces with a link between them, or loopback."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["TwoHosts", "echoing", "measured_link", "two_hosts"]

_NAMES = tuple(f"hm{os.getpid()}{host}" for host in "ab")  # several runs may be at work
_ADDRESSES = ("10.77.0.1", "10.77.0.2")
_ECHO_PORT = 29599
_ECHO = """
import socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as listener:
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while head := connection.recv(8, socket.MSG_WAITALL):
            connection.sendall(connection.recv(int(head), socket.MSG_WAITALL))
"""


@dataclass(frozen=True, slots=True)
class TwoHosts:
    """Commands run on either, and the address of each."""

    prefixes: tuple[Sequence[str], Sequence[str]]
    addresses: tuple[str, str]

    def start(self, host: int, *command: str, **environment: str) -> "subprocess.Popen[str]":
        """Start a command on a host, on a core of its own."""
        core = sorted(os.sched_getaffinity(0))[host]
        pinned = ("taskset", "-c", str(core), *self.prefixes[host], *command)
        return subprocess.Popen(
            pinned, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
        )


@contextlib.contextmanager
def two_hosts(gbit: float) -> Iterator[TwoHosts]:
    """Make both. gbit: rate of their link; 0 = loopback, without namespaces, as for no root."""
    if not gbit:
        yield TwoHosts(((), ()), ("127.0.0.1", "127.0.0.1"))
        return
    prefixes = tuple(("ip", "netns", "exec", name) for name in _NAMES)
    links = tuple(f"{name}0" for name in _NAMES)
    try:
        for name in _NAMES:
            _run("ip", "netns", "add", name)
        _run("ip", "link", "add", links[0], "type", "veth", "peer", "name", links[1])
        for prefix, name, link, address in zip(prefixes, _NAMES, links, _ADDRESSES, strict=True):
            _run("ip", "link", "set", link, "netns", name)
            _run(*prefix, "ip", "address", "add", f"{address}/24", "dev", link)
            _run(*prefix, "ip", "link", "set", "lo", "up")
            _run(*prefix, "ip", "link", "set", link, "up")
            bucket = ("rate", f"{gbit:g}gbit", "burst", "256k", "latency", "50ms")
            _run(*prefix, "tc", "qdisc", "add", "dev", link, "root", "tbf", *bucket)
        yield TwoHosts((prefixes[0], prefixes[1]), _ADDRESSES)
    finally:
        for name in _NAMES:
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL, check=False)


@contextlib.contextmanager
def echoing(hosts: TwoHosts) -> Iterator[None]:
    """Run an echo on the second host, for `measured_link` on the first."""
    process = hosts.start(1, sys.executable, "-c", _ECHO, hosts.addresses[1], str(_ECHO_PORT))
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measured_link(address: str) -> tuple[float, float]:
    """Measure seconds one way of a small message, and bytes/s of large ones, on the first host."""
    small, large = _echo_s(address, 64, 2000), _echo_s(address, 1 << 20, 100)
    return small / 2, 2 * (1 << 20) / (large - small)


def _echo_s(address: str, num_bytes: int, times: int) -> float:
    """Median seconds there and back."""
    with _connected(address) as connection:
        found = []
        for _ in range(times):
            began = time.perf_counter()
            connection.sendall(b"%-8d" % num_bytes + bytes(num_bytes))
            connection.recv(num_bytes, socket.MSG_WAITALL)
            found.append(time.perf_counter() - began)
        return sorted(found)[times // 2]


def _connected(address: str) -> socket.socket:
    for _ in range(200):
        with contextlib.suppress(OSError):
            connection = socket.create_connection((address, _ECHO_PORT))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        time.sleep(0.05)
    raise TimeoutError(address)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
