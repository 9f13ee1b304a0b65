"""Front of replicas: middleware that has a replica answer what needs a model.

A conversation goes on at the replica that has computed its beginning, unless that one is full; a
new one goes to the replica with the fewest requests. A request whose replica dies before the first
byte of its answer was sent goes to another one.
"""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any, Protocol

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hybridmoe.errors import HybridMoeError
from hybridmoe.serve.errors import ApiError, as_api_error, error_body, error_response
from hybridmoe.serve.event_stream import KEEP_ALIVE, LINE_KEEP_ALIVE, until_disconnect
from hybridmoe.serve.held_stream import error_event
from hybridmoe.serve.json_response import CompactJSONResponse, encode_json
from hybridmoe.serve.replicas.asgi_call import ForwardedRequest, forwarded
from hybridmoe.serve.replicas.metrics_merge import merged_metrics
from hybridmoe.serve.replicas.prefix_index import PrefixIndex
from hybridmoe.serve.replicas.prompt_keys import prompt_keys
from hybridmoe.serve.replicas.stored_reference import stored_reference
from hybridmoe.serve.request_body import LARGE_BYTES
from hybridmoe.serve.request_form import request_id
from hybridmoe.serve.request_record import RequestRecord
from hybridmoe.serve.service import Service
from hybridmoe.serve.stored_id import tag_of

__all__ = ["ForwardMiddleware", "ReplicaLostError", "Replicas"]

_LOCAL_PATHS = frozenset({"/", "/docs", "/favicon.ico", "/openapi.json", "/version"})
_LOCAL_PREFIX = "/static/"
_HEALTH_PATHS = frozenset({"/health", "/v1/health", "/ready"})
_MOST_ATTEMPTS = 3
_METRICS_S = 5.0  # for a replica to give its metrics: one that is full makes them wait
_NO_CONTENT = (b"", KEEP_ALIVE, LINE_KEEP_ALIVE)


class ReplicaLostError(HybridMoeError):
    """A replica died while it answered a request."""


class Replicas(Protocol):
    """Replicas as the front reaches them."""

    @property
    def live(self) -> frozenset[str]:
        """Tags of those that run."""

    def answer(self, request: ForwardedRequest) -> AsyncGenerator[str | list[Message], None]:
        """Have a replica answer. Yields its tag once it has the request, then messages.

        Waits while no replica runs, or all are full. Errors: ReplicaLostError; QueueFullError if
        too many wait.
        """


class ForwardMiddleware:
    """Forwards requests to replicas, but for pages, health and metrics, which are the front's."""

    def __init__(
        self, app: ASGIApp, *, replicas: Replicas, service: Service, can_sleep: bool, hold_s: float
    ) -> None:
        """can_sleep: no replica needs to run. hold_s: longest wait for one."""
        self._app = app
        self._replicas = replicas
        self._service = service
        self._can_sleep = can_sleep
        self._hold_s = hold_s
        self._index = PrefixIndex()
        self._load = Counter[str]()  # requests at each replica now
        self._num_taken = Counter[str]()  # requests that each has ever had

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_local(scope["path"]):
            await self._app(scope, receive, send)
            return
        body = (await receive()).get("body", b"")
        if scope["path"] in _HEALTH_PATHS:
            await self._health()(scope, receive, send)
        elif scope["path"] == "/metrics":
            text = await self._metrics(scope)
            await Response(text, media_type=CONTENT_TYPE_LATEST)(scope, receive, send)
        else:
            await until_disconnect(self._forward(scope, body, send), receive)

    def _health(self) -> Response:
        num = len(self._replicas.live)
        if num or self._can_sleep:
            return CompactJSONResponse({"status": "ok", "replicas": num})
        return CompactJSONResponse({"status": "loading", "replicas": 0}, 503)

    async def _metrics(self, scope: Scope) -> bytes:
        """Get the metrics of all replicas that give them in time, and the front's."""
        request = forwarded(scope, b"", request_id(scope))
        texts = {"front": self._service.metrics.render()}
        for tag in self._replicas.live:  # one by one: Ray mixes up calls of one request
            bound = replace(request, wanted=(tag,), is_bound=True)
            with contextlib.suppress(TimeoutError, HybridMoeError):
                async with asyncio.timeout(_METRICS_S):
                    tag, text = await self._whole_answer(bound)
                texts[tag] = text
        return merged_metrics(texts)

    async def _whole_answer(self, request: ForwardedRequest) -> tuple[str, bytes]:
        """Get the tag of the replica that has answered, and the body."""
        body = b""
        async with aclosing(self._replicas.answer(request)) as items:
            tag = await anext(items)
            assert isinstance(tag, str)
            async for messages in items:
                body += b"".join(message.get("body", b"") for message in _checked(messages))
        return tag, body

    async def _forward(self, scope: Scope, body: bytes, send: Send) -> None:
        path = scope["path"]
        response = _Response(path, send)
        request = forwarded(scope, body, request_id(scope))
        fields, keys = await _parsed(body)
        record = RequestRecord.of_context()
        record.is_stream = bool(fields.get("stream", path in ("/api/chat", "/api/generate")))
        record.on_wait()  # comments keep the connection alive until the answer begins
        try:
            if (stored := stored_reference(path, fields)) is not None:
                request = self._bound(request, stored)
            await self._answer(request, keys, response)
        except Exception as error:
            await response.fail(_as_api_error(error), scope)

    def _bound(self, request: ForwardedRequest, stored: str) -> ForwardedRequest:
        """Bind a request to the replica that has stored an object. Errors: ApiError (404)."""
        tag = tag_of(stored)
        if tag not in self._replicas.live:
            raise ApiError(
                404,
                f"{stored} not found: the replica that stored it does not run any more;"
                " send the whole conversation",
                code="not_found",
            )
        return replace(request, wanted=(tag,), is_bound=True)

    async def _answer(
        self, request: ForwardedRequest, keys: list[bytes], response: "_Response"
    ) -> None:
        """Have replicas answer until one does. Errors: those of `Replicas.answer`, ApiError."""
        for attempt in range(1, _MOST_ATTEMPTS + 1):
            if not request.is_bound:
                request = replace(request, wanted=self._ranked(keys))
            try:
                await self._attempt(request, keys, response)
                return
            except ReplicaLostError:
                if response.has_begun or attempt == _MOST_ATTEMPTS:
                    raise

    async def _attempt(
        self, request: ForwardedRequest, keys: list[bytes], response: "_Response"
    ) -> None:
        async with aclosing(self._replicas.answer(request)) as items:
            try:
                with self._counted(*request.wanted[:1]):  # where it will probably go
                    async with asyncio.timeout(self._hold_s):
                        tag = await anext(items)
            except TimeoutError:
                raise ApiError(
                    503,
                    f"no replica could take the request within {self._hold_s:g} s",
                    type="server_error",
                    code="overloaded",
                    headers={"Retry-After": str(self._service.config.retry_after_s)},
                ) from None
            assert isinstance(tag, str)
            self._index.note(keys, tag)
            self._num_taken[tag] += 1
            with self._counted(tag):
                async for messages in items:
                    for message in _checked(messages):
                        await response.pass_on(message)

    def _ranked(self, keys: list[bytes]) -> tuple[str, ...]:
        """Rank the replicas for a prompt, the best one first."""
        live = self._replicas.live
        found = self._index.longest(keys, live)

        def cost(tag: str) -> tuple[int, int, int, int, str]:
            length = found.get(tag, 0)
            # A common system text alone is no conversation: every replica will soon have it.
            same = length if length > 1 else 0
            return (-same, self._load[tag], -length, self._num_taken[tag], tag)

        return tuple(sorted(live, key=cost))

    @contextmanager
    def _counted(self, *tags: str) -> Iterator[None]:
        self._load.update(tags)
        try:
            yield
        finally:
            self._load.subtract(tags)


class _Response:
    """Response that begins with the first byte of its body: until then another replica may give it.

    Comments that keep a connection alive are no such bytes; the front sends its own.
    """

    def __init__(self, path: str, send: Send) -> None:
        self._path = path
        self._send = send
        self._start: Message | None = None
        self.has_begun = False
        self._has_ended = False

    async def pass_on(self, message: Message) -> None:
        """Pass on a message of a replica."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        is_last = not message.get("more_body", False)
        if not self.has_begun:
            if not is_last and message.get("body", b"") in _NO_CONTENT:
                return
            assert self._start is not None
            self.has_begun = True
            await self._send(self._start)
        self._has_ended = is_last
        await self._send(message)

    async def fail(self, error: ApiError, scope: Scope) -> None:
        """End with an error: a response, or the last event of a stream. Else raise it."""
        if self._has_ended:
            return
        if not self.has_begun:
            await error_response(error, self._path)(scope, _nothing, self._send)
            return
        assert self._start is not None
        kinds = [value for name, value in self._start["headers"] if name == b"content-type"]
        if not any(b"event-stream" in kind or b"ndjson" in kind for kind in kinds):
            raise error  # cuts the connection: the body is incomplete
        event = error_event(self._path, encode_json(error_body(error, self._path)))
        await self._send({"type": "http.response.body", "body": event, "more_body": False})


async def _nothing() -> Message:
    raise AssertionError("an error response reads nothing")


def _checked(messages: str | list[Message]) -> list[Message]:
    assert not isinstance(messages, str)
    return messages


def _is_local(path: str) -> bool:
    return path in _LOCAL_PATHS or path.startswith(_LOCAL_PREFIX)


async def _parsed(body: bytes) -> tuple[Mapping[str, Any], list[bytes]]:
    """Parse a JSON body, and make its prompt's keys; empty for what the replica will refuse."""

    def parse() -> tuple[Mapping[str, Any], list[bytes]]:
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError):
            fields = None
        return (fields, prompt_keys(fields)) if isinstance(fields, dict) else ({}, [])

    return await asyncio.to_thread(parse) if len(body) > LARGE_BYTES else parse()


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, ReplicaLostError):
        return ApiError(
            503, "the replica that answered has died", type="server_error", code="replica_lost"
        )
    return as_api_error(error)
