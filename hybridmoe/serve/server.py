"""The app on a socket, by uvicorn; ends soon, whatever is under way."""

import socket

import uvicorn

from hybridmoe.serve.app import create_app
from hybridmoe.serve.service import Service

__all__ = ["Server"]

_GRACE_S = 3  # for answers to be told that they end, before their connections are cut


class Server(uvicorn.Server):
    """Serves one service; `run` until a signal comes or `should_exit` is set."""

    def __init__(self, service: Service) -> None:
        config = uvicorn.Config(
            create_app(service),
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=_GRACE_S,
            ws="none",
        )
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Cancel the answers under way first: they would be waited for."""
        self._service.cancel_all()
        await super().shutdown(sockets)
