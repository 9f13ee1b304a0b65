"""The app on a socket, by uvicorn; ends soon, whatever is under way."""

import asyncio
import errno
import logging
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from hybridmoe.serve.app import create_app
from hybridmoe.serve.connection import Connection, FewWarnings
from hybridmoe.serve.service import Service

__all__ = ["Server", "tell"]

_log = logging.getLogger("uvicorn.error")

_GRACE_S = 3  # for answers to be told that they end, before their connections are cut
# For a connection without a request: longer than clients and proxies keep theirs (60 to 90 s), so
# that none is closed at the moment in which it is used again.
_IDLE_S = 120
_MAX_CONNECTIONS = 4096
_BACKLOG = 128  # so often does asyncio try, and complain, where no descriptor is left
_few_warnings = FewWarnings()  # one: a logger takes the same filter once


class Server(uvicorn.Server):
    """Serves one service; `run` until `end` is called. Signals are whoever runs it's."""

    def __init__(self, service: Service) -> None:
        config = uvicorn.Config(
            create_app(service),
            http=Connection,
            limit_concurrency=_max_connections(),
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=_GRACE_S,
            timeout_keep_alive=_IDLE_S,
            backlog=_BACKLOG,
            ws="none",
            lifespan="off",  # the app has none; uvicorn would log its end where it is in haste
        )
        super().__init__(config)
        for logger in (_log, logging.getLogger("asyncio")):  # a client who is gone: lines of both
            logger.addFilter(_few_warnings)
        self._service = service

    def end(self, *, at_once: bool = False) -> None:
        """End answers under way, then `run`; at_once: before their clients have been told.

        From any thread, or a signal's handler.
        """
        self.force_exit = self.force_exit or at_once
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone: uvicorn would raise them again before the model is closed."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        asyncio.get_running_loop().set_exception_handler(tell)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the answers under way first: they would be waited for."""
        self._service.end()
        await super().shutdown(sockets)


def tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what no task could be told; a lack of descriptors, which comes in thousands, briefly."""
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        _log.warning("too many open files: connections wait (see ulimit -n)")
    else:
        loop.default_exception_handler(context)


def _max_connections() -> int:
    """So many that descriptors are left for the model's files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_CONNECTIONS if soft < 0 else max(8, min(_MAX_CONNECTIONS, soft // 2))
