"""Schemas of OpenAI's /v1/completions."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from hybridmoe.serve.schemas.chat import RETURN_EXPERTS, Usage
from hybridmoe.serve.schemas.common import (
    JsonObject,
    Model,
    StreamOptions,
    TokenIds,
    TokenLimit,
    TopLogprobs,
    Whole,
)
from hybridmoe.serve.schemas.output import OutputFields
from hybridmoe.serve.schemas.sampling import SamplingFields

__all__ = ["CompletionRequest", "CompletionResponse"]

_MAX_PROMPTS = 1024
_Texts = Annotated[list[str], Field(min_length=1, max_length=_MAX_PROMPTS, fail_fast=True)]
_Ids = Annotated[TokenIds, Field(min_length=1)]
_IdLists = Annotated[list[_Ids], Field(min_length=1, max_length=_MAX_PROMPTS, fail_fast=True)]


def _kind(prompt: object) -> str:
    """Discriminate a prompt's form by its first entry, so that only its errors are reported."""
    if not isinstance(prompt, list):
        return "text[]"
    first = prompt[0] if prompt else None
    if isinstance(first, str):
        return "texts[]"
    return "ids[][]" if isinstance(first, list) else "ids[]"


class CompletionRequest(SamplingFields, OutputFields):
    """Text to continue, as a string or token ids, or a list of either.

    Names of special tokens in a text stand for those tokens. Choices are in the order of the
    prompts, `n` of each.
    """

    api = "completions"

    model: str | None = Field(default=None, max_length=512)
    prompt: Annotated[
        Annotated[str, Tag("text[]")]
        | Annotated[_Ids, Tag("ids[]")]
        | Annotated[_Texts, Tag("texts[]")]
        | Annotated[_IdLists, Tag("ids[][]")],
        Discriminator(_kind),
    ]
    max_tokens: TokenLimit | None = Field(
        default=None, description="Default 16; 0: read the prompt alone; -1: no limit."
    )
    n: Annotated[Whole, Field(ge=1, le=128)] | None = None
    best_of: Annotated[Whole, Field(ge=1, le=128)] | None = Field(
        default=None, description="At most `n`: choices are not ranked."
    )
    n_cmpl: Annotated[Whole, Field(ge=1, le=128)] | None = Field(
        default=None, description="Same as `n`."
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: TopLogprobs | None = None
    n_probs: TopLogprobs | None = Field(default=None, description="Same as `logprobs`, but for 0.")
    echo: bool = Field(
        default=False,
        description="The text and the log-probabilities begin with the prompt's, for evaluation.",
    )
    prompt_logprobs: TopLogprobs | None = Field(
        default=None, description="Log-probabilities of the prompt by token id, as vLLM's."
    )
    add_special_tokens: bool = Field(
        default=True, description="Texts begin with the model's begin token, if it has one."
    )
    return_progress: bool = Field(
        default=False, description="Report prefill progress as `prompt_progress` in stream chunks."
    )
    return_token_ids: bool = Field(
        default=False, description="Give `token_ids` and `prompt_token_ids`, as vLLM does."
    )
    return_tokens_as_token_ids: bool = Field(
        default=False, description="Log-probabilities name tokens `token_id:N`."
    )
    timings_per_token: bool = Field(default=False, description="Every chunk has `timings`.")
    return_experts: bool = Field(default=False, description=RETURN_EXPERTS)


class CompletionChoice(Model):
    index: int
    text: str
    logprobs: JsonObject | None
    finish_reason: Literal["stop", "length"] | None


class CompletionResponse(Model):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None
