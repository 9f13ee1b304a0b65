"""The endpoint on a local port, in a thread, for real clients."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hybridmoe.serve import ModelPool, PrefixLog, ServeConfig, Server, Service

__all__ = ["LiveServer", "live_server"]


class LiveServer:
    """A running server, and the service behind it."""

    def __init__(
        self, service: Service, server: Server, thread: threading.Thread, port: int
    ) -> None:
        self.service = service
        self.server = server
        self._thread = thread
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    @property
    def is_running(self) -> bool:
        """False once the server has ended by itself."""
        return self._thread.is_alive()


@contextmanager
def live_server(
    llm: Any,
    *,
    models: ModelPool | None = None,
    log_request: Callable[[Mapping[str, Any]], None] | None = None,
    prefix_log: PrefixLog | None = None,
    port: int = 0,
    **settings: Any,
) -> Iterator[LiveServer]:
    """Serve `llm` (None: as while it loads) under the name "test"; or `models`."""
    config = ServeConfig(**{"model_name": "test", "keep_alive_s": 0.1} | settings)
    service = Service(config, models, prefix_log)
    if llm is not None:
        service.attach(llm)
    listener = socket.create_server(("127.0.0.1", port))
    server = Server(service, log_request)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield LiveServer(service, server, thread, listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
