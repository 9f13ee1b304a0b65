"""Schemas of llama-server's own routes."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from hybridmoe.serve.schemas.common import (
    JsonObject,
    Listed,
    LogitBias,
    Model,
    Request,
    ResponseFormat,
    SamplingFields,
    TopLogprobs,
    Whole,
)

__all__ = [
    "InfillRequest",
    "LlamaCompletionRequest",
    "LlamaCompletionResponse",
    "PropsResponse",
    "RenderedPrompt",
    "SlotState",
]

_MAX_PROMPTS = 1024
_Part = str | Annotated[int, Field(ge=0, le=2**31 - 1)]
_Parts = Annotated[list[_Part], Field(min_length=1, max_length=1 << 20, fail_fast=True)]
_Several = Annotated[
    list[str | _Parts], Field(min_length=1, max_length=_MAX_PROMPTS, fail_fast=True)
]


def _by_id(bias: Any) -> Any:
    """Convert `[[id, bias], ...]`, where false forbids a token, to a mapping."""
    if not isinstance(bias, list):
        return bias
    pairs = [pair for pair in bias[:1025] if isinstance(pair, list) and len(pair) == 2]
    if len(pairs) < len(bias):
        raise ValueError("expected up to 1024 pairs of a token id and a bias, or an object")
    return {str(token): -100.0 if value is False else value for token, value in pairs}


class LlamaCompletionRequest(SamplingFields):
    """Text to continue, as llama-server's /completion takes it.

    A prompt is a string, or a list of token ids and strings; a list that holds another list, or
    only strings, is several prompts.
    """

    api = "completions"

    model: str | None = Field(default=None, max_length=512)
    prompt: str | _Parts | _Several
    n_predict: Annotated[Whole, Field(ge=-2, le=2**31 - 1)] | None = Field(
        default=None, description="Negative: up to the end of the context."
    )
    max_tokens: Annotated[Whole, Field(ge=-2, le=2**31 - 1)] | None = Field(
        default=None, description="Same as `n_predict`."
    )
    n_cmpl: Annotated[Whole, Field(ge=1, le=128)] | None = Field(
        default=None, description="Completions of each prompt."
    )
    logit_bias: Annotated[LogitBias, BeforeValidator(_by_id)] | None = None
    grammar: str | None = Field(default=None, max_length=1 << 18)
    json_schema: JsonObject | None = None
    n_probs: TopLogprobs | None = None
    ignore_eos: bool = False
    stream: bool | None = None
    return_tokens: bool = False
    return_progress: bool = False
    response_fields: Annotated[Listed[str], Field(max_length=256)] | None = Field(
        default=None, description="Fields of the response that are sent; `a/b` for an inner one."
    )

    @property
    def format(self) -> ResponseFormat | None:
        """Format of the text, if one is given."""
        if self.grammar:
            return ResponseFormat(type="grammar", grammar=self.grammar)
        if self.json_schema is not None:
            return ResponseFormat(type="json_schema", json_schema={"schema": self.json_schema})
        return None


class LlamaCompletionResponse(Model):
    index: int
    content: str
    tokens: list[int]
    stop: bool
    model: str
    tokens_predicted: int
    tokens_evaluated: int
    generation_settings: JsonObject
    prompt: str
    stop_type: str
    stopping_word: str
    timings: JsonObject


class InfillRequest(Request):
    """Body of an infill request, which gets 501."""


class RenderedPrompt(Model):
    prompt: str


class PropsResponse(Model):
    default_generation_settings: JsonObject
    total_slots: int
    model_alias: str
    model_path: str
    chat_template: str


class SlotState(Model):
    id: int
    n_ctx: int
    is_processing: bool
