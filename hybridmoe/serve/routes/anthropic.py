"""Anthropic's /v1/messages and /v1/messages/count_tokens."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from hybridmoe.serve.call_arguments import as_object
from hybridmoe.serve.errors import as_api_error, error_body
from hybridmoe.serve.event_stream import EventStreamResponse
from hybridmoe.serve.generation import Choice, Delta, Generation, Progress
from hybridmoe.serve.json_response import CompactJSONResponse
from hybridmoe.serve.routes.anthropic_events import AnthropicEvents, stop_reason
from hybridmoe.serve.routes.anthropic_input import chat_input
from hybridmoe.serve.routes.openapi import ERRORS, json_or_stream
from hybridmoe.serve.schemas.anthropic import (
    CountTokensRequest,
    CountTokensResponse,
    MessagesRequest,
    MessagesResponse,
)
from hybridmoe.serve.schemas.common import stop_list
from hybridmoe.serve.schemas.output import ResponseFormat
from hybridmoe.serve.service import Service, get_service
from hybridmoe.serve.strict_json import StrictRoute

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute, tags=["Anthropic"])
_PATH = "/v1/messages"


@router.post(_PATH, response_model=None, responses={**json_or_stream(MessagesResponse), **ERRORS})
async def create_message(body: MessagesRequest, request: Request) -> Response:
    """Create a message, or a stream of Anthropic's events."""
    service = get_service(request)
    model = service.check_model(body.model)
    chat = chat_input(body)
    chat.sampling = _sampling(body)
    chat.format = _format(body)
    chat.relative_temperature = body.temperature
    generation = await service.start_chat(chat, model)
    request.state.ignored_fields = generation.request.ignored
    request.state.relaxed_schema = generation.request.relaxed
    message = _empty_message(generation, model)
    if body.stream:
        maker, keep_alive_s = AnthropicEvents(), service.config.keep_alive_s
        events = _events(service, generation, message, maker)
        return EventStreamResponse(events, generation.cancel, keep_alive_s, maker.keep_alive)
    (choice,) = await generation.finish()
    return _whole(generation, message, choice)


@router.post(
    f"{_PATH}/count_tokens",
    response_model=None,
    responses={200: {"model": CountTokensResponse}, **ERRORS},
)
async def count_tokens(body: CountTokensRequest, request: Request) -> Response:
    """Count the tokens of a conversation's prompt."""
    service = get_service(request)
    model = service.check_model(body.model)
    num_tokens = await service.count_tokens(chat_input(body), model)
    return CompactJSONResponse({"input_tokens": num_tokens})


def _sampling(body: MessagesRequest) -> dict[str, Any]:
    out = {**body.sampling(), "max_tokens": body.max_tokens}
    out.pop("temperature", None)  # relative to the model's own
    stop = [*out.get("stop", ()), *stop_list(body.stop_sequences or [])]
    return {**out, "stop": stop} if stop else out


def _format(body: MessagesRequest) -> ResponseFormat | None:
    config = body.output_config
    given = {
        "output_config.format": config.format if config is not None else None,
        "output_format": body.output_format,
    }
    return body.structured_format(
        **{
            name: ResponseFormat(type="json_schema", json_schema={"schema": one.schema_})
            if one is not None
            else None
            for name, one in given.items()
        }
    )


def _empty_message(generation: Generation, model: str) -> dict[str, Any]:
    """Make the message as it starts: without content."""
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "stop_details": None,
        "container": None,
        "usage": _usage(generation, 0),
    }


def _usage(generation: Generation, cached_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": generation.prompt_tokens - cached_tokens,
        "output_tokens": generation.completion_tokens,
        "cache_read_input_tokens": cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_creation": None,
        "server_tool_use": None,
        "service_tier": "standard",
    }


def _whole(generation: Generation, message: dict[str, Any], choice: Choice) -> Response:
    assert choice.end is not None
    response = choice.response
    content: list[dict[str, Any]] = []
    if response.reasoning:
        content.append({"type": "thinking", "thinking": response.reasoning, "signature": ""})
    if response.text or not response.tool_calls:
        content.append({"type": "text", "text": response.text})
    for call in response.tool_calls:
        arguments = as_object(call.arguments)
        content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": arguments})
    whole = {
        **message,
        "content": content,
        "stop_reason": stop_reason(choice.end),
        "stop_sequence": choice.end.stop_string,
        "usage": _usage(generation, generation.cached_tokens),
    }
    return CompactJSONResponse(whole)


async def _events(
    service: Service, generation: Generation, message: dict[str, Any], events: AnthropicEvents
) -> AsyncIterator[bytes]:
    """Make the events. The message starts when its prompt has been read."""
    cached_tokens = 0
    try:
        async for update in generation.updates():
            if isinstance(update, Progress):
                cached_tokens = update.cached_tokens
                continue
            if not events.is_started:
                yield events.start({**message, "usage": _usage(generation, cached_tokens)})
            if isinstance(update, Delta):
                for event in events.delta(update):
                    yield event
            else:
                usage = _usage(generation, generation.cached_tokens)
                for event in events.end(update, usage):
                    yield event
    except Exception as error:
        refusal = as_api_error(error, service.config.retry_after_s)
        yield events.error(error_body(refusal, _PATH))
