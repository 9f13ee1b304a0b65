"""OpenAI's /v1/responses, without state: every request carries its whole conversation."""

from typing import Annotated, Any, Literal

from pydantic import Field

from hybridmoe.serve.schemas.common import (
    FunctionName,
    JsonObject,
    Listed,
    Model,
    Request,
    Share,
    Temperature,
    TokenLimit,
    TopLogprobs,
)

__all__ = ["ResponseAnswer", "ResponsesRequest"]


class Item(Request):
    """A message, function_call, function_call_output or reasoning; others are refused by name."""

    type: str | None = Field(default=None, max_length=64)
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | Listed[JsonObject] | None = None
    call_id: str | None = Field(default=None, max_length=512)
    name: FunctionName | None = None
    arguments: str | None = None
    output: str | Listed[JsonObject] | None = None


class ResponsesTool(Request):
    type: str = Field(max_length=64)
    name: FunctionName | None = None
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class ResponsesNamedTool(Request):
    type: Literal["function"]
    name: FunctionName


class TextFormat(Request):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    schema_: JsonObject | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextOptions(Request):
    format: TextFormat | None = None


class ResponsesRequest(Request):
    """A conversation to continue."""

    model: str | None = Field(default=None, max_length=512)
    input: str | Annotated[Listed[Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: TokenLimit | None = Field(default=None, description="0 and -1 set no limit.")
    temperature: Temperature | None = None
    top_p: Share | None = None
    stream: bool | None = None
    tools: Annotated[Listed[ResponsesTool], Field(max_length=512)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponsesNamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    top_logprobs: TopLogprobs | None = None
    include: Listed[str] | None = None
    metadata: JsonObject | None = None
    store: bool | None = Field(default=None, description="Nothing is stored, whatever this says.")

    @classmethod
    def unsupported(cls) -> dict[str, tuple[Any, ...]]:
        return {
            "previous_response_id": ("",), "conversation": (), "background": (False,),
            "prompt": (), "truncation": ("disabled",), "max_tool_calls": (),
        }  # fmt: skip


class ResponseAnswer(Model):
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "failed", "in_progress"]
    model: str
    output: list[JsonObject]
    usage: JsonObject | None
