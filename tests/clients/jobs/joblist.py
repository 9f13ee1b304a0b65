"""Jobs of a client: functions that raise where the client does not get what it asked for.

A script of jobs runs in the clients' own environment, as `python SCRIPT URL KEY`, and prints one
JSON object: the name of each job, and null or the reason for which it failed.
"""

import asyncio
import inspect
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import redirect_stdout
from typing import Any

from pydantic import BaseModel, Field

__all__ = [
    "ASK_WEATHER", "KEY", "MODEL", "RESULT", "SUM", "URL", "V1", "WEATHER_SCHEMA", "Sum", "fails",
    "job", "run",
]  # fmt: skip

URL, KEY = sys.argv[1:3]
V1 = f"{URL}/v1"
MODEL = "hybridmoe-demo"
WEATHER_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
RESULT = '{"sky":"foggy","temp":7}'
ASK_WEATHER = "What is the weather in Oslo?"
SUM = "What is 47 + 38?"

_JOBS: dict[str, Callable[[], Any]] = {}


class Sum(BaseModel):
    """An answer by schema."""

    first: int = Field(ge=0, le=99)
    second: int = Field(ge=0, le=99)


def job(function: Callable[[], None] | Callable[[], Awaitable[None]]) -> Callable[[], Any]:
    """Add a function, or a coroutine function, to the list under its own name."""
    _JOBS[function.__name__] = function
    return function


def fails(kind: type[Exception], call: Callable[[], object]) -> Any:
    """Call, and return the exception of this kind that it raises. Errors: AssertionError."""
    try:
        got = call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}, but {got!r:.200}")


def run() -> None:
    """Run the jobs whose name holds the third argument, by default all; print the reasons."""
    only = sys.argv[3] if len(sys.argv) > 3 else ""
    reasons: dict[str, str | None] = {}
    for name, function in _JOBS.items():
        if only not in name:
            continue
        began = time.monotonic()
        with redirect_stdout(sys.stderr):  # some clients print
            reasons[name] = _reason(function)
        print(f"{time.monotonic() - began:.2f} s {name}", file=sys.stderr)
    print(json.dumps(reasons), flush=True)
    os._exit(0)  # clients' own threads may wait for a connection


def _reason(function: Callable[[], Any]) -> str | None:
    try:
        if inspect.iscoroutinefunction(function):
            asyncio.run(function())
        else:
            function()
    except Exception as error:
        frame = error.__traceback__
        lines = []
        while frame is not None:
            lines.append(f"{os.path.basename(frame.tb_frame.f_code.co_filename)}:{frame.tb_lineno}")
            frame = frame.tb_next
        return f"{type(error).__name__}: {error} ({' < '.join(reversed(lines[-4:]))})"[:800]
    return None
