"""OpenAI's /v1/completions."""

import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from hybridmoe.serve.errors import as_api_error, error_body
from hybridmoe.serve.event_stream import DONE, EventStreamResponse, data_event
from hybridmoe.serve.generation import Choice, ChoiceEnd, Delta, Generation, TokenLogprob
from hybridmoe.serve.inputs import TextInput
from hybridmoe.serve.json_response import CompactJSONResponse
from hybridmoe.serve.logprobs import finite, token_text
from hybridmoe.serve.routes.openapi import ERRORS, json_or_stream
from hybridmoe.serve.schemas.common import StreamOptions, token_limit
from hybridmoe.serve.schemas.completions import CompletionRequest, CompletionResponse
from hybridmoe.serve.service import Service, get_service
from hybridmoe.serve.strict_json import StrictRoute
from hybridmoe.text.response_parser import TextPart

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute, tags=["OpenAI"])
_DEFAULT_MAX_TOKENS = 16  # OpenAI's


@router.post(
    "/v1/completions",
    response_model=None,
    responses={**json_or_stream(CompletionResponse), **ERRORS},
)
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Create a completion of a raw text, or a stream."""
    service = get_service(request)
    model = service.check_model(body.model)
    text = TextInput(
        prompts=_prompts(body.prompt),
        add_special=body.add_special_tokens,
        format=body.structured_format(),
        sampling={
            **body.sampling(),
            "max_tokens": token_limit(body.max_tokens, body.n_predict, _DEFAULT_MAX_TOKENS),
        },
        num_choices=body.n or body.n_cmpl or 1,
        top_logprobs=body.logprobs if body.logprobs is not None else body.n_probs or None,
        expert_trace=body.return_experts,
    )
    generation = await service.start_completion(text, model)
    completion = _Completion(service, generation, model, body)
    if body.stream:
        events, keep_alive_s = completion.events(), service.config.keep_alive_s
        return EventStreamResponse(events, generation.cancel, keep_alive_s)
    return completion.whole(await generation.finish())


def _prompts(given: str | list[str] | list[int] | list[list[int]]) -> list[str] | list[list[int]]:
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [given]
    return given


class _Completion:
    def __init__(
        self, service: Service, generation: Generation, model: str, body: CompletionRequest
    ) -> None:
        self._generation = generation
        self._retry_after_s = service.config.retry_after_s
        self._tokenizer = generation.tokenizer
        options = body.stream_options or StreamOptions()
        self._has_usage = options.include_usage or options.continuous_usage_stats
        self._has_usages = options.continuous_usage_stats
        self._has_timings = body.timings_per_token
        self._has_progress = body.return_progress
        self._has_logprobs = generation.request.top_logprobs is not None
        self._has_experts = body.return_experts
        self._offsets = [0] * generation.num_choices  # of the next token in a choice's text
        self._base = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": generation.created,
            "model": model,
            "system_fingerprint": generation.fingerprint,
        }

    def whole(self, choices: list[Choice]) -> Response:
        out = []
        for index, choice in enumerate(choices):
            assert choice.end is not None
            extra = {"experts": choice.experts} if self._has_experts else {}
            end = choice.end.finish_reason
            out.append(self._choice(index, choice.response.text, choice.logprobs, end) | extra)
        return CompactJSONResponse(
            {
                **self._base,
                "choices": out,
                "usage": self._generation.usage(),
                "timings": self._generation.timings(),
            }
        )

    async def events(self) -> AsyncIterator[bytes]:
        base: dict[str, Any] = {**self._base, **({"usage": None} if self._has_usage else {})}
        try:
            async for update in self._generation.updates():
                if isinstance(update, Delta):
                    text = "".join(p.text for p in update.parts if isinstance(p, TextPart))
                    if not (text or update.logprobs or update.experts):
                        continue
                    choice = self._choice(update.choice, text, update.logprobs, None)
                    extra: dict[str, Any] = self._extra()
                    if update.experts:
                        extra["experts"] = update.experts
                    yield data_event({**base, "choices": [choice], **extra})
                elif isinstance(update, ChoiceEnd):
                    choice = self._choice(update.choice, "", [], update.finish_reason)
                    extra = self._extra()
                    if self._generation.is_done:
                        extra["timings"] = self._generation.timings()
                    yield data_event({**base, "choices": [choice], **extra})
                elif self._has_progress:
                    choice = self._choice(update.choice, "", [], None)
                    progress = update.to_llama_cpp()
                    yield data_event({**base, "choices": [choice], "prompt_progress": progress})
            if self._has_usage:
                yield data_event({**base, "choices": [], "usage": self._generation.usage()})
        except Exception as error:
            yield data_event(error_body(as_api_error(error, self._retry_after_s), ""))
        yield DONE

    def _extra(self) -> dict[str, Any]:
        """Make the fields of a chunk that the request asks for."""
        extra: dict[str, Any] = {}
        if self._has_usages:
            extra["usage"] = self._generation.usage()
        if self._has_timings:
            extra["timings"] = self._generation.timings()
        return extra

    def _choice(
        self, index: int, text: str, entries: Sequence[TokenLogprob], reason: str | None
    ) -> dict[str, Any]:
        logprobs = self._logprobs(index, entries) if self._has_logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, index: int, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        tokens = [token_text(e.token_id, self._tokenizer) for e in entries]
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [finite(e.logprob) for e in entries],
            "top_logprobs": [
                {token_text(i, self._tokenizer): finite(value) for i, value in e.top}
                for e in entries
            ],
            "text_offset": offsets,
        }
