"""Schemas of llama-server's own routes."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from hybridmoe.serve.schemas.common import (
    JsonObject,
    Listed,
    Model,
    Request,
    TopLogprobs,
    Whole,
)
from hybridmoe.serve.schemas.output import OutputFields
from hybridmoe.serve.schemas.sampling import SamplingFields

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


def _plain_prompt(prompt: Any) -> Any:
    """Convert `{"prompt_string": TEXT}` to the text, in a list too."""
    if isinstance(prompt, list):
        return [_plain_prompt(one) if isinstance(one, dict) else one for one in prompt]
    if not isinstance(prompt, dict):
        return prompt
    if prompt.get("multimodal_data"):
        raise ValueError("multimodal_data is not supported: the model reads text only")
    return prompt.get("prompt_string", prompt)


class LlamaCompletionRequest(SamplingFields, OutputFields):
    """Text to continue, as llama-server's /completion takes it.

    A prompt is a string, or a list of token ids and strings; a list that holds another list, or
    only strings, is several prompts.
    """

    api = "completions"

    model: str | None = Field(default=None, max_length=512)
    prompt: Annotated[str | _Parts | _Several, BeforeValidator(_plain_prompt)]
    n_predict: Annotated[Whole, Field(ge=-2, le=2**31 - 1)] | None = Field(
        default=None, description="Negative: up to the end of the context."
    )
    max_tokens: Annotated[Whole, Field(ge=-2, le=2**31 - 1)] | None = Field(
        default=None, description="Same as `n_predict`."
    )
    n_cmpl: Annotated[Whole, Field(ge=1, le=128)] | None = Field(
        default=None, description="Completions of each prompt."
    )
    n_probs: TopLogprobs | None = None
    stream: bool | None = None
    return_tokens: bool = False
    return_progress: bool = False
    response_fields: Annotated[Listed[str], Field(max_length=256)] | None = Field(
        default=None, description="Fields of the response that are sent; `a/b` for an inner one."
    )


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
    """Facts of a model; one that is sleeping has only the first two."""

    model_alias: str
    is_sleeping: bool
    default_generation_settings: JsonObject | None = None
    total_slots: int | None = None
    model_path: str | None = None
    chat_template: str | None = None


class SlotState(Model):
    id: int
    n_ctx: int
    is_processing: bool
