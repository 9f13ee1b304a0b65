"""OpenAI's /v1/completions."""

import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from hybridmoe.serve.completion_logprobs import CompletionLogprobs, prompt_logprobs_by_id
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
from hybridmoe.serve.inputs import TextInput
from hybridmoe.serve.json_response import CompactJSONResponse
from hybridmoe.serve.routes.openapi import ERRORS, json_or_stream
from hybridmoe.serve.schemas.common import StreamOptions
from hybridmoe.serve.schemas.completions import CompletionRequest, CompletionResponse
from hybridmoe.serve.service import Service, get_service
from hybridmoe.serve.strict_json import StrictRoute
from hybridmoe.serve.token_ids import TokenIds
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
    num_choices = body.n or body.n_cmpl or 1
    if (body.best_of or 1) > num_choices:
        raise unsupported_value("best_of", f"is more than n, {num_choices}: choices are not ranked")
    top_logprobs = body.logprobs if body.logprobs is not None else body.n_probs or None
    text = TextInput(
        prompts=_prompts(body.prompt),
        prompt_logprobs=_prompt_logprobs(body, top_logprobs),
        echo=body.echo,
        add_special=body.add_special_tokens,
        format=body.structured_format(),
        sampling={
            **body.sampling(),
            "max_tokens": _limit(body),
        },
        num_choices=num_choices,
        top_logprobs=top_logprobs,
        expert_trace=body.return_experts,
    )
    generation = await service.start_completion(text, model)
    request.state.relaxed_schema = generation.request.relaxed
    completion = _Completion(service, generation, model, body)
    if body.stream:
        events, keep_alive_s = completion.events(), service.config.keep_alive_s
        return EventStreamResponse(events, generation.cancel, keep_alive_s)
    return await completion.whole(await generation.finish())


def _limit(body: CompletionRequest) -> int | None:
    """Find the most tokens to generate; None: no limit, 0: the prompt alone."""
    given = (body.max_tokens, body.n_predict, _DEFAULT_MAX_TOKENS)
    limit = next(limit for limit in given if limit is not None)
    return None if limit < 0 else limit


def _prompt_logprobs(body: CompletionRequest, top_logprobs: int | None) -> int | None:
    """Find the alternatives wanted for each token of the prompt; None: no log-probabilities."""
    of_echo = top_logprobs if body.echo else None
    if body.stream and body.prompt_logprobs is not None:
        raise unsupported_value("prompt_logprobs", "not available with stream: true")
    if body.stream and of_echo is not None and (body.n or body.n_cmpl or 1) > 1:
        raise unsupported_value("echo", "with logprobs and n, not available with stream: true")
    return max((n for n in (of_echo, body.prompt_logprobs) if n is not None), default=None)


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
        options = body.stream_options or StreamOptions()
        self._has_usage = options.include_usage or options.continuous_usage_stats
        self._has_usages = options.continuous_usage_stats
        self._has_timings = body.timings_per_token
        self._has_progress = body.return_progress
        num_top = generation.request.top_logprobs
        self._logprobs = (
            None
            if num_top is None
            else [
                CompletionLogprobs(
                    generation.tokenizer, num_top, by_id=body.return_tokens_as_token_ids
                )
                for _ in generation.choices
            ]
        )
        self._prompt_logprobs: int | None = body.prompt_logprobs
        self._has_experts = body.return_experts
        self._token_ids = TokenIds(generation) if body.return_token_ids else None
        self._has_echo = body.echo
        self._base = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": generation.created,
            "model": model,
            "system_fingerprint": generation.fingerprint,
        }

    async def whole(self, choices: list[Choice]) -> Response:
        if self._generation.request.prompt_logprobs is None:
            return self._whole(choices)
        return await run_in_threadpool(self._whole, choices)  # every token of the prompts

    def _whole(self, choices: list[Choice]) -> Response:
        return CompactJSONResponse(
            {
                **self._base,
                "choices": [self._whole_choice(i, choice) for i, choice in enumerate(choices)],
                "usage": self._generation.usage(),
                "timings": self._generation.timings(),
            }
        )

    def _whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        assert choice.end is not None
        request = self._generation.request
        echo = None if request.echoes is None else self._echo(index)
        end = choice.end.finish_reason
        out = self._choice(index, choice.response.text, choice.logprobs, end)
        if echo is not None:
            out["text"] = echo["text"] + out["text"]
            if echo["logprobs"] is not None:
                out["logprobs"] = {
                    name: echo["logprobs"][name] + values
                    for name, values in out["logprobs"].items()
                }
        if self._token_ids is not None:
            out |= self._token_ids.of_prompt(index)
        if self._prompt_logprobs is not None:
            events = self._generation.prompt_logprobs(index)
            out["prompt_logprobs"] = prompt_logprobs_by_id(
                request.prompt_of(index), events, self._prompt_logprobs, self._generation.tokenizer
            )
        return {**out, **choice.experts.fields()} if self._has_experts else out

    async def events(self) -> AsyncIterator[bytes]:
        base: dict[str, Any] = {**self._base, **({"usage": None} if self._has_usage else {})}
        echoed: set[int] = set()  # choices; without `echo`, none is
        begun: set[int] = set()  # choices whose prompt has been given by its ids
        try:
            async for update in self._generation.updates():
                is_read = not isinstance(update, Progress)
                if is_read and self._has_echo and update.choice not in echoed:
                    echoed.add(update.choice)
                    choice = await run_in_threadpool(self._echo, update.choice)
                    yield data_event({**base, "choices": [choice]})
                if isinstance(update, Delta):
                    text = "".join(p.text for p in update.parts if isinstance(p, TextPart))
                    if not (text or update.logprobs or update.experts):
                        continue
                    choice = self._choice(update.choice, text, update.logprobs, None)
                    if self._token_ids is not None and update.choice not in begun:
                        begun.add(update.choice)
                        choice |= self._token_ids.of_prompt(update.choice)
                    extra: dict[str, Any] = self._extra()
                    if update.experts:
                        extra |= update.experts.fields()
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
        logprobs = None if self._logprobs is None else self._logprobs[index].of_text(entries)
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return choice if self._token_ids is None else choice | self._token_ids.take(index)

    def _echo(self, index: int) -> dict[str, Any]:
        """Make a choice of the prompt alone."""
        request, logprobs = self._generation.request, None
        assert request.echoes is not None
        echo = request.echoes[index // request.choices_per_prompt]
        if self._logprobs is not None:
            events = self._generation.prompt_logprobs(index)
            ids = request.prompt_of(index)
            logprobs = self._logprobs[index].of_prompt(ids, events, echo.num_hidden)
        return {"index": index, "text": echo.text, "logprobs": logprobs, "finish_reason": None}
