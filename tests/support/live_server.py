"""The endpoint on a local port, in a thread, for real clients."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hybridmoe.serve import ServeConfig, Server, Service

__all__ = ["LiveServer", "live_server"]


class LiveServer:
    """A running server, and the service behind it."""

    def __init__(self, service: Service, port: int) -> None:
        self.service = service
        self.port = port
        self.url = f"http://127.0.0.1:{port}"


@contextmanager
def live_server(llm: Any, **settings: Any) -> Iterator[LiveServer]:
    """Serve `llm` (None: as while it loads) under the name "test"."""
    service = Service(ServeConfig(**{"model_name": "test", "keep_alive_s": 0.1} | settings))
    if llm is not None:
        service.attach(llm)
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(service)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield LiveServer(service, listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
