"""OpenAI's /v1/responses: a request has its whole conversation, or continues a stored one."""

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from hybridmoe.serve.compaction import compact, compact_above, compaction_item
from hybridmoe.serve.errors import as_api_error
from hybridmoe.serve.event_stream import EventStreamResponse
from hybridmoe.serve.generation import ChoiceEnd, Delta, Generation
from hybridmoe.serve.inputs import ChatInput
from hybridmoe.serve.json_response import CompactJSONResponse
from hybridmoe.serve.logprobs import chat_logprobs
from hybridmoe.serve.routes.openapi import ERRORS, json_or_stream
from hybridmoe.serve.routes.responses_events import OutputItems
from hybridmoe.serve.routes.responses_input import (
    chat_input,
    conversation,
    conversation_id,
    function_tools,
)
from hybridmoe.serve.schemas.responses import (
    CompactedResponse,
    CompactRequest,
    InputTokensRequest,
    InputTokensResponse,
    ResponsesRequest,
    ResponsesResponse,
)
from hybridmoe.serve.service import Service, get_service
from hybridmoe.serve.stored_id import new_id
from hybridmoe.serve.strict_json import StrictRoute

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute, tags=["OpenAI"])
Items = list[dict[str, Any]]
_LABELS = ("prompt_cache_key", "safety_identifier", "user")  # given back as they came


@router.post("/responses", response_model=None, include_in_schema=False)
@router.post(
    "/v1/responses",
    response_model=None,
    responses={**json_or_stream(ResponsesResponse), **ERRORS},
)
async def create_response(body: ResponsesRequest, request: Request) -> Response:
    """Create a response, or a stream of typed events."""
    service = get_service(request)
    model = service.check_model(body.model)
    before, new = await _conversation(service, body)
    chat = chat_input(body, [*before, *new])
    item = await _compaction(service, body, chat, model)
    generation = await service.start_chat(chat, model)
    request.state.ignored_fields = generation.request.ignored
    request.state.relaxed_schema = generation.request.relaxed
    response = _ModelResponse(service, generation, model, body, before, new, item)
    if body.stream:
        events, keep_alive_s = response.events(), service.config.keep_alive_s
        return EventStreamResponse(events, generation.cancel, keep_alive_s)
    try:
        return await response.whole()
    finally:
        generation.cancel()


@router.post(
    "/v1/responses/compact",
    response_model=None,
    responses={200: {"model": CompactedResponse}, **ERRORS},
)
async def compact_conversation(body: CompactRequest, request: Request) -> Response:
    """Summarize a conversation but for its last turn. Nothing is stored."""
    service = get_service(request)
    model = service.check_model(body.model)
    before, new = await _conversation(service, body)
    chat = chat_input(body, [*before, *new])
    compacted = await compact(service, chat, model, keep_share=0.0)
    messages = chat.messages if compacted is None else compacted.messages
    if compacted is None:  # nothing to summarize: the item stands for it all
        usage = _usage(await service.count_tokens(chat, model), 0, 0, 0)
    else:
        usage = _usage_of(compacted.generation)
    return CompactJSONResponse(
        {
            "id": new_id("resp"),
            "object": "response.compaction",
            "created_at": int(time.time()),
            "output": [compaction_item(_without_instructions(body, messages))],
            "usage": usage,
        }
    )


@router.post(
    "/v1/responses/input_tokens",
    response_model=None,
    responses={200: {"model": InputTokensResponse}, **ERRORS},
)
async def count_input_tokens(body: InputTokensRequest, request: Request) -> Response:
    """Count the tokens of a response's prompt. Nothing is computed or stored."""
    service = get_service(request)
    model = service.check_model(body.model)
    before, new = await _conversation(service, body)
    count = await service.count_tokens(chat_input(body, [*before, *new]), model)
    return CompactJSONResponse({"object": "response.input_tokens", "input_tokens": count})


async def _compaction(
    service: Service, body: ResponsesRequest, chat: ChatInput, model: str
) -> dict[str, Any] | None:
    """Compact the conversation where the request asks for it. Returns the item for the output."""
    if not body.context_management:
        return None
    threshold = body.context_management[0].compact_threshold
    compacted = await compact_above(service, chat, model, threshold)
    if compacted is None:
        return None
    chat.messages = compacted.messages
    return compaction_item(_without_instructions(body, chat.messages))


def _without_instructions(body: ResponsesRequest, messages: Items) -> Items:
    """Leave out the message of `instructions`, which each request has anew."""
    return messages[1:] if body.instructions else messages


async def _conversation(service: Service, body: ResponsesRequest) -> tuple[Items, Items]:
    return await service.pool.run(
        lambda _: conversation(body, service.responses, service.conversations), is_short=True
    )


class _ModelResponse:
    def __init__(
        self,
        service: Service,
        generation: Generation,
        model: str,
        body: ResponsesRequest,
        before: Items,
        new: Items,
        compaction: dict[str, Any] | None,
    ) -> None:
        """before, new: items of the conversation that is continued, and of the request.

        compaction: the first item of the output, if any.
        """
        self._generation = generation
        self._store = service.responses if body.store is not False else None
        self._conversations = service.conversations
        self._before, self._new = before, new
        self._compaction = compaction
        self._retry_after_s = service.config.retry_after_s
        tokenizer = generation.tokenizer
        self._has_progress = body.return_progress
        self._has_timings = body.timings_per_token
        timings = generation.timings if body.timings_per_token else None
        self._items = OutputItems(lambda entries: chat_logprobs(entries, tokenizer), timings)
        choice = body.tool_choice or "auto"
        extra = body.model_extra or {}
        self._base: dict[str, Any] = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": generation.created,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "conversation": {"id": name} if (name := conversation_id(body)) else None,
            "previous_response_id": body.previous_response_id or None,
            "store": self._store is not None,
            "temperature": generation.request.params.temperature,
            "text": (body.text.model_dump(by_alias=True, exclude_none=True) if body.text else None)
            or {"format": {"type": "text"}},
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [tool.model_dump(exclude_none=True) for _, tool in function_tools(body)],
            "top_p": generation.request.params.top_p,
            "truncation": "disabled",
            "usage": None,
            "background": False,
            "completed_at": None,
            "max_tool_calls": None,
            "prompt": None,
            "service_tier": "default",
            "top_logprobs": body.top_logprobs or 0,
            **{name: extra.get(name) for name in _LABELS},
        }

    async def whole(self) -> Response:
        end = None
        for _ in self._first_items():
            pass
        async for update in self._generation.updates():
            if isinstance(update, Delta):
                for _ in self._items.delta(update):
                    pass
            elif isinstance(update, ChoiceEnd):
                end = update
        assert end is not None
        for _ in self._items.close(_status(end)):
            pass
        return CompactJSONResponse(self._ended(end))

    async def events(self) -> AsyncIterator[bytes]:
        items = self._items
        yield items.event("response.created", response=self._base)
        yield items.event("response.in_progress", response=self._base)
        for event in self._first_items():
            yield event
        try:
            async for update in self._generation.updates():
                if isinstance(update, Delta):
                    for event in items.delta(update):
                        yield event
                elif isinstance(update, ChoiceEnd):
                    for event in items.close(_status(update)):
                        yield event
                    kind = f"response.{_status(update)}"
                    extra = {"timings": self._generation.timings()} if self._has_timings else {}
                    yield items.event(kind, response=self._ended(update), **extra)
                elif self._has_progress:
                    progress = update.to_llama_cpp()
                    yield items.event(
                        "response.in_progress", response=self._base, prompt_progress=progress
                    )
        except Exception as error:
            refusal = as_api_error(error, self._retry_after_s)
            what = {"code": refusal.code or refusal.type, "message": str(refusal)}
            failed = {**self._base, "status": "failed", "error": what, "output": items.output}
            yield items.event("response.failed", response=failed)

    def _first_items(self) -> Iterator[bytes]:
        return self._items.add(self._compaction) if self._compaction else iter(())

    def _ended(self, end: ChoiceEnd) -> dict[str, Any]:
        generation = self._generation
        is_cut = end.finish_reason == "length"
        response = {
            **self._base,
            "status": _status(end),
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": self._items.output,
            "completed_at": int(time.time()),
            "usage": _usage_of(generation),
            "timings": generation.timings(),
        }
        self._keep(response)
        return response

    def _keep(self, response: dict[str, Any]) -> None:
        """Store the response, and add its input and output to its conversation."""
        past, output = [*self._before, *self._new], self._items.output
        if self._store is not None:
            self._store.put(response, [*past, *output], len(past))
        if response["conversation"] is not None:
            self._conversations.extend(response["conversation"]["id"], [*self._new, *output])


def _usage_of(generation: Generation) -> dict[str, Any]:
    return _usage(
        generation.prompt_tokens,
        generation.cached_tokens,
        generation.completion_tokens,
        generation.reasoning_tokens,
    )


def _usage(prompt: int, cached: int, completion: int, reasoning: int) -> dict[str, Any]:
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": prompt + completion,
    }


def _status(end: ChoiceEnd) -> str:
    return "incomplete" if end.finish_reason == "length" else "completed"
