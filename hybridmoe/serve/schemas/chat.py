"""OpenAI's /v1/chat/completions: request and answers."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hybridmoe.serve.schemas.common import (
    FunctionName,
    JsonObject,
    Listed,
    Model,
    Request,
    ResponseFormat,
    SamplingFields,
    StreamOptions,
    TokenLimit,
    TopLogprobs,
    Whole,
)
from hybridmoe.text.messages import result_text

__all__ = [
    "AllowedChoice",
    "ChatAnswer",
    "ChatChunk",
    "ChatRequest",
    "NamedTool",
    "Tool",
    "ToolMode",
    "Usage",
]


class ContentPart(Request):
    """Text under any of its names; a refusal is what the assistant said, too."""

    type: Literal["text", "input_text", "output_text", "refusal"]
    text: str | None = None
    refusal: str | None = None


class FunctionCall(Request):
    name: FunctionName
    arguments: str | JsonObject | None = None


class ToolCall(Request):
    id: str | None = Field(default=None, max_length=512)
    type: Literal["function"] | None = None
    function: FunctionCall


class Message(Request):
    """One turn; `reasoning_content` of earlier answers should be sent back as it came.

    What a tool returned may be any JSON. `function` and `function_call` are older names.
    """

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Listed[ContentPart] | None = None
    name: str | None = Field(default=None, max_length=256)
    tool_calls: Annotated[Listed[ToolCall], Field(max_length=256)] | None = None
    tool_call_id: str | None = Field(default=None, max_length=512)
    reasoning_content: str | None = None
    function_call: FunctionCall | None = None

    @model_validator(mode="before")
    @classmethod
    def _results_are_text(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("role") in ("tool", "function"):
            return {**given, "content": result_text(given.get("content"))}
        return given


class Function(Request):
    name: FunctionName
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = Field(
        default=None, description="Arguments fit `parameters` by construction."
    )


class Tool(Request):
    type: Literal["function"]
    function: Function


class NamedFunction(Request):
    name: FunctionName


class NamedTool(Request):
    type: Literal["function"]
    function: NamedFunction


class ToolMode(Request):
    """A tool_choice that stands in an object."""

    type: Literal["none", "auto", "required", "any"]


class AllowedTools(Request):
    mode: Literal["auto", "required"] = "auto"
    tools: Annotated[Listed[NamedTool], Field(min_length=1, max_length=512)]


class AllowedChoice(Request):
    """A tool_choice that permits some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class ChatRequest(SamplingFields):
    """A conversation to continue."""

    model: str | None = Field(default=None, max_length=512)
    messages: Listed[Message] = Field(min_length=1)
    max_tokens: TokenLimit | None = Field(default=None, description="0 and -1 set no limit.")
    max_completion_tokens: TokenLimit | None = Field(
        default=None, description="The same as max_tokens."
    )
    n: Annotated[Whole, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[Listed[Tool], Field(max_length=512)] | None = None
    tool_choice: (
        Literal["none", "auto", "required", "any"] | NamedTool | ToolMode | AllowedChoice | None
    ) = None
    parallel_tool_calls: bool | None = None
    return_progress: bool = Field(
        default=False, description="Streams say how far the prompt is read."
    )
    return_experts: bool = Field(
        default=False, description="Streams name the experts of every token."
    )

    @classmethod
    def unsupported(cls) -> dict[str, tuple[Any, ...]]:
        return {
            "functions": ([],), "function_call": ("none", "auto"), "audio": (), "prediction": (),
            "modalities": (["text"],),
        }  # fmt: skip


class Usage(Model):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: JsonObject


class Choice(Model):
    index: int
    message: JsonObject
    logprobs: JsonObject | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChunkChoice(Model):
    index: int
    delta: JsonObject
    logprobs: JsonObject | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatAnswer(Model):
    """The whole answer; `timings` has milliseconds and tokens a second."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
    timings: JsonObject


class ChatChunk(Model):
    """One event of a stream.

    `experts`: for each token since the last chunk, for each MoE layer, the chosen experts.
    """

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    timings: JsonObject | None = None
    prompt_progress: JsonObject | None = None
    experts: list[list[list[int]]] | None = None
