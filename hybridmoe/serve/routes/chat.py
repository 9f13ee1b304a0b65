"""OpenAI's /v1/chat/completions."""

import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from hybridmoe.serve.errors import as_api_error, error_body, unsupported_value
from hybridmoe.serve.event_stream import DONE, EventStreamResponse, data_event
from hybridmoe.serve.generation import (
    Choice,
    ChoiceEnd,
    Delta,
    Generation,
    Progress,
    TokenLogprob,
)
from hybridmoe.serve.inputs import ChatInput
from hybridmoe.serve.json_response import CompactJSONResponse
from hybridmoe.serve.logprobs import chat_logprobs
from hybridmoe.serve.routes.openapi import ERRORS, json_or_stream
from hybridmoe.serve.schemas.chat import (
    AllowedToolChoice,
    ChatCompletionRequest,
    ChatCompletionResponse,
    NamedToolChoice,
    ToolChoiceMode,
)
from hybridmoe.serve.schemas.common import token_limit
from hybridmoe.serve.service import Service, get_service
from hybridmoe.serve.strict_json import StrictRoute
from hybridmoe.text.response import ToolCall
from hybridmoe.text.response_parser import ArgumentsPart, CallStart, Part, ReasoningPart, TextPart

__all__ = ["chat_input", "router"]

router = APIRouter(route_class=StrictRoute, tags=["OpenAI"])


@router.post("/chat/completions", response_model=None, include_in_schema=False)
@router.post(
    "/v1/chat/completions",
    response_model=None,
    responses={**json_or_stream(ChatCompletionResponse), **ERRORS},
)
async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
    """Create a chat completion, or a stream of `chat.completion.chunk` objects."""
    service = get_service(request)
    model = service.check_model(body.model)
    generation = await service.start_chat(chat_input(body), model)
    completion = _ChatCompletion(service, generation, model, body)
    if body.stream:
        events, keep_alive_s = completion.events(), service.config.keep_alive_s
        return EventStreamResponse(events, generation.cancel, keep_alive_s)
    return completion.whole(await generation.finish())


def chat_input(body: ChatCompletionRequest) -> ChatInput:
    """Convert a request's conversation, tools and options. Raises ApiError."""
    if body.top_logprobs and not body.logprobs:
        raise unsupported_value("top_logprobs", "needs logprobs: true")
    sampling = body.sampling()
    limit = token_limit(body.max_completion_tokens, body.max_tokens)
    if limit is not None:
        sampling["max_tokens"] = limit
    return ChatInput(
        messages=[message.model_dump(exclude_none=True) for message in body.messages],
        tools=[tool.model_dump(exclude_none=True) for tool in body.tools or ()],
        **_tool_choice(body),
        is_parallel=body.parallel_tool_calls is not False,
        format=body.response_format,
        sampling=sampling,
        num_choices=body.n or 1,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        expert_trace=body.return_experts,
    )


def _tool_choice(body: ChatCompletionRequest) -> dict[str, Any]:
    """Convert any form of tool_choice to fields of `ChatInput`."""
    choice = body.tool_choice or "auto"
    if isinstance(choice, NamedToolChoice):
        return {"tool_choice": "required", "forced_tool": choice.function.name}
    if isinstance(choice, AllowedToolChoice):
        names = [tool.function.name for tool in choice.allowed_tools.tools]
        return {"tool_choice": choice.allowed_tools.mode, "allowed_tools": names}
    mode = choice.type if isinstance(choice, ToolChoiceMode) else choice
    return {"tool_choice": "required" if mode == "any" else mode}


class _ChatCompletion:
    def __init__(
        self, service: Service, generation: Generation, model: str, body: ChatCompletionRequest
    ) -> None:
        self._generation = generation
        self._body = body
        self._retry_after_s = service.config.retry_after_s
        self._tokenizer = generation.tokenizer
        options = body.stream_options
        self._has_usage = options is not None and options.include_usage
        self._base = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": generation.created,
            "model": model,
            "system_fingerprint": generation.fingerprint,
        }

    def whole(self, choices: list[Choice]) -> Response:
        return CompactJSONResponse(
            {
                **self._base,
                "choices": [self._choice(i, choice) for i, choice in enumerate(choices)],
                "usage": self._generation.usage(),
                "timings": self._generation.timings(),
            }
        )

    async def events(self) -> AsyncIterator[bytes]:
        self._base["object"] = "chat.completion.chunk"
        if self._has_usage:
            self._base["usage"] = None
        begun: set[int] = set()  # choices whose prompt has been read
        try:
            async for update in self._generation.updates():
                if isinstance(update, Progress):
                    if self._body.return_progress:
                        yield self._progress_chunk(update)
                    continue
                if update.choice not in begun:
                    begun.add(update.choice)
                    yield self._chunk(update.choice, {"role": "assistant", "content": ""})
                if isinstance(update, ChoiceEnd):
                    yield self._end_chunk(update)
                elif (chunk := self._delta_chunk(update)) is not None:
                    yield chunk
            if self._has_usage:
                yield data_event({**self._base, "choices": [], "usage": self._generation.usage()})
        except Exception as error:
            refusal = as_api_error(error, self._retry_after_s)
            yield data_event(error_body(refusal, ""))
        yield DONE

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        assert choice.end is not None
        response = choice.response
        message: dict[str, Any] = {"role": "assistant", "content": response.text, "refusal": None}
        if response.reasoning:
            message["reasoning_content"] = response.reasoning
        if response.tool_calls:
            message["content"] = response.text or None
            message["tool_calls"] = [call.to_openai() for call in response.tool_calls]
        out = {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": choice.end.finish_reason,
        }
        return {**out, "experts": choice.experts} if self._body.return_experts else out

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        return {"content": chat_logprobs(entries, self._tokenizer), "refusal": None}

    def _delta_chunk(self, update: Delta) -> bytes | None:
        """Make a chunk; None for a delta that holds only the end of a call."""
        delta: dict[str, Any] = {}
        for part in update.parts:
            _merge(delta, part)
        logprobs = self._logprobs(update.logprobs) if update.logprobs else None
        extra: dict[str, Any] = {"experts": update.experts} if update.experts else {}
        if not (delta or logprobs or extra):
            return None
        return self._chunk(update.choice, delta, logprobs=logprobs, **extra)

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
        **extra: Any,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return data_event({**self._base, "choices": [choice], **extra})

    def _progress_chunk(self, update: Progress) -> bytes:
        progress = {
            "total": update.total_tokens,
            "cache": update.cached_tokens,
            "processed": update.done_tokens,
        }
        return self._chunk(update.choice, {}, prompt_progress=progress)

    def _end_chunk(self, update: ChoiceEnd) -> bytes:
        """Make a choice's last chunk. The last choice's has `timings` too."""
        extra: dict[str, Any] = (
            {"timings": self._generation.timings()} if self._generation.is_done else {}
        )
        return self._chunk(update.choice, {}, reason=update.finish_reason, **extra)


def _merge(delta: dict[str, Any], part: Part) -> None:
    """Add a part to a chunk's delta."""
    if isinstance(part, TextPart):
        delta["content"] = delta.get("content", "") + part.text
    elif isinstance(part, ReasoningPart):
        delta["reasoning_content"] = delta.get("reasoning_content", "") + part.text
    elif isinstance(part, CallStart):
        call = {"index": part.index, **ToolCall(part.id, part.name).to_openai()}
        delta.setdefault("tool_calls", []).append(call)
    elif isinstance(part, ArgumentsPart):
        calls = delta.setdefault("tool_calls", [])
        if calls and calls[-1]["index"] == part.index:
            calls[-1]["function"]["arguments"] += part.text
        else:
            calls.append({"index": part.index, "function": {"arguments": part.text}})
