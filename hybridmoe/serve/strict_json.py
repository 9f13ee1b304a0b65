"""Strict JSON bodies, parsed and validated before FastAPI sees them.

Python's parser also accepts NaN, Infinity and UTF-16, which the standard does not. FastAPI would
parse and validate in the event loop, where a large body delays all streams.
"""

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any, get_type_hints

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.event_stream import cancel_on_disconnect
from hybridmoe.serve.field_check import (
    IGNORED_HEADER,
    RELAXED_HEADER,
    relaxed_paths,
    unknown_fields,
)
from hybridmoe.serve.request_body import LARGE_BYTES
from hybridmoe.serve.request_record import RequestRecord
from hybridmoe.serve.service import get_service

__all__ = ["StrictRoute", "parse_body"]


class _ParsedRequest(Request):
    """Request that gives FastAPI an instance of the route's model in place of JSON."""

    def set_parsed(self, value: Any) -> None:
        self._json = value
        self._body = b"-"  # frees the original, which is not needed again


class StrictRoute(APIRoute):
    """Route that parses its `body` parameter strictly, and is cancelled on disconnect."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        model = get_type_hints(self.endpoint).get("body")

        async def parse_and_handle(request: Request) -> Response:
            parsed = _ParsedRequest(request.scope, request.receive)
            body = await parsed.body()
            unknown: list[str] = []
            if model is not None and body:
                _check_type(request)
                value, unknown = await _parse(request, model, body)
                parsed.set_parsed(value)
                record = RequestRecord.of_context()
                record.is_stream = bool(getattr(value, "stream", False))
                del body, value
            response = await handle(parsed)
            unknown += getattr(request.state, "ignored_fields", ())
            if unknown:
                names = get_service(request).unknown_fields.report(unknown)
                response.headers[IGNORED_HEADER] = names
            if relaxed := getattr(request.state, "relaxed_schema", ()):
                response.headers[RELAXED_HEADER] = relaxed_paths(relaxed)
            return response

        async def handle_until_disconnect(request: Request) -> Response:
            return await cancel_on_disconnect(request, parse_and_handle(request))

        return handle_until_disconnect


async def _parse(
    request: Request, model: type[BaseModel], body: bytes
) -> tuple[BaseModel, list[str]]:
    """Parse a body, and name its unknown fields. Raises RequestValidationError, ApiError."""

    def work(_: object = None) -> tuple[BaseModel, list[str]]:
        value = parse_body(model, body)
        return value, unknown_fields(value)

    return work() if len(body) <= LARGE_BYTES else await get_service(request).pool.run(work)


def parse_body(model: type[BaseModel], body: bytes) -> BaseModel:
    """Parse and validate a JSON body. Raises RequestValidationError."""
    try:
        text = body.decode("utf-8-sig")
        value = json.loads(
            text, parse_constant=_refuse, parse_int=_parse_int, parse_float=_parse_float
        )
        return model.model_validate(value)
    except ValidationError as error:
        # The models bound their lists, which bounds the number of errors.
        found = error.errors(include_url=False)
        raise RequestValidationError(
            [{**one, "loc": ("body", *one["loc"])} for one in found]
        ) from None
    except ValueError as error:
        reason, place = str(error), ("body", 0)
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg}: line {error.lineno}, column {error.colno}"
            place = ("body", error.pos)
        raise RequestValidationError(
            [{"type": "json_invalid", "loc": place, "ctx": {"error": reason}}]
        ) from None


def _check_type(request: Request) -> None:
    """Refuse other content types, whatever the body: pages of other sites can send those.

    Raises ApiError (415).
    """
    given = request.headers.get("content-type", "")
    kind = given.partition(";")[0].strip().lower()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return
    got = f"is {given!r:.80}" if given else "is missing"
    if kind == "application/x-www-form-urlencoded":
        got += ", as curl -d sends it"
    raise ApiError(
        415,
        f"Content-Type {got}; expected application/json (curl -H 'Content-Type: application/json')",
        code="unsupported_media_type",
        headers={"Accept-Post": "application/json"},
    )


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a JSON number")


def _parse_float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits:.40} is too large a number")
    return value


def _parse_int(digits: str) -> int:
    if len(digits) > 40:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)
