"""Run a script with connections to this machine alone: `python loopback.py SCRIPT ARGUMENTS...`.

Clients that report on their use, or fetch lists of models, get an error, and the script goes on.
"""

import runpy
import sys
from typing import Any

HERE = {"127.0.0.1", "localhost", "::1", b"127.0.0.1", b"localhost", None, ""}


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    host: Any = None
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    if host not in HERE:
        print(f"refused: {event} {host}", file=sys.stderr)
        raise OSError(f"{host} is not this machine")


sys.addaudithook(_refuse)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
