"""Anthropic's /v1/messages and /v1/messages/count_tokens."""

import json
import math
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from hybridmoe.serve.answer import reply_whole, service_of
from hybridmoe.serve.errors import as_api_error, error_body
from hybridmoe.serve.reply import KEEP_ALIVE, EventStream, JsonReply
from hybridmoe.serve.routes.anthropic_events import PING, AnthropicEvents, stop_reason
from hybridmoe.serve.routes.anthropic_turn import as_turn
from hybridmoe.serve.routes.documented import ERRORS, stream_or
from hybridmoe.serve.run import Choice, Delta, Ended, Run
from hybridmoe.serve.schemas.anthropic import (
    AnthropicAnswer,
    CountAnswer,
    CountRequest,
    MessagesRequest,
)
from hybridmoe.serve.schemas.common import refuse_unsupported, stop_list
from hybridmoe.serve.service import Service
from hybridmoe.serve.strict_json import StrictRoute

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute, tags=["Anthropic"])
_PATH = "/v1/messages"


@router.post(_PATH, response_model=None, responses={**stream_or(AnthropicAnswer), **ERRORS})
async def create_message(body: MessagesRequest, request: Request) -> Response:
    """Answer a conversation, whole or as Anthropic's events."""
    service = service_of(request)
    refuse_unsupported(body)
    model = service.check_model(body.model)
    turn = as_turn(body)
    turn.sampling = _sampling(service, body)
    run = await service.run_chat(turn)
    message = _message(run, model)
    if body.stream:
        events, silence_s = _events(service, run, message), service.config.keep_alive_s
        return EventStream(events, run.cancel, silence_s, KEEP_ALIVE + PING)
    return await reply_whole(run, lambda choices: _whole(run, message, choices[0]))


@router.post(
    f"{_PATH}/count_tokens", response_model=None, responses={200: {"model": CountAnswer}, **ERRORS}
)
async def count_tokens(body: CountRequest, request: Request) -> Response:
    """How many tokens the conversation has, as this model would read it."""
    service = service_of(request)
    refuse_unsupported(body)
    service.check_model(body.model)
    return JsonReply({"input_tokens": await service.count_tokens(as_turn(body))})


def _sampling(service: Service, body: MessagesRequest) -> dict[str, Any]:
    out: dict[str, Any] = {"max_tokens": body.max_tokens}
    if body.temperature is not None:
        recommended = service.llm.sampling_params({}).temperature
        out["temperature"] = body.temperature * recommended
    if body.top_p is not None:
        out["top_p"] = body.top_p
    if body.top_k is not None:
        out["top_k"] = body.top_k
    if body.stop_sequences:
        out["stop"] = stop_list(body.stop_sequences)
    return out


def _message(run: Run, model: str) -> dict[str, Any]:
    """The answer before it has anything in it."""
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": run.prompt_tokens,
            "output_tokens": 0,
            "cache_read_input_tokens": 0,
            "cache_creation_input_tokens": 0,
        },
    }


def _usage(run: Run) -> dict[str, Any]:
    return {
        "input_tokens": run.prompt_tokens - run.cached_tokens,
        "output_tokens": run.completion_tokens,
        "cache_read_input_tokens": run.cached_tokens,
        "cache_creation_input_tokens": 0,
    }


def _whole(run: Run, message: dict[str, Any], choice: Choice) -> Response:
    assert choice.end is not None
    response = choice.response
    content: list[dict[str, Any]] = []
    if response.reasoning:
        content.append({"type": "thinking", "thinking": response.reasoning, "signature": ""})
    if response.text or not response.tool_calls:
        content.append({"type": "text", "text": response.text})
    for call in response.tool_calls:
        arguments = _as_object(call.arguments)
        content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": arguments})
    answer = {
        **message,
        "content": content,
        "stop_reason": stop_reason(choice.end),
        "stop_sequence": choice.end.stop_string,
        "usage": _usage(run),
        "timings": run.timings(),
    }
    return JsonReply(answer)


async def _events(service: Service, run: Run, message: dict[str, Any]) -> AsyncIterator[bytes]:
    events = AnthropicEvents()
    try:
        yield events.start(message)
        async for update in run.updates():
            if isinstance(update, Delta):
                for event in events.delta(update):
                    yield event
            elif isinstance(update, Ended):
                for event in events.end(update, _usage(run)):
                    yield event
    except Exception as error:
        refusal = as_api_error(error, service.config.retry_after_s)
        yield events.error(error_body(refusal, _PATH))


def _as_object(arguments: str) -> dict[str, Any]:
    """Arguments as Anthropic's clients want them; what is no object (cut off, or the model's
    mistake) stands under a key of its own.
    """
    try:
        value = json.loads(arguments, parse_constant=str, parse_float=_number)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"_unparsed": arguments}


def _number(digits: str) -> float | str:
    """A float, but for one that is infinite, which the answer's JSON could not hold."""
    value = float(digits)
    return digits if math.isinf(value) else value
