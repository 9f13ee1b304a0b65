"""Listening sockets: on an address and port, or at a path of the file system."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

from hybridmoe.errors import ConfigError

__all__ = ["LOOPBACK_NAMES", "UNIX", "is_local", "listen", "listening"]
__all__ += ["network_url", "own_names", "url_of"]

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # all addresses, and the own one
UNIX = "unix:"  # begins a host that is a path
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


@contextmanager
def listening(host: str, port: int, mode: int) -> Iterator[socket.socket]:
    """Listen while inside. mode: permission bits of a socket in the file system, which is removed
    at the end. Errors: ConfigError.
    """
    if not host:  # which would be all addresses
        raise ConfigError(f"--host {host!r}: expected an address such as 127.0.0.1, or unix:/path")
    if not host.startswith(UNIX):
        with listen(host, port) as listener:
            yield listener
        return
    path = Path(host.removeprefix(UNIX))
    with _listen_at(path, mode) as listener:
        own = path.lstat()
        try:
            yield listener
        finally:
            with suppress(OSError):
                if os.path.samestat(own, path.lstat()):  # else another server has taken the path
                    path.unlink()


def listen(host: str, port: int) -> socket.socket:
    """Open a socket that listens on the address; port 0 = any free one. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sends each token at once; else Nagle delays some by 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()  # before "listening at" is printed: clients may connect then
    except OSError as error:
        listener.close()
        other = "; --port takes another one" if error.errno == errno.EADDRINUSE else ""
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}{other}"
        ) from None
    return listener


def _listen_at(path: Path, mode: int) -> socket.socket:
    """Listen at a path, in place of a stale socket. Raises ConfigError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        before = os.umask(0o777 & ~mode)  # no moment with other permissions
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(before)
        listener.listen()
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen at {path}: {error.strerror or error}") from None
    except ConfigError:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    """Remove the socket of a server that was killed. Raises ConfigError where one listens."""
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise ConfigError(f"cannot listen at {path}: it is there, and no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except TimeoutError:
            pass  # its queue is full
    raise ConfigError(f"cannot listen at {path}: another server does")


def is_local(host: str) -> bool:
    """True if only this machine reaches the host."""
    if host.startswith(UNIX):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def own_names() -> tuple[str, ...]:
    """Host names of this machine in its network."""
    name = socket.gethostname()
    label = name.partition(".")[0]
    return (name, label, f"{label}.local")


def network_url(host: str, listener: socket.socket) -> str | None:
    """Address for other machines, where the listener is open to all of them."""
    if host not in _ANY:
        return None
    return f"http://{socket.gethostname()}:{listener.getsockname()[1]}"


def url_of(host: str, listener: socket.socket) -> str:
    """Address at which clients on this machine reach the listener."""
    if host.startswith(UNIX):
        return host
    host = _ANY.get(host, host)
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"
