"""Rank 0's listener: whoever proves the secret is let in; others cost little, and not for long."""

import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from hybridmoe.cluster.channel import OtherKeyError, StrangerError, Visit, let_in
from hybridmoe.cluster.rendezvous import MeetingPlace
from hybridmoe.errors import ClusterError

__all__ = ["Gate"]

_log = logging.getLogger(__name__)
_MOST_STRANGERS = 64  # connections without proof: 64 KB each, and ten seconds


class Gate:
    """Listener and its threads: one accepts, and each connection has one."""

    def __init__(
        self,
        place: MeetingPlace,
        receive: Callable[[Visit], None],
        refuse: Callable[[int], None],
    ) -> None:
        """Start to listen. Errors: ClusterError.

        receive: gets each worker that has proved the secret, in a thread of its own.
        refuse: gets the rank of one that has another secret.
        """
        self._place, self._receive, self._refuse = place, receive, refuse
        self._is_closing = False
        self._lock = threading.Lock()
        self._strangers: dict[socket.socket, None] = {}  # the oldest first
        self._visits: set[threading.Thread] = set()
        self._listener = place.listen()
        self._thread = threading.Thread(target=self._run, name="hybridmoe-gate", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop to listen. Waits for the threads of all visits."""
        self._is_closing = True
        _hang_up(self._listener)
        self._thread.join()
        self._listener.close()
        with self._lock:
            visits = list(self._visits)
            for connection in self._strangers:
                _hang_up(connection)
        for thread in visits:
            thread.join()

    def _run(self) -> None:
        while not self._is_closing:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closing, or out of descriptors
                time.sleep(0.1)
                continue
            thread = threading.Thread(
                target=self._meet, args=(connection,), name="hybridmoe-visit", daemon=True
            )
            with self._lock:
                if len(self._strangers) >= _MOST_STRANGERS:
                    oldest = next(iter(self._strangers))
                    del self._strangers[oldest]
                    _hang_up(oldest)
                self._strangers[connection] = None
                self._visits.add(thread)
            thread.start()

    def _meet(self, connection: socket.socket) -> None:
        try:
            visit = self._greet(connection)
            if visit is not None:
                self._receive(visit)
        finally:
            with self._lock:
                self._visits.discard(threading.current_thread())

    def _greet(self, connection: socket.socket) -> Visit | None:
        """Let a worker in; None for anyone else."""
        try:
            return let_in(connection, self._place.secret)
        except OtherKeyError as error:
            self._refuse(*error.args)
        except ClusterError as error:
            _log.warning("%s", error)
        except (OSError, StrangerError):
            pass
        finally:
            with self._lock:
                self._strangers.pop(connection, None)
        return None


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # where the other end has
        connection.shutdown(socket.SHUT_RDWR)
