"""Who may ask, and how much: checked before a request's body is read, or while it is.

API key, Host header, size of the body, depth of its JSON. An ASGI middleware, since routes see a
body only when it is whole and parsed.
"""

import asyncio
import hmac
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hybridmoe.serve.config import ServeConfig
from hybridmoe.serve.errors import ApiError, error_reply

__all__ = ["Guard", "json_depth", "key_matches"]

_OPEN_PATHS = frozenset({"/", "/health", "/docs", "/openapi.json", "/favicon.ico"})
_OPEN_PREFIX = "/static/"
_INLINE_BYTES = 1 << 16  # a larger body is measured in a thread of its own
_DRAINED = (
    4  # so many times the limit are read and dropped: a client that still sends reads nothing
)
_JSON_MARKS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


class Guard:
    """Wraps an app; refuses what the configuration does not allow."""

    def __init__(self, app: ASGIApp, config: ServeConfig) -> None:
        self._app = app
        self._config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            self._check_key(scope["path"], headers)
            body = await self._read(headers, receive)
        except ApiError as error:
            await error_reply(error, scope["path"])(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _Replay(body, receive), send)

    def _check_host(self, headers: Headers) -> None:
        """A page of another site reaches a local address by renaming it; its Host tells."""
        allowed = self._config.allowed_hosts
        host = headers.get("host", "").lower()
        name = host.rpartition(":")[0] if re.search(r":\d*$", host) else host
        if allowed and name not in allowed:
            raise ApiError(
                403,
                f"the Host header is {name!r:.80}; expected one of {', '.join(allowed)}"
                " (--allow-host adds one)",
                type="permission_error",
            )

    def _check_key(self, path: str, headers: Headers) -> None:
        keys = self._config.api_keys
        if not keys or path in _OPEN_PATHS or path.startswith(_OPEN_PREFIX):
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not key_matches(given, keys):
            what = "is wrong" if given else "is missing"
            raise ApiError(
                401,
                f"the API key {what}: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
                type="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body; None where the client left before its end."""
        limit = self._config.max_body_bytes
        declared = headers.get("content-length", "")
        size = 0
        body = bytearray()
        is_too_large = declared.isdecimal() and int(declared[:20]) > limit
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk = message.get("body", b"")
            size += len(chunk)
            is_too_large = is_too_large or size > limit
            if not is_too_large:
                body += chunk
            if not message.get("more_body", False) or size > _DRAINED * limit:
                break
        if is_too_large:
            raise _too_large(limit)
        whole = bytes(body)
        most = self._config.max_json_depth
        is_large = len(whole) > _INLINE_BYTES
        depth = (
            await asyncio.to_thread(json_depth, whole, most)
            if is_large
            else json_depth(whole, most)
        )
        if depth > most:
            raise ApiError(400, f"the body's JSON is nested more than {most} deep")
        return whole


class _Replay:
    """Gives the body that was read, once, and then what the client sends further."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


def key_matches(given: str, keys: Sequence[str]) -> bool:
    """Whether `given` is one of the keys; takes as long whichever it is, and if none."""
    found = False
    for key in keys:
        found |= hmac.compare_digest(given.encode("utf-8", "replace"), key.encode())
    return found


def json_depth(body: bytes, most: int) -> int:
    """How deep the brackets of a JSON text nest; counting ends above `most`."""
    depth = deepest = 0
    for match in _JSON_MARKS.finditer(body):
        mark = match.group()
        if mark in (b"[", b"{"):
            depth += 1
            deepest = max(deepest, depth)
            if depth > most:
                break
        elif mark in (b"]", b"}"):
            depth -= 1
    return deepest


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"the body is larger than {limit} bytes",
        code="request_too_large",
        headers={"Connection": "close"},
    )
