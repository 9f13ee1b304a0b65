"""Schemas shared by several APIs.

Types are strict (no "5" for 5). What happens to fields that are not declared is in the field table.
Every list is bounded and fails at its first bad entry: pydantic makes an error for each, and 2 MB
hold a million of them.
"""

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.field_table import Api

__all__ = [
    "Count",
    "FunctionName",
    "JsonObject",
    "Listed",
    "LogitBias",
    "Model",
    "Request",
    "ResponseFormat",
    "SamplingFields",
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

_MAX_INT = 2**31 - 1
_MAX_ENTRIES = 1 << 14
_MAX_TOKEN_IDS = 1 << 20
_MAX_BIASES = 1024


def _whole(value: Any) -> Any:
    """Convert 16.0 to 16: JSON has one type of number, and some clients write 16.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[Whole, Field(ge=1, le=_MAX_INT)]
TokenLimit = Annotated[Whole, Field(ge=-1, le=_MAX_INT)]  # 0 and -1: no limit
Temperature = Annotated[float, Field(ge=0.0, le=2.0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0, allow_inf_nan=False)]


def _limit_biases(bias: object) -> object:
    """Refuse a long mapping first; pydantic checks its length after all its entries."""
    if isinstance(bias, dict) and len(bias) > _MAX_BIASES:
        raise ValueError(f"{len(bias)} entries; at most {_MAX_BIASES} are taken")
    return bias


Bias = Annotated[float, Field(ge=-100.0, le=100.0, allow_inf_nan=False)]
LogitBias = Annotated[
    dict[str, Bias],
    BeforeValidator(_limit_biases),
    Field(json_schema_extra={"maxProperties": _MAX_BIASES}),
]
TopLogprobs = Annotated[Whole, Field(ge=0, le=20)]
StopString = Annotated[str, Field(max_length=1024)]
StopStrings = Annotated[list[StopString], Field(max_length=16, fail_fast=True)]
StopField = StopString | StopStrings
FunctionName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.:/-]+$")]
JsonObject = dict[str, Any]
TokenId = Annotated[int, Field(ge=0, le=_MAX_INT)]
TokenIds = Annotated[list[TokenId], Field(max_length=_MAX_TOKEN_IDS, fail_fast=True)]
Listed = Annotated[list[T], Field(max_length=_MAX_ENTRIES, fail_fast=True)]


class Request(BaseModel):
    """Base of all request bodies."""

    model_config = ConfigDict(strict=True, extra="allow")

    api: ClassVar[Api | None] = None  # the column of the field table


class Model(BaseModel):
    """Base of all response bodies; used for the OpenAPI document, not for validation."""

    model_config = ConfigDict(extra="allow")


class StreamOptions(Request):
    """Options of a stream."""

    include_usage: bool = Field(
        default=False, description="Add a last chunk with the token counts."
    )


class ResponseFormat(Request):
    """Format of the text, enforced by constrained decoding unless the text is cut off."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar"] = "text"
    json_schema: JsonObject | None = Field(
        default=None, description='For type "json_schema": `{"name", "schema", "strict"}`.'
    )
    pattern: str | None = Field(
        default=None, max_length=8192, description='For type "regex": a regular expression.'
    )
    grammar: str | None = Field(
        default=None, max_length=1 << 18, description='For type "grammar": a Lark or GBNF grammar.'
    )
    schema_: JsonObject | None = Field(
        default=None, alias="schema", description="JSON schema without a wrapper, as in llama.cpp."
    )


class SamplingFields(Request):
    """Sampling parameters. Defaults come from the model's file."""

    temperature: Temperature | None = Field(default=None, description="0: greedy decoding.")
    top_p: Share | None = None
    top_k: Annotated[Whole, Field(ge=-1, le=_MAX_INT)] | None = Field(
        default=None, description="0 and -1: all tokens."
    )
    min_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100.0)] | None = None
    logit_bias: LogitBias | None = Field(
        default=None, description="Bias by token id; -100 forbids the token."
    )
    seed: Annotated[Whole, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopField | None = Field(
        default=None, description="Up to 16 stop strings; they are not part of the text."
    )

    def sampling(self) -> dict[str, Any]:
        """Convert the given fields to those of `SamplingParams`."""
        names = (
            "temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty",
            "repetition_penalty",
        )  # fmt: skip
        out = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.top_k is not None:
            out["top_k"] = max(0, self.top_k)
        if self.logit_bias:
            out["logit_bias"] = _bias_by_id(self.logit_bias)
        if self.seed is not None:
            out["seed"] = self.seed % 2**64
        if self.stop:
            out["stop"] = stop_list(self.stop)
        return out


def stop_list(stop: str | list[str]) -> list[str]:
    """Convert to a list, without the empty strings that some clients send."""
    return [one for one in ([stop] if isinstance(stop, str) else stop) if one]


def token_limit(*given: int | None) -> int | None:
    """Take the first limit that is given; None for no limit."""
    first = next((limit for limit in given if limit is not None), None)
    return first if first is not None and first > 0 else None


def _bias_by_id(bias: dict[str, float]) -> dict[int, float]:
    for key in bias:
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise ApiError(400, f"logit_bias: {key!r:.40} is not a token id", param="logit_bias")
    # OpenAI's -100 forbids a token, which adding it to the logit would not quite.
    return {int(key): float("-inf") if value == -100 else value for key, value in bias.items()}
