"""Request bodies, read within limits on size, JSON shape, time, and memory of all together.

The shape of a JSON text is counted while it arrives: a body that would be costly to parse is
refused before it is complete. Limits hold for what a compressed body decodes to.
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
from hybridmoe.serve.content_encoding import body_decoder
from hybridmoe.serve.errors import ApiError

__all__ = ["LARGE_BYTES", "BodyBudget", "BodyReader", "JsonShape"]

LARGE_BYTES = 1 << 16  # a larger body counts against the budget, and is parsed in a thread
# Read and drop this multiple of the limit: a client that still sends does not read the refusal.
_DRAIN_FACTOR = 4
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
# Whole strings and all between them, then the start of one that goes on in the next piece.
_OPEN_STRING = re.compile(
    rb'(?:[^"]++|"(?:[^"\\]++|\\.)*+")*+("(?:[^"\\]++|\\.)*+(\\?))?', re.DOTALL
)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # 1 and -1, as signed bytes


class JsonShape:
    """Running count of a JSON text's values and nesting depth."""

    def __init__(self) -> None:
        self.num_values = 0  # strings, commas and brackets: an upper bound of the values
        self.depth = 0  # the deepest so far
        self._depth = 0
        self._open_string = b""  # `"` or `"\` inside a string

    def feed(self, piece: bytes) -> None:
        """Count the next piece. Cost: a few passes over it in C."""
        text = self._open_string + piece
        match = _OPEN_STRING.fullmatch(text)
        assert match is not None
        self._open_string = b""
        if match.start(1) >= 0:
            text = text[: match.start(1)]
            self._open_string = b'"' + match[2]
        outside, num_strings = _STRING.subn(b"", text)
        steps = array("b", outside.translate(_STEPS, _NOT_BRACKETS))
        self.num_values += num_strings + outside.count(b",") + len(steps)
        self.depth = max(self.depth, max(accumulate(steps, initial=self._depth)))
        self._depth += sum(steps)


class BodyBudget:
    """Memory budget and deadlines of all bodies. Used from the event loop only."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._num_bytes = 0  # of large bodies
        self._waits: set[asyncio.Timeout] = set()
        self._shutdown_error: ApiError | None = None

    @property
    def num_awaited(self) -> int:
        """Number of bodies whose next piece has not arrived."""
        return len(self._waits)

    @contextmanager
    def reader(self) -> Iterator["BodyReader"]:
        """Make a reader whose body is counted until the block ends."""
        reader = BodyReader(self, self._config)
        try:
            yield reader
        finally:
            reader.release()

    def close(self, error: ApiError) -> None:
        """Refuse the bodies that are incomplete, and later ones, with `error`."""
        self._shutdown_error = error
        for wait in self._waits:
            wait.reschedule(0.0)

    def reserve(self, num_bytes: int) -> None:
        """Count bytes against the budget. Raises ApiError (503) if it is exceeded."""
        if self._num_bytes + num_bytes > self._config.max_body_memory_bytes:
            raise ApiError(
                503,
                "too many large requests at once; try again later",
                type="server_error",
                code="overloaded",
                headers={"Retry-After": str(self._config.retry_after_s), "Connection": "close"},
            )
        self._num_bytes += num_bytes

    def release(self, num_bytes: int) -> None:
        """Return bytes to the budget."""
        self._num_bytes -= num_bytes

    async def receive(self, receive: Receive, deadline: float) -> tuple[bytes, bool] | None:
        """Await the next piece. Returns it and True if it is the last; None on disconnect.

        Raises ApiError: 408 on a timeout, or that of `close`.
        """
        left_s = min(self._config.body_idle_timeout_s, deadline - time.monotonic())
        try:
            async with asyncio.timeout(0.0 if self._shutdown_error else max(0.0, left_s)) as wait:
                self._waits.add(wait)
                try:
                    message = await receive()
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            raise self._shutdown_error or ApiError(
                408, "the body did not come in time", headers={"Connection": "close"}
            ) from None
        if message["type"] == "http.disconnect":
            return None
        return message.get("body", b""), not message.get("more_body", False)


class BodyReader:
    """Reads one body, and counts its memory against the budget."""

    def __init__(self, budget: BodyBudget, config: ServeConfig) -> None:
        self._budget = budget
        self._config = config
        self._num_bytes = 0

    async def read(self, headers: Headers, receive: Receive) -> bytes | None:
        """Read the whole body; None if the client disconnects first. Raises ApiError."""
        limit = self._config.max_body_bytes
        deadline = time.monotonic() + self._config.body_timeout_s
        body = _Body(self, headers, limit)
        size, is_last = 0, False
        while not is_last and size <= _DRAIN_FACTOR * limit:
            received = await self._budget.receive(receive, deadline)
            if received is None:
                return None
            piece, is_last = received
            size += len(piece)
            await body.add(piece, is_last=is_last)
        if body.refusal is not None:
            raise body.refusal
        return bytes(body.data)

    def release(self) -> None:
        """Return the body's memory to the budget. Idempotent."""
        self._budget.release(self._num_bytes)
        self._num_bytes = 0

    def check(self, size: int, piece: bytes, shape: JsonShape) -> None:
        """Check the limits after a piece. Raises ApiError."""
        config = self._config
        if size > config.max_body_bytes:
            raise _too_large(config.max_body_bytes)
        shape.feed(piece)
        if shape.depth > config.max_json_depth:
            most = config.max_json_depth
            raise ApiError(400, f"the body's JSON is nested more than {most} deep")
        if shape.num_values > config.max_json_values:
            most = config.max_json_values
            raise ApiError(400, f"the body's JSON holds more than {most} values")
        if size > LARGE_BYTES:
            self._budget.reserve(size - self._num_bytes)
            self._num_bytes = size


class _Body:
    """Decoded body as far as it has come, or the reason why it is refused."""

    def __init__(self, reader: BodyReader, headers: Headers, limit: int) -> None:
        self.data = bytearray()
        self.refusal: ApiError | None = None
        self._reader = reader
        self._shape = JsonShape()
        declared = headers.get("content-length", "")
        try:
            if declared.isdecimal() and int(declared[:20]) > limit:
                raise _too_large(limit)
            self._decoder = body_decoder(headers.get("content-encoding", ""))
        except ApiError as error:
            self.refusal = error

    async def add(self, piece: bytes, *, is_last: bool) -> None:
        """Add a piece, unless the body is refused; then what it held is freed."""
        if self.refusal is not None:
            return
        try:
            if self._decoder is None:
                self._append(piece)
                return
            for part in self._decoder.feed(piece):
                self._append(part)
                await asyncio.sleep(0)  # others' streams go on
            if is_last:
                self._decoder.finish()
        except ApiError as error:
            self.refusal = error
            self.data.clear()
            self._reader.release()

    def _append(self, part: bytes) -> None:
        self.data += part
        self._reader.check(len(self.data), part, self._shape)


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"the body is larger than {limit} bytes",
        code="request_too_large",
        headers={"Connection": "close"},
    )
