"""OpenAI's /v1/completions."""

import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from hybridmoe.serve.answer import (
    finite,
    reply_whole,
    service_of,
    token_text,
    usage,
)
from hybridmoe.serve.errors import as_api_error, error_body
from hybridmoe.serve.job import TextTurn
from hybridmoe.serve.reply import DONE, EventStream, JsonReply, data_event
from hybridmoe.serve.routes.documented import ERRORS, stream_or
from hybridmoe.serve.run import Choice, Delta, Ended, Run, TokenLogprob
from hybridmoe.serve.schemas.common import refuse_unsupported, token_limit
from hybridmoe.serve.schemas.completions import CompletionAnswer, CompletionRequest
from hybridmoe.serve.service import Service
from hybridmoe.serve.strict_json import StrictRoute
from hybridmoe.text.response_parser import TextPart

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute, tags=["OpenAI"])
_DEFAULT_MAX_TOKENS = 16  # OpenAI's


@router.post(
    "/v1/completions", response_model=None, responses={**stream_or(CompletionAnswer), **ERRORS}
)
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Continue a text, whole or as a stream."""
    service = service_of(request)
    refuse_unsupported(body)
    model = service.check_model(body.model)
    turn = TextTurn(
        prompts=_prompts(body.prompt),
        format=body.response_format,
        sampling={
            **body.sampling(),
            "max_tokens": token_limit(body.max_tokens, _DEFAULT_MAX_TOKENS),
            "ignore_eos": body.ignore_eos,
        },
        num_choices=body.n or 1,
        top_logprobs=body.logprobs,
        expert_trace=body.return_experts,
    )
    run = await service.run_completion(turn)
    reply = _Reply(service, run, model, body)
    if body.stream:
        return EventStream(reply.events(), run.cancel, service.config.keep_alive_s)
    return await reply_whole(run, reply.whole)


def _prompts(given: str | list[str] | list[int] | list[list[int]]) -> list[str] | list[list[int]]:
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [given]
    return given


class _Reply:
    def __init__(self, service: Service, run: Run, model: str, body: CompletionRequest) -> None:
        self._run = run
        self._retry_after_s = service.config.retry_after_s
        self._tokenizer = service.llm.tokenizer
        options = body.stream_options
        self._has_usage = options is not None and options.include_usage
        self._has_logprobs = body.logprobs is not None
        self._has_experts = body.return_experts
        self._offsets = [0] * run.num_choices  # of the next token in a choice's text
        self._base = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": run.created,
            "model": model,
            "system_fingerprint": service.fingerprint,
        }

    def whole(self, choices: list[Choice]) -> Response:
        out = []
        for index, choice in enumerate(choices):
            assert choice.end is not None
            extra = {"experts": choice.experts} if self._has_experts else {}
            end = choice.end.reason
            out.append(self._choice(index, choice.response.text, choice.logprobs, end) | extra)
        return JsonReply(
            {
                **self._base,
                "choices": out,
                "usage": usage(self._run),
                "timings": self._run.timings(),
            }
        )

    async def events(self) -> AsyncIterator[bytes]:
        base: dict[str, Any] = {**self._base, **({"usage": None} if self._has_usage else {})}
        try:
            async for update in self._run.updates():
                if isinstance(update, Delta):
                    text = "".join(p.text for p in update.parts if isinstance(p, TextPart))
                    choice = self._choice(update.choice, text, update.logprobs, None)
                    experts = {"experts": update.experts} if update.experts else {}
                    yield data_event({**base, "choices": [choice], **experts})
                elif isinstance(update, Ended):
                    choice = self._choice(update.choice, "", [], update.reason)
                    timings = {"timings": self._run.timings()} if self._run.is_done else {}
                    yield data_event({**base, "choices": [choice], **timings})
            if self._has_usage:
                yield data_event({**base, "choices": [], "usage": usage(self._run)})
        except Exception as error:
            yield data_event(error_body(as_api_error(error, self._retry_after_s), ""))
        yield DONE

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
