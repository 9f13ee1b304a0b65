"""The OpenAPI document: FastAPI's, with all limits as JSON schema names them, and the API key."""

from typing import Any

from fastapi import FastAPI

__all__ = ["set_document"]

# Pydantic keeps its own names where a BeforeValidator stands before the limit.
_LIMITS = {"ge": "minimum", "le": "maximum"}


def set_document(app: FastAPI, *, has_keys: bool) -> None:
    """Make the application serve this document, composed when it is first asked for."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = FastAPI.openapi(app)
            _name_limits(made["components"]["schemas"])
            if has_keys:
                schemes = {"key": {"type": "http", "scheme": "bearer"}}
                made["components"]["securitySchemes"] = schemes
                made["security"] = [{"key": []}]
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _name_limits(node: Any) -> None:
    """Rename the limits of a schema and all within, in place."""
    if isinstance(node, list):
        for one in node:
            _name_limits(one)
    elif isinstance(node, dict):
        for ours, name in _LIMITS.items():
            if isinstance(node.get(ours), int):
                node[name] = node.pop(ours)
        for one in node.values():
            _name_limits(one)
