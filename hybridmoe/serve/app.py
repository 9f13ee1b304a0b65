"""The ASGI application: every route, the guard in front of them, and the pages."""

import asyncio
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hybridmoe.serve import errors
from hybridmoe.serve.guard import Guard
from hybridmoe.serve.routes import anthropic, chat, completions, models, responses
from hybridmoe.serve.service import Service

__all__ = ["create_app"]

_STATIC = Path(__file__).parent / "static"
# Of every answer. Pages load nothing from elsewhere, and run no script that stands in the page.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; frame-ancestors 'none';"
    " form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def create_app(service: Service) -> FastAPI:
    """The endpoint over a service, whose model may come later: until then it answers 503."""
    config = service.config
    app = FastAPI(
        title="hybridmoe",
        version=version("hybridmoe"),
        description="A local endpoint that OpenAI's and Anthropic's clients can use.",
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    for module in (chat, completions, responses, anthropic, models):
        app.include_router(module.router)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    for path, file in (("/", "index.html"), ("/docs", "docs.html")):
        app.add_api_route(path, _page(file), include_in_schema=False, response_model=None)
    errors.install(app, config.retry_after_s)
    if config.api_keys:
        _declare_key(app)
    # The last one added is the first to see a request.
    app.add_middleware(Guard, config=config, bodies=service.bodies)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
        )
    app.add_middleware(_EveryAnswer, service=service)
    return app


def _page(file: str) -> Any:
    async def page() -> Response:
        return FileResponse(_STATIC / file, headers={"Cache-Control": "no-cache"})

    return page


def _declare_key(app: FastAPI) -> None:
    """Say in the OpenAPI document that requests need a key."""
    document = app.openapi()
    schemes = {"key": {"type": "http", "scheme": "bearer"}}
    document.setdefault("components", {})["securitySchemes"] = schemes
    document["security"] = [{"key": []}]


class _EveryAnswer:
    """Counts answers by route and status, and protects what a browser shows of them."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def mark(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
                path = getattr(scope.get("route"), "path", "other")
                self._service.metrics.count_answer(path, message["status"])
            await send(message)

        try:
            await self._app(scope, receive, mark if scope["type"] == "http" else send)
        except asyncio.CancelledError:
            if not self._service.is_ending:  # else it is cut, since its client does not read
                raise
