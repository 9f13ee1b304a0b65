"""OpenAI's /v1/completions: raw text continued."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from hybridmoe.serve.schemas.chat import Usage
from hybridmoe.serve.schemas.common import (
    JsonObject,
    Model,
    ResponseFormat,
    SamplingFields,
    StreamOptions,
    TokenIds,
    TokenLimit,
    TopLogprobs,
    Whole,
)

__all__ = ["CompletionAnswer", "CompletionRequest"]

_MAX_PROMPTS = 1024
_Texts = Annotated[list[str], Field(min_length=1, max_length=_MAX_PROMPTS, fail_fast=True)]
_Ids = Annotated[TokenIds, Field(min_length=1)]
_IdLists = Annotated[list[_Ids], Field(min_length=1, max_length=_MAX_PROMPTS, fail_fast=True)]


def _kind(prompt: object) -> str:
    """Form of a prompt, by its first entry: only the errors of that form are of use, or made."""
    if not isinstance(prompt, list):
        return "text[]"
    first = prompt[0] if prompt else None
    if isinstance(first, str):
        return "texts[]"
    return "ids[][]" if isinstance(first, list) else "ids[]"


class CompletionRequest(SamplingFields):
    """A text, or its token ids, or a list of either; names of special tokens in a text stand for
    those tokens. Choices come in the order of the prompts, `n` of each.
    """

    model: str | None = Field(default=None, max_length=512)
    prompt: Annotated[
        Annotated[str, Tag("text[]")]
        | Annotated[_Ids, Tag("ids[]")]
        | Annotated[_Texts, Tag("texts[]")]
        | Annotated[_IdLists, Tag("ids[][]")],
        Discriminator(_kind),
    ]
    max_tokens: TokenLimit | None = Field(
        default=None, description="16 where it is left out; 0 and -1 set no limit."
    )
    n: Annotated[Whole, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: TopLogprobs | None = None
    response_format: ResponseFormat | None = None
    ignore_eos: bool = False
    return_experts: bool = False

    @classmethod
    def unsupported(cls) -> dict[str, tuple[Any, ...]]:
        return {"best_of": (1,), "echo": (False,), "suffix": ("",)}


class CompletionChoice(Model):
    index: int
    text: str
    logprobs: JsonObject | None
    finish_reason: Literal["stop", "length"] | None


class CompletionAnswer(Model):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None
