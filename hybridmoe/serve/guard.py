"""Who may ask: checked before a request's body is read.

API key and Host header; the body within its bounds (serve/body.py). An ASGI middleware, since
routes see a body only when it is whole and parsed.
"""

import hmac
import re
from collections.abc import Sequence
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hybridmoe.serve.body import Bodies
from hybridmoe.serve.config import ServeConfig
from hybridmoe.serve.errors import ApiError, error_reply

__all__ = ["Guard", "key_matches"]

_OPEN_PATHS = frozenset({"/", "/health", "/docs", "/openapi.json", "/favicon.ico"})
_OPEN_PREFIX = "/static/"


class Guard:
    """Wraps an app; refuses what the configuration does not allow."""

    def __init__(self, app: ASGIApp, config: ServeConfig, bodies: Bodies) -> None:
        self._app = app
        self._config = config
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        with self._bodies.hold() as held:
            try:
                _check_framing(headers)
                self._check_host(headers)
                self._check_key(scope["path"], headers)
                body = await held.read(headers, receive)
            except ApiError as error:
                await error_reply(error, scope["path"])(scope, receive, send)
                return
            if body is not None:
                await self._app(scope, _Replay(body, receive), send)

    def _check_host(self, headers: Headers) -> None:
        """A page of another site reaches this address by renaming it; its Host tells. An address
        is no such name.
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


def _is_address(host: str) -> bool:
    try:
        ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _check_framing(headers: Headers) -> None:
    """Of two lengths a proxy may believe the other one, and take the rest for a request of its own
    (RFC 9112, 6.3).
    """
    if "transfer-encoding" in headers and "content-length" in headers:
        raise ApiError(
            400,
            "the request has both Transfer-Encoding and Content-Length; expected one",
            headers={"Connection": "close"},
        )
