"""Stored responses: GET and DELETE of one, and its input items."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.json_response import CompactJSONResponse
from hybridmoe.serve.routes.openapi import ERRORS
from hybridmoe.serve.schemas.responses import DeletedResponse, ItemList, ResponsesResponse
from hybridmoe.serve.service import get_service
from hybridmoe.serve.stored_items import item_page
from hybridmoe.serve.strict_json import StrictRoute

__all__ = ["Limit", "router"]

Limit = Annotated[int, Query(ge=1, le=100)]

router = APIRouter(route_class=StrictRoute, tags=["OpenAI"])
_ONE = "/v1/responses/{response_id}"


@router.get(_ONE, response_model=None, responses={200: {"model": ResponsesResponse}, **ERRORS})
async def get_response(response_id: str, request: Request) -> Response:
    """Get a stored response, as it was sent."""
    response = get_service(request).responses.response(response_id)
    if response is None:
        raise _not_stored(response_id)
    return Response(response, media_type="application/json")


@router.delete(_ONE, response_model=None, responses={200: {"model": DeletedResponse}, **ERRORS})
async def delete_response(response_id: str, request: Request) -> Response:
    """Delete a stored response."""
    if not get_service(request).responses.delete(response_id):
        raise _not_stored(response_id)
    return CompactJSONResponse({"id": response_id, "object": "response", "deleted": True})


@router.get(
    f"{_ONE}/input_items", response_model=None, responses={200: {"model": ItemList}, **ERRORS}
)
async def list_input_items(
    response_id: str,
    request: Request,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
    limit: Limit = 20,
) -> Response:
    """List the items of the conversation before a stored response."""
    items = get_service(request).responses.input_items(response_id)
    if items is None:
        raise _not_stored(response_id)
    return CompactJSONResponse(item_page(items, order, after, limit))


def _not_stored(response_id: str) -> ApiError:
    return ApiError(404, f"Response with id {response_id!r:.80} not found.", param="response_id")
