"""ASGI application: routes, middleware and static pages."""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from hybridmoe.serve.error_handlers import add_handlers
from hybridmoe.serve.field_check import IGNORED_HEADER, RELAXED_HEADER
from hybridmoe.serve.held_stream import HeldStreamMiddleware
from hybridmoe.serve.middleware import AccessMiddleware, ResponseMiddleware
from hybridmoe.serve.openapi_document import set_document
from hybridmoe.serve.request_form import ID_HEADERS, RequestFormMiddleware
from hybridmoe.serve.request_log import RequestLogMiddleware
from hybridmoe.serve.routes import (
    anthropic,
    chat,
    completions,
    conversations,
    llama_completion,
    llama_server,
    ollama,
    ollama_models,
    responses,
    server,
    stored_responses,
    tokenizer_info,
)
from hybridmoe.serve.routes.examples import add_examples
from hybridmoe.serve.service import Service

__all__ = ["create_app"]

_ROUTES = (
    chat, completions, responses, stored_responses, conversations, anthropic, server,
    llama_completion, llama_server, ollama, ollama_models, tokenizer_info,
)  # fmt: skip
_STATIC = Path(__file__).parent / "static"


def create_app(
    service: Service,
    log_request: Callable[[Mapping[str, Any]], None] | None = None,
    innermost: Callable[[ASGIApp], ASGIApp] | None = None,
) -> FastAPI:
    """Make the application over a service. Without a model yet, its routes return 503.

    log_request: gets the fields of each request's line in the log. innermost: middleware
    for the requests that have passed all checks, with their whole bodies.
    """
    config = service.config
    app = FastAPI(
        title="hybridmoe",
        version=version("hybridmoe"),
        description="A local endpoint that OpenAI's and Anthropic's clients can use.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    for module in _ROUTES:
        add_examples(module.router.routes)
        app.include_router(module.router)
    app.mount("/static", _CheckedFiles(directory=_STATIC), name="static")
    for path, file in (("/", "index.html"), ("/docs", "docs.html"), ("/favicon.ico", "icon.svg")):
        app.add_api_route(path, _page(file), include_in_schema=False, response_model=None)
    add_handlers(app, config.retry_after_s)
    set_document(app, has_keys=bool(config.api_keys))
    # The middleware added last sees a request first.
    if innermost is not None:
        app.add_middleware(innermost)
    app.add_middleware(AccessMiddleware, config=config, bodies=service.bodies)
    app.add_middleware(HeldStreamMiddleware, keep_alive_s=config.keep_alive_s)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_origins),
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=[*ID_HEADERS, IGNORED_HEADER, RELAXED_HEADER, "Retry-After"],
        )
    app.add_middleware(ResponseMiddleware, service=service)
    app.add_middleware(RequestLogMiddleware, report=log_request, prefixes=service.prefix_log)
    app.add_middleware(RequestFormMiddleware)
    return app


class _CheckedFiles(StaticFiles):
    """Files that browsers ask for again: a module of another version would not fit the page."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def _page(file: str) -> Any:
    async def page() -> Response:
        return FileResponse(_STATIC / file, headers={"Cache-Control": "no-cache"})

    return page
