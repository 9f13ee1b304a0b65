"""Log of a server on standard error: lines for people, or JSON, one object a line.

And systemd's notifications, which a supervisor reads instead.
"""

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

__all__ = ["ServerLog", "notify_supervisor"]


class ServerLog:
    """Lines of a server: what happens to it, and its requests."""

    def __init__(self, *, is_json: bool, is_quiet: bool) -> None:
        """is_quiet: without a line for each request."""
        self.is_json = is_json
        self.is_quiet = is_quiet
        handler = logging.StreamHandler(sys.stderr)  # of warnings, those of libraries too
        handler.setFormatter(_JsonFormatter() if is_json else _TextFormatter())
        logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)

    def say(self, message: str) -> None:
        """Tell what has happened."""
        level = "warning" if message.startswith("warning: ") else "info"
        line = json.dumps(_stamped(level, message=message.removeprefix("warning: ")))
        _print(line if self.is_json else f"hybridmoe: {message}")

    def request(self, fields: Mapping[str, Any]) -> None:
        """Report a request."""
        from hybridmoe.serve.request_log import json_line, text_line  # takes seconds

        if self.is_json:
            _print(json_line(_stamped("info", **fields)))
        else:
            _print(f"hybridmoe: {text_line(fields)}")


def notify_supervisor(**states: str) -> None:
    """Tell systemd a state, such as READY="1" or STATUS="loading"; nothing without systemd.

    Source: sd_notify(3).
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # in the abstract name space
        address = f"\0{address[1:]}"
    message = "\n".join(f"{name}={' '.join(value.split())}" for name, value in states.items())
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(message.encode("utf-8", "replace"), address)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"hybridmoe: {record.levelname.lower()}: {super().format(record)}"


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        return json.dumps(_stamped(record.levelname.lower(), message=message))


def _stamped(level: str, **fields: Any) -> dict[str, Any]:
    now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    return {"time": f"{now}Z", "level": level, **fields}


def _print(line: str) -> None:
    with suppress(OSError, ValueError):  # who reads the log may have gone
        print(line, file=sys.stderr, flush=True)
