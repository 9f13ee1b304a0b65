"""uvicorn server of the application, with a prompt shutdown."""

import asyncio
import errno
import logging
import resource
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import uvicorn

from hybridmoe.serve.app import create_app
from hybridmoe.serve.connection import Connection, WarningRateLimit
from hybridmoe.serve.service import Service

__all__ = ["Server", "log_loop_error", "max_connections", "warning_limit"]

_log = logging.getLogger("uvicorn.error")

_GRACE_S = 3  # for responses under way to send their error, before connections are cut
# Idle keep-alive: longer than that of clients and proxies (60 to 90 s), so that no connection is
# closed at the moment it is used again.
_IDLE_S = 120
_MAX_CONNECTIONS = 4096
_BACKLOG = 128  # asyncio retries, and logs, this often if no descriptor is left
warning_limit = WarningRateLimit()  # shared: a logger adds the same filter once


class Server(uvicorn.Server):
    """Server of one service; `run` returns after `stop`. The caller handles signals."""

    def __init__(
        self,
        service: Service,
        log_request: Callable[[Mapping[str, Any]], None] | None = None,
        *,
        is_logging_ready: bool = False,
    ) -> None:
        """log_request: gets the fields of each request's line in the log; None: no lines.

        is_logging_ready: loggers are left as they are.
        """
        config = uvicorn.Config(
            create_app(service, log_request),
            log_config=None if is_logging_ready else uvicorn.config.LOGGING_CONFIG,
            http=Connection,
            loop="asyncio",  # not uvloop where another package brought it: the limits are for this
            limit_concurrency=max_connections(),
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=_GRACE_S,
            timeout_keep_alive=_IDLE_S,
            backlog=_BACKLOG,
            ws="none",
            lifespan="off",  # the app has none; uvicorn would log its end at a forced exit
        )
        super().__init__(config)
        for logger in (_log, logging.getLogger("asyncio")):  # both log disconnected clients
            logger.addFilter(warning_limit)
        self._service = service
        self._drain_end_s: float | None = None  # by the clock of time.monotonic

    def drain(self, seconds: float) -> None:
        """Refuse further requests, and `stop` when none is under way, or after so long.

        Safe from a signal handler.
        """
        self._service.is_draining = True
        self._drain_end_s = time.monotonic() + seconds

    async def on_tick(self, counter: int) -> bool:
        """Look ten times a second whether it is time to end."""
        if self._drain_end_s is not None:
            is_late = time.monotonic() >= self._drain_end_s
            self.should_exit |= is_late or not self._service.models.num_active
        return await super().on_tick(counter)

    def stop(self, *, force: bool = False) -> None:
        """End the responses under way, then `run`. force: do not wait for clients.

        Safe from any thread and from a signal handler.
        """
        self.force_exit = self.force_exit or force
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: uvicorn would raise them again before the model is closed."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        asyncio.get_running_loop().set_exception_handler(log_loop_error)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the responses under way first: uvicorn would wait for them."""
        self._service.shut_down()
        await super().shutdown(sockets)


def log_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error that no task awaits. Keep the flood from a lack of descriptors short."""
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        _log.warning("too many open files: connections wait (see ulimit -n)")
    else:
        loop.default_exception_handler(context)


def max_connections() -> int:
    """Choose a limit that leaves descriptors for the model's files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_CONNECTIONS if soft < 0 else max(8, min(_MAX_CONNECTIONS, soft // 2))
