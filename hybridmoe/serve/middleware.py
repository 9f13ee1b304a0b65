"""ASGI middleware: access checks before a body is read, and headers and counts of responses."""

import asyncio
import hmac
import re
from collections.abc import Sequence
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hybridmoe.serve.config import ServeConfig
from hybridmoe.serve.errors import ApiError, error_response
from hybridmoe.serve.request_body import BodyBudget
from hybridmoe.serve.service import Service

__all__ = ["AccessMiddleware", "ResponseMiddleware", "key_matches"]

_PUBLIC_PATHS = frozenset(
    {"/", "/health", "/v1/health", "/ready", "/docs", "/openapi.json", "/favicon.ico"}
)
_PUBLIC_PREFIX = "/static/"
# Of every response. Pages load nothing from other hosts, and run no inline script.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; frame-ancestors 'none';"
    " form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class AccessMiddleware:
    """Checks Host header and API key, and reads the body within its limits.

    A route would see the body only when it is complete and parsed.
    """

    def __init__(self, app: ASGIApp, config: ServeConfig, bodies: BodyBudget) -> None:
        self._app = app
        self._config = config
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        with self._bodies.reader() as reader:
            try:
                _check_framing(headers)
                self._check_host(headers)
                self._check_key(scope["path"], headers)
                body = await reader.read(headers, receive)
            except ApiError as error:
                await error_response(error, scope["path"])(scope, receive, send)
                return
            if body is not None:
                await self._app(scope, _Replay(body, receive), send)

    def _check_host(self, headers: Headers) -> None:
        """Refuse an unknown Host: a page of another site reached this address by DNS rebinding.

        An IP address is no such name.
        """
        allowed = self._config.allowed_hosts
        host = headers.get("host", "").lower()
        name = host.rpartition(":")[0] if re.search(r":\d*$", host) else host
        if allowed and "*" not in allowed and name not in allowed and not _is_address(name):
            raise ApiError(
                403,
                f"the Host header is {name!r:.80}; expected one of {', '.join(allowed)}"
                " (--allow-host adds one)",
                type="permission_error",
            )

    def _check_key(self, path: str, headers: Headers) -> None:
        keys = self._config.api_keys
        if not keys or path in _PUBLIC_PATHS or path.startswith(_PUBLIC_PREFIX):
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


class _Replay:
    """ASGI `receive` that gives the body once, then the client's further messages."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


class ResponseMiddleware:
    """Adds security headers to every response, and counts it by route and status."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
                path = getattr(scope.get("route"), "path", "other")
                self._service.metrics.count_response(path, message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_counted if scope["type"] == "http" else send)
        except asyncio.CancelledError:
            if not self._service.is_shutting_down:  # else uvicorn cut a client that does not read
                raise


def key_matches(given: str, keys: Sequence[str]) -> bool:
    """Compare with every key in constant time. Returns True if one matches."""
    found = False
    for key in keys:
        found |= hmac.compare_digest(given.encode("utf-8", "replace"), key.encode())
    return found


def _is_address(host: str) -> bool:
    try:
        ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _check_framing(headers: Headers) -> None:
    """Refuse two lengths: a proxy that believes the other one lets a request be smuggled.

    Source: RFC 9112, 6.3.
    """
    if "transfer-encoding" in headers and "content-length" in headers:
        raise ApiError(
            400,
            "the request has both Transfer-Encoding and Content-Length; expected one",
            headers={"Connection": "close"},
        )
