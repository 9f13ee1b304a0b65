"""Schemas of /tokenize, /detokenize, /health, /v1/models, /v1/embeddings and errors."""

from typing import Annotated, Literal

from pydantic import Field

from hybridmoe.serve.schemas.chat import Message, Tool
from hybridmoe.serve.schemas.common import JsonObject, Listed, Model, Request, TokenIds

__all__ = [
    "DetokenizeRequest",
    "DetokenizeResponse",
    "EmbeddingsRequest",
    "ErrorResponse",
    "HealthResponse",
    "ModelCard",
    "ModelList",
    "ServerVersion",
    "TokenizeRequest",
    "TokenizeResponse",
    "TokenizerInfo",
]


class TokenizeRequest(Request):
    """Text or conversation to encode."""

    model: str | None = None
    content: str | None = None
    prompt: str | None = Field(default=None, description="Same as `content`.")
    messages: Listed[Message] | None = Field(
        default=None, description="A conversation, whose prompt is encoded in place of a text."
    )
    tools: Annotated[Listed[Tool], Field(max_length=512)] | None = None
    add_special: bool = False
    add_special_tokens: bool = Field(default=False, description="Same as `add_special`.")
    parse_special: bool = Field(
        default=True, description="Names of special tokens stand for those tokens."
    )
    with_pieces: bool = False


class DetokenizeRequest(Request):
    model: str | None = None
    tokens: TokenIds


class EmbeddingsRequest(Request):
    """Body of an embeddings request, which gets 501."""


class TokenizeResponse(Model):
    tokens: list[int | JsonObject]
    count: int
    max_model_len: int


class DetokenizeResponse(Model):
    content: str
    prompt: str


class ModelState(Model):
    status: Literal["unloaded", "loading", "loaded", "unloading", "failed"]
    progress: float | None = None  # of a load


class TokenizerInfo(Model):
    tokenizer_class: str
    bos_token: str
    eos_token: str
    vocab_size: int
    model_max_length: int
    chat_template: str


class HealthResponse(Model):
    status: Literal["ok", "loading", "failed", "degraded", "ending"]
    progress: float | None = None
    message: str | None = None  # what failed, or is away for now
    models: dict[str, ModelState] | None = None  # unless the only one is loaded


class ServerVersion(Model):
    version: str


class ModelCard(Model):
    """A model under one of its names, in OpenAI's form and Anthropic's."""

    id: str
    root: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None  # None before it was ever loaded
    meta: JsonObject
    type: Literal["model"]
    display_name: str
    created_at: str


class ModelList(Model):
    object: Literal["list"]
    data: list[ModelCard]
    has_more: bool
    first_id: str | None
    last_id: str | None


class ErrorResponse(Model):
    error: JsonObject
