"""OpenAI's /v1/chat/completions: request and answers."""

from typing import Annotated, Any, Literal

from pydantic import Field

from hybridmoe.serve.schemas.common import (
    Count,
    FunctionName,
    JsonObject,
    Listed,
    Model,
    Request,
    ResponseFormat,
    SamplingFields,
    StreamOptions,
    TopLogprobs,
)

__all__ = ["ChatAnswer", "ChatChunk", "ChatRequest", "Tool", "Usage"]


class ContentPart(Request):
    type: Literal["text"]
    text: str


class FunctionCall(Request):
    name: FunctionName
    arguments: str | JsonObject = "{}"


class ToolCall(Request):
    id: str = Field(default="", max_length=512)
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Request):
    """One turn; `reasoning_content` of earlier answers should be sent back as it came."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Listed[ContentPart] | None = None
    name: str | None = Field(default=None, max_length=256)
    tool_calls: Annotated[Listed[ToolCall], Field(max_length=256)] | None = None
    tool_call_id: str | None = Field(default=None, max_length=512)
    reasoning_content: str | None = None


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


class ChatRequest(SamplingFields):
    """A conversation to continue."""

    model: str | None = Field(default=None, max_length=512)
    messages: Listed[Message] = Field(min_length=1)
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = Field(default=None, description="The same as max_tokens.")
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[Listed[Tool], Field(max_length=512)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
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
            "functions": ([],), "function_call": ("none",), "audio": (), "prediction": (),
            "web_search_options": (), "modalities": (["text"],), "store": (False,),
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
