"""Schemas shared by several APIs.

Types are strict (no "5" for 5). What happens to fields that are not declared is in the field table.
Every list is bounded and fails at its first bad entry: pydantic makes an error for each, and 2 MB
hold a million of them.
"""

import functools
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from hybridmoe.serve.field_row import Api

__all__ = [
    "MAX_INT",
    "Count",
    "Count0",
    "FunctionName",
    "JsonObject",
    "LastTokens",
    "Listed",
    "Model",
    "Penalty",
    "Request",
    "Share",
    "StopField",
    "StopStrings",
    "StreamOptions",
    "Temperature",
    "TokenIds",
    "TokenLimit",
    "TopLogprobs",
    "Whole",
    "stop_list",
    "token_limit",
]

T = TypeVar("T")

MAX_INT = 2**31 - 1
_MAX_ENTRIES = 1 << 14
_MAX_TOKEN_IDS = 1 << 20


def _whole(value: Any) -> Any:
    """Convert 16.0 to 16: JSON has one type of number, and some clients write 16.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[Whole, Field(ge=1, le=MAX_INT)]
TokenLimit = Annotated[Whole, Field(ge=-1, le=MAX_INT)]  # 0 and -1: no limit
Count0 = Annotated[Whole, Field(ge=0, le=MAX_INT)]
LastTokens = Annotated[Whole, Field(ge=-1, le=MAX_INT)]  # -1: all
Temperature = Annotated[float, Field(ge=0.0, le=100.0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0, allow_inf_nan=False)]
TopLogprobs = Annotated[Whole, Field(ge=0, le=20)]
StopString = Annotated[str, Field(max_length=1024)]
StopStrings = Annotated[list[StopString], Field(max_length=16, fail_fast=True)]
StopField = StopString | StopStrings
FunctionName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.:/-]+$")]
JsonObject = dict[str, Any]
TokenId = Annotated[int, Field(ge=0, le=MAX_INT)]
TokenIds = Annotated[list[TokenId], Field(max_length=_MAX_TOKEN_IDS, fail_fast=True)]
Listed = Annotated[list[T], Field(max_length=_MAX_ENTRIES, fail_fast=True)]


class Request(BaseModel):
    """Base of all request bodies."""

    model_config = ConfigDict(strict=True, extra="allow")

    # The column of the field table; ollama's fields have a table of their own.
    api: ClassVar[Api | Literal["ollama"] | None] = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, given: Any) -> Any:
        """Take null for the default, as OpenAI's API does, where the default is not null itself."""
        names = _not_null(cls)
        if not isinstance(given, dict) or not any(given.get(name, 0) is None for name in names):
            return given
        return {key: value for key, value in given.items() if value is not None}


@functools.cache
def _not_null(model: type[BaseModel]) -> tuple[str, ...]:
    fields = model.model_fields.items()
    return tuple(
        field.alias or name
        for name, field in fields
        if not field.is_required() and field.default is not None
    )


class Model(BaseModel):
    """Base of all response bodies; used for the OpenAPI document, not for validation."""

    model_config = ConfigDict(extra="allow")


class StreamOptions(Request):
    """Options of a stream."""

    include_usage: bool = Field(
        default=False, description="Add a last chunk with the token counts."
    )
    continuous_usage_stats: bool = Field(
        default=False, description="Give the counts so far in every chunk."
    )


def stop_list(stop: str | list[str]) -> list[str]:
    """Convert to a list, without the empty strings that some clients send."""
    return [one for one in ([stop] if isinstance(stop, str) else stop) if one]


def token_limit(*given: int | None) -> int | None:
    """Take the first limit that is given; None for no limit."""
    first = next((limit for limit in given if limit is not None), None)
    return first if first is not None and first > 0 else None
