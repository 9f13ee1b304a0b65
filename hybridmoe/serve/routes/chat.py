"""OpenAI's /v1/chat/completions."""

import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from hybridmoe.serve.completion_logprobs import prompt_logprobs_by_id
from hybridmoe.serve.errors import as_api_error, error_body
from hybridmoe.serve.event_stream import DONE, EventStreamResponse, data_event
from hybridmoe.serve.generation import (
    Choice,
    ChoiceEnd,
    Delta,
    Generation,
    Progress,
    TokenLogprob,
)
from hybridmoe.serve.json_response import CompactJSONResponse
from hybridmoe.serve.logprobs import chat_logprobs
from hybridmoe.serve.routes.chat_input import chat_input
from hybridmoe.serve.routes.openapi import ERRORS, json_or_stream
from hybridmoe.serve.schemas.chat import ChatCompletionRequest, ChatCompletionResponse
from hybridmoe.serve.schemas.common import StreamOptions
from hybridmoe.serve.schemas.responses import InputTokensResponse
from hybridmoe.serve.service import Service, get_service
from hybridmoe.serve.strict_json import StrictRoute
from hybridmoe.serve.token_ids import TokenIds
from hybridmoe.text.response import ToolCall
from hybridmoe.text.response_parser import ArgumentsPart, CallStart, Part, ReasoningPart, TextPart

__all__ = ["router"]

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
    request.state.ignored_fields = generation.request.ignored
    request.state.relaxed_schema = generation.request.relaxed
    completion = _ChatCompletion(service, generation, model, body)
    if body.stream:
        events, keep_alive_s = completion.events(), service.config.keep_alive_s
        return EventStreamResponse(events, generation.cancel, keep_alive_s)
    return await completion.whole(await generation.finish())


@router.post("/chat/completions/input_tokens", response_model=None, include_in_schema=False)
@router.post(
    "/v1/chat/completions/input_tokens",
    response_model=None,
    responses={200: {"model": InputTokensResponse}, **ERRORS},
)
async def count_input_tokens(body: ChatCompletionRequest, request: Request) -> Response:
    """Count the tokens of a chat completion's prompt. Nothing is computed."""
    service = get_service(request)
    count = await service.count_tokens(chat_input(body), service.check_model(body.model))
    return CompactJSONResponse({"object": "response.input_tokens", "input_tokens": count})


class _ChatCompletion:
    def __init__(
        self, service: Service, generation: Generation, model: str, body: ChatCompletionRequest
    ) -> None:
        self._generation = generation
        self._body = body
        self._retry_after_s = service.config.retry_after_s
        self._tokenizer = generation.tokenizer
        options = body.stream_options or StreamOptions()
        self._has_usage = options.include_usage or options.continuous_usage_stats
        self._has_usages = options.continuous_usage_stats
        self._has_logprobs = bool(body.logprobs or body.n_probs)
        self._has_function_call = bool(body.functions)
        self._token_ids = TokenIds(generation) if body.return_token_ids else None
        self._base = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": generation.created,
            "model": model,
            "system_fingerprint": generation.fingerprint,
        }

    async def whole(self, choices: list[Choice]) -> Response:
        if self._body.prompt_logprobs is None:
            return self._whole(choices)
        return await run_in_threadpool(self._whole, choices)  # every token of the prompt

    def _whole(self, choices: list[Choice]) -> Response:
        body = {
            **self._base,
            "choices": [self._choice(i, choice) for i, choice in enumerate(choices)],
            "usage": self._generation.usage(),
            "timings": self._generation.timings(),
        }
        if self._body.prompt_logprobs is not None:
            body["prompt_logprobs"] = prompt_logprobs_by_id(
                self._generation.request.prompt_of(0),
                self._generation.prompt_logprobs(0),
                self._body.prompt_logprobs,
                self._tokenizer,
            )
        if self._token_ids is not None:
            body |= self._token_ids.of_prompt(0)
        return CompactJSONResponse(body)

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
                    ids = self._token_ids.of_prompt(0) if self._token_ids and not begun else {}
                    begun.add(update.choice)
                    first = {"role": "assistant", "content": ""}
                    yield self._chunk(update.choice, first, **ids)
                if isinstance(update, ChoiceEnd):
                    yield self._end_chunk(update)
                elif (chunk := self._delta_chunk(update)) is not None:
                    yield chunk
            if self._has_usage:
                counts = {
                    "usage": self._generation.usage(),
                    "timings": self._generation.timings(),
                }
                yield data_event({**self._base, "choices": [], **counts})
        except Exception as error:
            refusal = as_api_error(error, self._retry_after_s)
            yield data_event(error_body(refusal, ""))
        yield DONE

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        assert choice.end is not None
        response = choice.response
        message: dict[str, Any] = {"role": "assistant", "content": response.text, "refusal": None}
        if response.reasoning and self._body.include_reasoning:
            message["reasoning_content"] = response.reasoning
        if response.tool_calls:
            message["content"] = response.text or None
            message |= self._calls([call.to_openai() for call in response.tool_calls])
        out = {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": self._reason(choice.end),
            **({} if self._token_ids is None else self._token_ids.take(index)),
        }
        return {**out, **choice.experts.fields()} if self._body.return_experts else out

    def _reason(self, end: ChoiceEnd) -> str:
        is_call = end.finish_reason == "tool_calls"
        return "function_call" if is_call and self._has_function_call else end.finish_reason

    def _calls(self, calls: list[dict[str, Any]]) -> dict[str, Any]:
        """Make the field of a message or delta that has the calls; older requests allow one."""
        if self._has_function_call:
            return {"function_call": calls[0]["function"]}
        return {"tool_calls": calls}

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self._has_logprobs:
            return None
        return {
            "content": chat_logprobs(
                entries, self._tokenizer, by_id=self._body.return_tokens_as_token_ids
            ),
            "refusal": None,
        }

    def _delta_chunk(self, update: Delta) -> bytes | None:
        """Make a chunk; None for a delta that holds only the end of a call."""
        delta: dict[str, Any] = {}
        for part in update.parts:
            if self._body.include_reasoning or not isinstance(part, ReasoningPart):
                _merge(delta, part)
        if "tool_calls" in delta:
            delta |= self._calls(delta.pop("tool_calls"))
        logprobs = self._logprobs(update.logprobs) if update.logprobs else None
        extra = update.experts.fields() if update.experts else {}
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
        if self._token_ids is not None:
            choice |= {"token_ids": []} if "role" in delta else self._token_ids.take(index)
        if self._has_usages:
            extra["usage"] = self._generation.usage()
        if self._body.timings_per_token:
            extra["timings"] = self._generation.timings()
        return data_event({**self._base, "choices": [choice], **extra})

    def _progress_chunk(self, update: Progress) -> bytes:
        return self._chunk(update.choice, {}, prompt_progress=update.to_llama_cpp())

    def _end_chunk(self, update: ChoiceEnd) -> bytes:
        """Make a choice's last chunk. The last choice's has `timings` too."""
        extra: dict[str, Any] = (
            {"timings": self._generation.timings()} if self._generation.is_done else {}
        )
        return self._chunk(update.choice, {}, reason=self._reason(update), **extra)


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
