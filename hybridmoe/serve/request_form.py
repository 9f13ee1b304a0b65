"""ASGI middleware that gives requests one form: HEAD as GET, paths without stray slashes, an id."""

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["ID_HEADERS", "RequestFormMiddleware", "plain_path", "request_id"]

ID_HEADERS = ("x-request-id", "request-id")  # OpenAI's name and Anthropic's
_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestFormMiddleware:
    """Answers HEAD wherever GET is, ignores stray slashes, and names each request by an id.

    The id is the client's `x-request-id`, or a new one; responses repeat it in both headers.
    uvicorn drops the body of a response to HEAD.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        own_id = given if _ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(dict.fromkeys(ID_HEADERS, own_id))
            await send(message)

        form = {
            "path": plain_path(scope["path"]),
            "method": "GET" if scope["method"] == "HEAD" else scope["method"],
            "state": {**scope.get("state", {}), "request_id": own_id},
        }
        await self._app({**scope, **form}, receive, send_with_id)


def request_id(scope: Scope) -> str:
    """Get the id of a request that has passed the middleware."""
    return str(scope["state"]["request_id"])


def plain_path(path: str) -> str:
    """Drop slashes at the end, and doubled ones at the start, as base URLs with a slash cause."""
    return "/" + path.strip("/") if path.strip("/") else "/"
