"""Handlers that give every failure of a route a response in the form of its API."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from hybridmoe.errors import HybridMoeError
from hybridmoe.serve.errors import ApiError, as_api_error, error_response
from hybridmoe.serve.json_response import CompactJSONResponse
from hybridmoe.serve.validation_error import validation_error

__all__ = ["add_handlers"]


def add_handlers(app: FastAPI, retry_after_s: int) -> None:
    """Give every failure of the app's routes a response in this form."""

    async def on_validation(request: Request, error: Exception) -> CompactJSONResponse:
        assert isinstance(error, RequestValidationError)
        return error_response(validation_error(error), request.url.path)

    async def on_http(request: Request, error: Exception) -> CompactJSONResponse:
        assert isinstance(error, HTTPException)
        path = request.url.path
        shown = path[:200]
        message = {404: f"no such path: {shown}", 405: f"{request.method} is not for {shown}"}
        refusal = ApiError(
            error.status_code,
            message.get(error.status_code, str(error.detail)),
            headers=error.headers,
        )
        return error_response(refusal, path)

    async def on_error(request: Request, error: Exception) -> CompactJSONResponse:
        return error_response(as_api_error(error, retry_after_s), request.url.path)

    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(HybridMoeError, on_error)
    app.add_exception_handler(Exception, on_error)
