"""OpenAI's /v1/conversations: stored conversations, which responses continue."""

from typing import Literal

from fastapi import APIRouter, Request
from starlette.responses import Response

from hybridmoe.serve.conversation_store import Conversation
from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.json_response import CompactJSONResponse
from hybridmoe.serve.routes.openapi import ERRORS
from hybridmoe.serve.routes.responses_input import new_items
from hybridmoe.serve.routes.stored_responses import Limit
from hybridmoe.serve.schemas.common import JsonObject, Model
from hybridmoe.serve.schemas.responses import (
    ConversationItemsRequest,
    ConversationRequest,
    ConversationResponse,
    DeletedConversation,
    ItemList,
)
from hybridmoe.serve.service import get_service
from hybridmoe.serve.stored_items import item_page, listed_item
from hybridmoe.serve.strict_json import StrictRoute

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute, tags=["OpenAI"])
_ALL = "/v1/conversations"
_ONE = f"{_ALL}/{{conversation_id}}"
_ITEMS = f"{_ONE}/items"
_ITEM = f"{_ITEMS}/{{item_id}}"
_CONVERSATION = {200: {"model": ConversationResponse}, **ERRORS}
_LIST = {200: {"model": ItemList}, **ERRORS}


class _StoredItem(Model):
    id: str
    type: str


@router.post(_ALL, response_model=None, responses=_CONVERSATION)
async def create_conversation(body: ConversationRequest, request: Request) -> Response:
    """Create a conversation."""
    service = get_service(request)
    items = new_items(body.items or [], service.responses, "items")
    made = service.conversations.create(items, body.metadata or {})
    return CompactJSONResponse(made.to_json())


@router.get(_ONE, response_model=None, responses=_CONVERSATION)
async def get_conversation(conversation_id: str, request: Request) -> Response:
    """Get a conversation, without its items."""
    return CompactJSONResponse(_find(request, conversation_id).to_json())


@router.post(_ONE, response_model=None, responses=_CONVERSATION)
async def update_conversation(
    conversation_id: str, body: ConversationRequest, request: Request
) -> Response:
    """Replace a conversation's metadata."""
    store = get_service(request).conversations
    changed = store.set_metadata(conversation_id, body.metadata or {})
    return CompactJSONResponse(_stored(changed, conversation_id).to_json())


@router.delete(_ONE, response_model=None, responses={200: {"model": DeletedConversation}, **ERRORS})
async def delete_conversation(conversation_id: str, request: Request) -> Response:
    """Delete a conversation. Stored responses that continued it stay."""
    if not get_service(request).conversations.delete(conversation_id):
        raise _not_stored(conversation_id)
    deleted = {"id": conversation_id, "object": "conversation.deleted", "deleted": True}
    return CompactJSONResponse(deleted)


@router.get(_ITEMS, response_model=None, responses=_LIST)
async def list_items(
    conversation_id: str,
    request: Request,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
    limit: Limit = 20,
) -> Response:
    """List a conversation's items."""
    items = _find(request, conversation_id).parsed_items()
    return CompactJSONResponse(item_page(items, order, after, limit))


@router.post(_ITEMS, response_model=None, responses=_LIST)
async def add_items(
    conversation_id: str, body: ConversationItemsRequest, request: Request
) -> Response:
    """Add items to a conversation. Returns them, with their ids."""
    service = get_service(request)
    items = new_items(body.items, service.responses, "items")
    _stored(service.conversations.extend(conversation_id, items), conversation_id)
    return CompactJSONResponse(item_page(items, "asc", None, max(1, len(items))))


@router.get(_ITEM, response_model=None, responses={200: {"model": _StoredItem}, **ERRORS})
async def get_item(conversation_id: str, item_id: str, request: Request) -> Response:
    """Get an item of a conversation."""
    found = _find(request, conversation_id).parsed_items()
    item: JsonObject | None = next((one for one in found if one["id"] == item_id), None)
    if item is None:
        raise _no_item(item_id)
    return CompactJSONResponse(listed_item(item))


@router.delete(_ITEM, response_model=None, responses=_CONVERSATION)
async def delete_item(conversation_id: str, item_id: str, request: Request) -> Response:
    """Remove an item from a conversation. Returns the conversation."""
    _find(request, conversation_id)
    changed = get_service(request).conversations.remove_item(conversation_id, item_id)
    if changed is None:
        raise _no_item(item_id)
    return CompactJSONResponse(changed.to_json())


def _find(request: Request, conversation_id: str) -> Conversation:
    found = get_service(request).conversations.get(conversation_id)
    return _stored(found, conversation_id)


def _stored(found: Conversation | None, conversation_id: str) -> Conversation:
    if found is None:
        raise _not_stored(conversation_id)
    return found


def _not_stored(conversation_id: str) -> ApiError:
    return ApiError(
        404, f"Conversation with id {conversation_id!r:.80} not found.", param="conversation_id"
    )


def _no_item(item_id: str) -> ApiError:
    return ApiError(404, f"Item with id {item_id!r:.80} not found.", param="item_id")
