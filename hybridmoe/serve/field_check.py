"""Check of a request's fields that no schema declares, against the field table.

Refused fields raise; those in no table are reported: in the response header `x-ignored-fields`, and
in a log line for each name.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.field_table import TABLE
from hybridmoe.serve.ollama_fields import OLLAMA_TABLE
from hybridmoe.serve.schemas.common import Request

__all__ = ["IGNORED_HEADER", "RELAXED_HEADER", "UnknownFields", "relaxed_paths", "unknown_fields"]

IGNORED_HEADER = "x-ignored-fields"
RELAXED_HEADER = "x-relaxed-schema"
_MAX_NAMES = 16  # in a header
_MAX_CHARS = 64  # of a name
_MAX_LOGGED = 256  # names, over the life of the server

# Errors that a client understands: Anthropic's tool runner then sends the whole conversation.
_DETAILS = {"thread": {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}}

_log = logging.getLogger(__name__)


def unknown_fields(body: BaseModel) -> list[str]:
    """Name the fields that are in no table: `tools[].x` for the field x of a tool.

    Raises ApiError (400) for a field that asks for an unsupported feature.
    """
    api = type(body).api if isinstance(body, Request) else None
    if api is None:
        return []
    table = OLLAMA_TABLE if api == "ollama" else TABLE[api]
    unknown: dict[str, None] = {}  # ordered
    for name, value in _undeclared(body, ""):
        row = table.get(name) or table.get(name.rpartition(".")[0] + ".*")
        if row is None:
            if len(unknown) < _MAX_NAMES:
                unknown[name] = None
        elif row.fate == "refused" and value is not None and value not in row.neutral:
            raise _refusal(name, row.why, row.neutral)
    return list(unknown)


def relaxed_paths(paths: Sequence[str]) -> str:
    """Make the header that names what was left out of schemas: `tool: $.path.keyword`."""
    shown = [re.sub(r"[^A-Za-z0-9_.:$ \[\]-]", "?", path[:256]) for path in paths[:_MAX_NAMES]]
    return ", ".join(shown)


class UnknownFields:
    """Reports the unknown fields of requests."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def report(self, names: Iterable[str]) -> str:
        """Log the names that are new. Returns the value of the header."""
        shown = [_printable(name) for name in names]
        for name in shown:
            if name not in self._logged and len(self._logged) < _MAX_LOGGED:
                self._logged.add(name)
                _log.warning("requests have the field %s, which has no effect here", name)
        return ", ".join(shown)


def _undeclared(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield the undeclared fields of a model and of the models in it."""
    if isinstance(value, list):
        for entry in value:
            if isinstance(entry, BaseModel):
                yield from _undeclared(entry, f"{place}[]")
    elif isinstance(value, BaseModel):
        prefix = f"{place}." if place else ""
        for name, extra in (value.model_extra or {}).items():
            yield prefix + name, extra
        for name in value.model_fields_set:
            inner = getattr(value, name, None)
            if isinstance(inner, list | BaseModel):
                yield from _undeclared(inner, prefix + name)


def _refusal(name: str, why: str, neutral: tuple[Any, ...]) -> ApiError:
    hint = "; leave it out" + (f", or give {json.dumps(neutral[0])}" if neutral else "")
    return ApiError(
        400,
        f"{name} is not supported here ({why}){hint}",
        param=name,
        code="unsupported_value",
        extra={"details": _DETAILS[name]} if name in _DETAILS else None,
    )


def _printable(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.\[\]-]", "?", name[:_MAX_CHARS]) or "?"
