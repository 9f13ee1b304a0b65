"""OpenAI's /v1/completions: raw text continued."""

from typing import Annotated, Any, Literal

from pydantic import Field

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


class CompletionRequest(SamplingFields):
    """A text, or its token ids; names of special tokens in a text stand for those tokens."""

    model: str | None = Field(default=None, max_length=512)
    prompt: str | Annotated[TokenIds, Field(min_length=1)]
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
