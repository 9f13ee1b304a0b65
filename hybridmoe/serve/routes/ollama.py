"""ollama's /api/chat and /api/generate: JSON objects, a line each in a stream.

Format: ollama's docs/api.md. Streams are on unless `stream` is false.
"""

import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from hybridmoe.serve.call_arguments import as_object
from hybridmoe.serve.errors import ApiError, as_api_error, error_body, unsupported_value
from hybridmoe.serve.event_stream import LINE_KEEP_ALIVE, EventStreamResponse
from hybridmoe.serve.generation import Choice, ChoiceEnd, Delta, Generation, TokenLogprob
from hybridmoe.serve.inputs import TextInput
from hybridmoe.serve.json_response import CompactJSONResponse, encode_json
from hybridmoe.serve.logprobs import chat_logprobs
from hybridmoe.serve.routes.ollama_input import chat_input, generate_input
from hybridmoe.serve.routes.openapi import ERRORS, Responses
from hybridmoe.serve.schemas.ollama import (
    OllamaChatRequest,
    OllamaChatResponse,
    OllamaGenerateRequest,
    OllamaGenerateResponse,
    OllamaRequest,
)
from hybridmoe.serve.service import Service, get_service
from hybridmoe.serve.strict_json import StrictRoute
from hybridmoe.text.response import ToolCall
from hybridmoe.text.response_parser import CallEnd, ReasoningPart, TextPart

__all__ = ["ollama_model", "router", "timestamp"]

router = APIRouter(route_class=StrictRoute, tags=["ollama"])
_PATH = "/api/chat"
_LINES = "application/x-ndjson"
_STREAMED: dict[str, Any] = {
    "content": {_LINES: {"schema": {"type": "string"}}},
    "description": "The response, or an object a line unless `stream` is false.",
}
_CHAT: Responses = {200: {"model": OllamaChatResponse, **_STREAMED}, **ERRORS}
_GENERATE: Responses = {200: {"model": OllamaGenerateResponse, **_STREAMED}, **ERRORS}


@router.post("/api/chat", response_model=None, responses=_CHAT)
async def chat(body: OllamaChatRequest, request: Request) -> Response:
    """Continue a conversation in ollama's form."""
    started_s = time.perf_counter()
    service = get_service(request)
    model = ollama_model(service, body.model)
    if not body.messages:
        return await _loaded(service, model, {"message": _message("")})
    generation = await service.start_chat(chat_input(body), model)
    request.state.ignored_fields = _without_effect(generation, body)
    request.state.relaxed_schema = generation.request.relaxed
    return await _respond(_OllamaResponse(service, generation, body, started_s, is_chat=True))


@router.post("/api/generate", response_model=None, responses=_GENERATE)
async def generate(body: OllamaGenerateRequest, request: Request) -> Response:
    """Respond to a prompt, or continue a raw text, in ollama's form."""
    started_s = time.perf_counter()
    service = get_service(request)
    model = ollama_model(service, body.model)
    if body.suffix:
        raise unsupported_value("suffix", "models here are not trained to fill in the middle")
    if not body.prompt:
        return await _loaded(service, model, {"response": ""})
    if body.raw:
        if body.system:
            raise unsupported_value("system", "a raw text has no system message")
        text = TextInput(
            prompts=[body.prompt],
            format=body.response_format(),
            sampling=body.sampling(),
            top_logprobs=body.num_top_logprobs,
        )
        generation = await service.start_completion(text, model)
    else:
        generation = await service.start_chat(generate_input(body), model)
    request.state.ignored_fields = _without_effect(generation, body)
    request.state.relaxed_schema = generation.request.relaxed
    return await _respond(_OllamaResponse(service, generation, body, started_s, is_chat=False))


def ollama_model(service: Service, name: str) -> str:
    """Resolve a model's name, also with ollama's tag ":latest". Raises ApiError (404)."""
    try:
        return service.check_model(name)
    except ApiError:
        if not name.endswith(":latest"):
            raise
    return service.check_model(name.removesuffix(":latest"))


def timestamp(seconds: float | None = None) -> str:
    """Format a time, or the current one, as ollama does."""
    when = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return when.isoformat(timespec="microseconds").replace("+00:00", "Z")


async def _loaded(service: Service, model: str, content: dict[str, Any]) -> Response:
    """Respond to a request that only wants the model loaded."""
    async with service.lease(model):
        about = {"model": model, "created_at": timestamp(), "done": True, "done_reason": "load"}
        return CompactJSONResponse({**about, **content})


async def _respond(response: "_OllamaResponse") -> Response:
    generation, body = response.generation, response.body
    out: Response
    if not body.stream:
        out = response.whole(*await generation.finish())
    else:
        out = EventStreamResponse(
            response.lines(),
            generation.cancel,
            response.keep_alive_s,
            lambda: LINE_KEEP_ALIVE,
            _LINES,
        )
    return out


def _without_effect(generation: Generation, body: OllamaRequest) -> list[str]:
    """Name the fields that a response's header reports as ignored."""
    asked = body.options.num_ctx if body.options else None
    is_too_large = asked is not None and asked > generation.context_tokens
    is_raw = isinstance(body, OllamaGenerateRequest) and bool(body.raw)
    without_effect = {"options.num_ctx": is_too_large, "think": is_raw and body.think is not None}
    return [*generation.request.ignored, *(name for name, is_so in without_effect.items() if is_so)]


class _OllamaResponse:
    def __init__(
        self,
        service: Service,
        generation: Generation,
        body: OllamaRequest,
        started_s: float,
        *,
        is_chat: bool,
    ) -> None:
        self.generation = generation
        self.body = body
        self.keep_alive_s = service.config.keep_alive_s
        self._retry_after_s = service.config.retry_after_s
        self._started_s = started_s
        self._waited_s = time.perf_counter() - started_s
        self._is_chat = is_chat

    def whole(self, choice: Choice) -> Response:
        response = choice.response
        content = self._content(
            response.text, response.reasoning, list(enumerate(response.tool_calls))
        )
        logprobs = self._logprobs(choice.logprobs)
        return CompactJSONResponse({**self._base(), **content, **logprobs, **self._end(choice)})

    async def lines(self) -> AsyncIterator[bytes]:
        calls = self.generation.choices[0].response.tool_calls
        try:
            async for update in self.generation.updates():
                if isinstance(update, Delta):
                    ended = [p.index for p in update.parts if isinstance(p, CallEnd)]
                    text = "".join(p.text for p in update.parts if isinstance(p, TextPart))
                    thoughts = "".join(p.text for p in update.parts if isinstance(p, ReasoningPart))
                    if text or thoughts or ended:
                        content = self._content(text, thoughts, [(i, calls[i]) for i in ended])
                        yield self._line({**content, **self._logprobs(update.logprobs)})
                elif isinstance(update, ChoiceEnd):
                    end = self._end(self.generation.choices[0])
                    yield self._line({**self._content("", "", []), **end})
        except Exception as error:
            yield encode_json(error_body(as_api_error(error, self._retry_after_s), _PATH)) + b"\n"

    def _line(self, content: dict[str, Any]) -> bytes:
        return encode_json({**self._base(), "done": False, **content}) + b"\n"

    def _base(self) -> dict[str, Any]:
        return {"model": self.body.model, "created_at": timestamp()}

    def _content(
        self, text: str, thoughts: str, calls: Sequence[tuple[int, ToolCall]]
    ) -> dict[str, Any]:
        if not self._is_chat:
            return {"response": text, **({"thinking": thoughts} if thoughts else {})}
        message = _message(text)
        if thoughts:
            message["thinking"] = thoughts
        if calls:
            message["tool_calls"] = [_call(i, call) for i, call in calls]
        return {"message": message}

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        if self.body.num_top_logprobs is None:
            return {}
        return {"logprobs": chat_logprobs(entries, self.generation.tokenizer)}

    def _end(self, choice: Choice) -> dict[str, Any]:
        """Make the fields of the last object."""
        assert choice.end is not None and choice.usage is not None
        usage = choice.usage
        return {
            "done": True,
            "done_reason": "length" if choice.end.finish_reason == "length" else "stop",
            "total_duration": _ns(time.perf_counter() - self._started_s),
            "load_duration": _ns(self._waited_s + usage.queue_s),
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": _ns(usage.prompt_s),
            "eval_count": usage.generated_tokens,
            "eval_duration": _ns(usage.decode_s),
        }


def _message(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _call(index: int, call: ToolCall) -> dict[str, Any]:
    function = {"index": index, "name": call.name, "arguments": as_object(call.arguments)}
    return {"id": call.id, "function": function}


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
