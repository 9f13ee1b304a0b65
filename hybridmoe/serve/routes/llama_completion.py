"""llama-server's own /completion, whose response and stream differ from OpenAI's.

Response format: README of llama.cpp's tools/server.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.serve.errors import as_api_error, error_body
from hybridmoe.serve.event_stream import EventStreamResponse, data_event
from hybridmoe.serve.generation import (
    Choice,
    ChoiceEnd,
    Delta,
    Generation,
    TokenLogprob,
)
from hybridmoe.serve.inputs import TextInput
from hybridmoe.serve.json_response import CompactJSONResponse
from hybridmoe.serve.logprobs import finite, token_text
from hybridmoe.serve.routes.openapi import ERRORS, json_or_stream
from hybridmoe.serve.schemas.llama import LlamaCompletionRequest, LlamaCompletionResponse
from hybridmoe.serve.service import Service, get_service
from hybridmoe.serve.strict_json import StrictRoute
from hybridmoe.text.response_parser import TextPart

__all__ = ["llama_settings", "router"]

router = APIRouter(route_class=StrictRoute, tags=["llama-server"])


@router.post("/completions", response_model=None, include_in_schema=False)
@router.post(
    "/completion",
    response_model=None,
    responses={**json_or_stream(LlamaCompletionResponse), **ERRORS},
)
async def create_llama_completion(body: LlamaCompletionRequest, request: Request) -> Response:
    """Create completions in llama-server's form: an object, or a list for several, or a stream."""
    service = get_service(request)
    model = service.check_model(body.model)
    limit = body.n_predict if body.n_predict is not None else body.max_tokens
    text = TextInput(
        prompts=_prompts(body.prompt),
        format=body.structured_format(),
        sampling={
            "temperature_last": True,
            **body.sampling(),
            "max_tokens": limit if limit is not None and limit >= 0 else None,
        },
        num_choices=body.n_cmpl or 1,
        top_logprobs=body.n_probs or None,
    )
    generation = await service.start_completion(text, model)
    request.state.relaxed_schema = generation.request.relaxed
    completion = _LlamaCompletion(service, generation, model, body)
    if body.stream:
        events, keep_alive_s = completion.events(), service.config.keep_alive_s
        return EventStreamResponse(events, generation.cancel, keep_alive_s)
    return completion.whole(await generation.finish())


def _prompts(given: str | Sequence[Any]) -> list[Any]:
    """Tell several prompts from a single one of token ids and strings."""
    if isinstance(given, str):
        return [given]
    is_several = any(isinstance(part, list) for part in given)
    return list(given) if is_several or all(isinstance(part, str) for part in given) else [given]


def llama_settings(params: SamplingParams, context_tokens: int) -> dict[str, Any]:
    """Name sampling parameters as llama-server's `generation_settings`."""
    limit = -1 if params.max_tokens is None else params.max_tokens
    return {
        "n_ctx": context_tokens,
        "n_predict": limit,
        "max_tokens": limit,
        "seed": -1 if params.seed is None else params.seed,
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "typical_p": params.typical_p,
        "top_n_sigma": params.top_n_sigma or -1.0,
        "xtc_probability": params.xtc_probability,
        "xtc_threshold": params.xtc_threshold,
        "repeat_penalty": params.repetition_penalty,
        "repeat_last_n": params.repeat_last_n,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "dry_multiplier": params.dry_multiplier,
        "dry_base": params.dry_base,
        "dry_allowed_length": params.dry_allowed_length,
        "dry_penalty_last_n": params.dry_penalty_last_n,
        "dry_sequence_breakers": list(params.dry_sequence_breakers),
        "stop": list(params.stop),
        "ignore_eos": params.ignore_eos,
    }


class _LlamaCompletion:
    def __init__(
        self, service: Service, generation: Generation, model: str, body: LlamaCompletionRequest
    ) -> None:
        self._generation = generation
        self._retry_after_s = service.config.retry_after_s
        self._model = model
        self._body = body
        self._num_sent = [0] * generation.num_choices  # token ids of each choice

    def whole(self, choices: list[Choice]) -> Response:
        out = [
            self._shown(self._end(i, choice.response.text) | self._probs(choice.logprobs))
            for i, choice in enumerate(choices)
        ]
        return CompactJSONResponse(out[0] if len(out) == 1 else out)

    async def events(self) -> AsyncIterator[bytes]:
        try:
            async for update in self._generation.updates():
                if isinstance(update, Delta):
                    text = "".join(p.text for p in update.parts if isinstance(p, TextPart))
                    if text or update.logprobs:
                        yield data_event(
                            self._piece(update.choice, text) | self._probs(update.logprobs)
                        )
                elif isinstance(update, ChoiceEnd):
                    yield data_event(self._shown(self._end(update.choice, "")))
                elif self._body.return_progress:
                    yield data_event(
                        self._piece(update.choice, "") | {"prompt_progress": update.to_llama_cpp()}
                    )
        except Exception as error:
            yield data_event(error_body(as_api_error(error, self._retry_after_s), ""))

    def _piece(self, index: int, text: str) -> dict[str, Any]:
        """Make the fields of every event, with the token ids since the last one."""
        token_ids = self._generation.choices[index].token_ids
        new = token_ids[self._num_sent[index] :]
        self._num_sent[index] = len(token_ids)
        return {
            "index": index,
            "content": text,
            "tokens": new if self._body.return_tokens or self._body.stream else [],
            "id_slot": -1,
            "stop": False,
            "tokens_predicted": len(self._generation.choices[index].token_ids),
            "tokens_evaluated": len(self._generation.request.prompt_of(index)),
        }

    def _end(self, index: int, text: str) -> dict[str, Any]:
        """Make a completion's last, or only, object."""
        request, choice = self._generation.request, self._generation.choices[index]
        assert choice.end is not None and choice.usage is not None
        params = request.params_of(index)
        prompt = self._generation.tokenizer.decode(request.prompt_of(index), skip_special=False)
        is_cut = choice.end.finish_reason == "length"
        word = choice.end.stop_string
        return {
            **self._piece(index, text),
            "stop": True,
            "model": self._model,
            "generation_settings": llama_settings(params, self._generation.context_tokens),
            "prompt": prompt,
            "has_new_line": "\n" in choice.response.text,
            "truncated": is_cut and len(choice.token_ids) != params.max_tokens,
            "stop_type": "word" if word is not None else "limit" if is_cut else "eos",
            "stopping_word": word or "",
            "tokens_cached": choice.usage.cached_tokens,
            "timings": self._generation.timings(index),
        }

    def _probs(self, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        if not self._body.n_probs:
            return {}
        tokenizer = self._generation.tokenizer

        def convert(token_id: int, logprob: float) -> dict[str, Any]:
            return {
                "id": token_id,
                "token": token_text(token_id, tokenizer),
                "bytes": list(tokenizer.token_bytes(token_id)),
                "logprob": finite(logprob),
            }

        return {
            "completion_probabilities": [
                {
                    **convert(entry.token_id, entry.logprob),
                    "top_logprobs": [convert(*one) for one in entry.top],
                }
                for entry in entries
            ]
        }

    def _shown(self, whole: dict[str, Any]) -> dict[str, Any]:
        """Keep the response fields that the request asks for; inner ones under their whole path."""
        if not self._body.response_fields:
            return whole
        out: dict[str, Any] = {}
        for path in self._body.response_fields:
            value: Any = whole
            for name in path.split("/"):
                value = value.get(name) if isinstance(value, dict) else None
            if value is not None:
                out[path] = value
        return out
