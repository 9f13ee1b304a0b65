"""Example requests in the OpenAPI document, by path; the API page shows and sends them."""

from collections.abc import Iterable
from typing import Any

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

__all__ = ["add_examples"]

_MODEL = "hybridmoe-demo"  # where a model is required: the API page puts the served one
_USER = {"role": "user", "content": "What is 47 + 38?"}
_CONVERSATION = "/v1/conversations/{conversation_id}"
_EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [_USER], "max_tokens": 64},
    "/v1/chat/completions/input_tokens": {"messages": [_USER]},
    "/v1/completions": {"prompt": "Once upon a time", "max_tokens": 16},
    "/v1/responses": {"input": "What is 47 + 38?", "max_output_tokens": 64},
    "/v1/responses/compact": {
        "input": [
            {"role": "user", "content": "My name is Ada."},
            {"role": "assistant", "content": "Nice to meet you, Ada."},
            {"role": "user", "content": "What is my name?"},
        ]
    },
    "/v1/responses/input_tokens": {"input": "What is 47 + 38?"},
    "/v1/conversations": {"metadata": {"topic": "sums"}, "items": [_USER]},
    _CONVERSATION: {"metadata": {"topic": "products"}},
    f"{_CONVERSATION}/items": {"items": [_USER]},
    "/v1/messages": {"model": _MODEL, "messages": [_USER], "max_tokens": 64},
    "/v1/messages/count_tokens": {"model": _MODEL, "messages": [_USER]},
    "/tokenize": {"content": "What is 47 + 38?", "with_pieces": True},
    "/detokenize": {"tokens": [72, 105]},
    "/completion": {"prompt": "Once upon a time", "n_predict": 16},
    "/apply-template": {"messages": [_USER]},
    "/api/chat": {"model": _MODEL, "messages": [_USER], "stream": False},
    "/api/generate": {"model": _MODEL, "prompt": "What is 47 + 38?", "stream": False},
    "/api/show": {"model": _MODEL},
}


def add_examples(routes: Iterable[BaseRoute]) -> None:
    """Add its example to each route that has one."""
    posts = (r for r in routes if isinstance(r, APIRoute) and "POST" in (r.methods or ()))
    for route in posts:
        if (example := _EXAMPLES.get(route.path)) is not None:
            content = {"application/json": {"example": example}}
            route.openapi_extra = {"requestBody": {"content": content}}
