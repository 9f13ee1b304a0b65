"""/tokenize, /detokenize, and what this server says about itself."""

from typing import Literal

from pydantic import Field

from hybridmoe.serve.schemas.common import JsonObject, Model, Request, TokenIds

__all__ = [
    "DetokenizeRequest",
    "EmbeddingsRequest",
    "ErrorAnswer",
    "HealthAnswer",
    "ModelCard",
    "ModelList",
    "TextAnswer",
    "TokenizeRequest",
    "TokensAnswer",
]


class TokenizeRequest(Request):
    """`content` (or `prompt`) as token ids."""

    content: str | None = None
    prompt: str | None = Field(default=None, description="Another name for content.")
    add_special: bool = False
    parse_special: bool = Field(default=True, description="Names of special tokens stand for them.")
    with_pieces: bool = False


class DetokenizeRequest(Request):
    tokens: TokenIds


class EmbeddingsRequest(Request):
    """Answered by 501."""


class TokensAnswer(Model):
    tokens: list[int | JsonObject]
    count: int
    max_model_len: int


class TextAnswer(Model):
    content: str
    prompt: str


class HealthAnswer(Model):
    status: Literal["ok", "loading", "failed"]
    progress: float | None = None
    message: str | None = None  # what failed


class ModelCard(Model):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    meta: JsonObject


class ModelList(Model):
    object: Literal["list"]
    data: list[ModelCard]


class ErrorAnswer(Model):
    error: JsonObject
