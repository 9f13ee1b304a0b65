"""Bodies of requests: read within bounds of size, shape, time, and of memory for all together.

What a JSON text holds is counted while it arrives, so that a body which would cost much to parse
is refused before it is whole.
"""

import asyncio
import re
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate

from starlette.datastructures import Headers
from starlette.types import Receive

from hybridmoe.serve.config import ServeConfig
from hybridmoe.serve.errors import ApiError

__all__ = ["LARGE_BYTES", "Bodies", "JsonShape"]

LARGE_BYTES = 1 << 16  # a larger body counts as held memory, and is parsed in a thread
# So many times the limit are read and dropped: a client that still sends reads nothing.
_DRAINED = 4
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
# Whole strings and all between them, then the beginning of one that goes on in the next piece.
_OPEN_STRING = re.compile(
    rb'(?:[^"]++|"(?:[^"\\]++|\\.)*+")*+("(?:[^"\\]++|\\.)*+(\\?))?', re.DOTALL
)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # 1 and -1, as signed bytes


class JsonShape:
    """Counts a JSON text, piece by piece: how deep it nests, how much it holds."""

    def __init__(self) -> None:
        self.num_values = 0  # strings, commas and brackets: no fewer than there are values
        self.depth = 0  # the deepest so far
        self._depth = 0
        self._is_open = b""  # `"` or `"\` in the middle of a string

    def feed(self, piece: bytes) -> None:
        """Count what comes next. Cost: some passes over it in C."""
        text = self._is_open + piece
        match = _OPEN_STRING.fullmatch(text)
        assert match is not None
        self._is_open = b""
        if match.start(1) >= 0:
            text = text[: match.start(1)]
            self._is_open = b'"' + match[2]
        outside, num_strings = _STRING.subn(b"", text)
        steps = array("b", outside.translate(_STEPS, _NOT_BRACKETS))
        self.num_values += num_strings + outside.count(b",") + len(steps)
        self.depth = max(self.depth, max(accumulate(steps, initial=self._depth)))
        self._depth += sum(steps)


class Bodies:
    """All bodies that are held at one time. Belongs to the event loop."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._num_bytes = 0  # of large ones
        self._waits: set[asyncio.Timeout] = set()
        self._ending: ApiError | None = None

    @property
    def num_awaited(self) -> int:
        """Bodies whose next piece has not come yet."""
        return len(self._waits)

    @contextmanager
    def hold(self) -> Iterator["_Held"]:
        """Room for one body, until the block ends."""
        held = _Held(self, self._config)
        try:
            yield held
        finally:
            held.give_back()

    def close(self, error: ApiError) -> None:
        """The server ends: those that are still sent are refused."""
        self._ending = error
        for wait in self._waits:
            wait.reschedule(0.0)

    def take(self, num_bytes: int) -> None:
        """Count bytes as held. Raises ApiError (503) where there is no room."""
        if self._num_bytes + num_bytes > self._config.max_held_bytes:
            raise ApiError(
                503,
                "too many large requests at once; try again later",
                type="server_error",
                code="overloaded",
                headers={"Retry-After": str(self._config.retry_after_s), "Connection": "close"},
            )
        self._num_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        self._num_bytes -= num_bytes

    async def receive(self, receive: Receive, deadline: float) -> tuple[bytes, bool] | None:
        """The next piece, and whether it is the last; None where the client has left.

        Raises ApiError: 408 where it comes too late, or that of `close`.
        """
        left_s = min(self._config.body_pause_s, deadline - time.monotonic())
        try:
            async with asyncio.timeout(0.0 if self._ending else max(0.0, left_s)) as wait:
                self._waits.add(wait)
                try:
                    message = await receive()
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            raise self._ending or ApiError(
                408, "the body did not come in time", headers={"Connection": "close"}
            ) from None
        if message["type"] == "http.disconnect":
            return None
        return message.get("body", b""), not message.get("more_body", False)


class _Held:
    def __init__(self, bodies: Bodies, config: ServeConfig) -> None:
        self._bodies = bodies
        self._config = config
        self._num_bytes = 0

    async def read(self, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body; None where the client left before its end. Raises ApiError."""
        limit = self._config.max_body_bytes
        deadline = time.monotonic() + self._config.body_s
        declared = headers.get("content-length", "")
        refusal = _too_large(limit) if declared.isdecimal() and int(declared[:20]) > limit else None
        body = bytearray()
        shape = JsonShape()
        size, is_last = 0, False
        while not is_last and size <= _DRAINED * limit:
            received = await self._bodies.receive(receive, deadline)
            if received is None:
                return None
            piece, is_last = received
            size += len(piece)
            if refusal is None:
                body += piece
                refusal = self._refusal(len(body), piece, shape)
            if refusal is not None:
                body.clear()
                self.give_back()
        if refusal is not None:
            raise refusal
        return bytes(body)

    def give_back(self) -> None:
        """Hold nothing any more. Any number of times."""
        self._bodies.give_back(self._num_bytes)
        self._num_bytes = 0

    def _refusal(self, size: int, piece: bytes, shape: JsonShape) -> ApiError | None:
        """Why the body is not taken, as far as it has come."""
        config = self._config
        if size > config.max_body_bytes:
            return _too_large(config.max_body_bytes)
        shape.feed(piece)
        if shape.depth > config.max_json_depth:
            most = config.max_json_depth
            return ApiError(400, f"the body's JSON is nested more than {most} deep")
        if shape.num_values > config.max_json_values:
            most = config.max_json_values
            return ApiError(400, f"the body's JSON holds more than {most} values")
        if size > LARGE_BYTES:
            try:
                self._bodies.take(size - self._num_bytes)
            except ApiError as error:
                return error
            self._num_bytes = size
        return None


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"the body is larger than {limit} bytes",
        code="request_too_large",
        headers={"Connection": "close"},
    )
