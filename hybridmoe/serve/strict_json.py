"""JSON bodies as the standard defines them, parsed and validated before FastAPI sees them.

Python's parser also reads NaN, Infinity and UTF-16. FastAPI would parse and validate in the event
loop, where a large body holds up everybody's streams.
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

from hybridmoe.serve.answer import service_of
from hybridmoe.serve.body import LARGE_BYTES
from hybridmoe.serve.reply import while_connected

__all__ = ["StrictRoute"]


class _ParsedRequest(Request):
    """Gives FastAPI the route's model in place of JSON: an instance of it passes as it is."""

    def take(self, value: Any) -> None:
        self._json = value
        self._body = b"-"  # what it was is needed no more


class StrictRoute(APIRoute):
    """A route whose `body`, a model, is made so; its work is cancelled when the client leaves."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        model = get_type_hints(self.endpoint).get("body")

        async def strict(request: Request) -> Response:
            parsed = _ParsedRequest(request.scope, request.receive)
            body = await parsed.body()
            if model is not None and body and _is_json(request):
                parsed.take(await _parse(request, model, body))
                del body
            return await handle(parsed)

        async def until_left(request: Request) -> Response:
            return await while_connected(request, strict(request))

        return until_left


async def _parse(request: Request, model: type[BaseModel], body: bytes) -> BaseModel:
    if len(body) <= LARGE_BYTES:
        return _validate(model, body)
    return await service_of(request).pool.run(lambda _: _validate(model, body))


def _validate(model: type[BaseModel], body: bytes) -> BaseModel:
    try:
        text = body.decode("utf-8-sig")
        value = json.loads(
            text, parse_constant=_refuse, parse_int=_parse_int, parse_float=_parse_float
        )
        return model.model_validate(value)
    except ValidationError as error:
        # The models bound their lists, and so the number of errors.
        found = error.errors(include_url=False)
        raise RequestValidationError(
            [{**one, "loc": ("body", *one["loc"])} for one in found]
        ) from None
    except ValueError as error:
        reason = getattr(error, "msg", str(error))
        place = ("body", getattr(error, "pos", 0))
        raise RequestValidationError(
            [{"type": "json_invalid", "loc": place, "ctx": {"error": reason}}]
        ) from None


def _is_json(request: Request) -> bool:
    """As FastAPI has it: what comes as another type is no JSON, whatever it holds."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
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
