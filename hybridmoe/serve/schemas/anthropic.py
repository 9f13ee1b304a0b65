"""Schemas of Anthropic's /v1/messages and /v1/messages/count_tokens."""

from typing import Annotated, Literal

from pydantic import Field

from hybridmoe.serve.schemas.common import (
    Count,
    FunctionName,
    JsonObject,
    Listed,
    Model,
    Request,
    StopStrings,
)
from hybridmoe.serve.schemas.output import OutputFields
from hybridmoe.serve.schemas.sampling import SamplingFields
from hybridmoe.serve.schemas.thinking import Effort, MessagesThinkingFields
from hybridmoe.text.thinking_options import ThinkingOptions

__all__ = [
    "AnthropicMessage", "AnthropicTool", "AnthropicToolChoice", "ContentBlock",
    "CountTokensRequest", "CountTokensResponse", "MessagesRequest", "MessagesResponse",
]  # fmt: skip


class ContentBlock(Request):
    """Content block: text, a document of text, thinking, a tool's call or result.

    Work of hosted tools (`server_tool_use`, `web_search_tool_result`, ...) is read as text. Images
    and other types are refused by name.
    """

    type: str = Field(max_length=64)
    text: str | None = None
    thinking: str | None = None
    id: str | None = Field(default=None, max_length=512)
    name: FunctionName | None = None
    input: JsonObject | None = None
    tool_use_id: str | None = Field(default=None, max_length=512)
    content: str | Listed[JsonObject] | JsonObject | None = Field(
        default=None,
        description="Content of a tool_result. Images and documents become a line each.",
    )
    is_error: bool | None = None


class AnthropicMessage(Request):
    role: Literal["user", "assistant", "system"]
    content: str | Listed[ContentBlock]


class AnthropicTool(Request):
    type: str | None = Field(default=None, max_length=64)
    name: FunctionName
    description: str | None = None
    input_schema: JsonObject | None = None
    strict: bool | None = None


class AnthropicToolChoice(Request):
    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: bool | None = None


class JsonFormat(Request):
    """Format of the text: JSON that is valid against a schema."""

    type: Literal["json_schema"]
    schema_: JsonObject = Field(alias="schema")


class OutputConfig(Request):
    format: JsonFormat | None = None
    effort: Effort | None = Field(default=None, description="Counts where `thinking` is on.")


class CountTokensRequest(MessagesThinkingFields):
    """Conversation whose prompt tokens are counted."""

    api = "messages"

    model: str = Field(max_length=512)
    messages: Listed[AnthropicMessage] = Field(min_length=1)
    system: str | Listed[ContentBlock] | None = None
    tools: Annotated[Listed[AnthropicTool], Field(max_length=512)] | None = None
    tool_choice: AnthropicToolChoice | None = None
    output_config: OutputConfig | None = None

    def thinking_options(self) -> ThinkingOptions:
        """Join the fields on thinking."""
        return self.thinking_with(self.output_config.effort if self.output_config else None)


class MessagesRequest(CountTokensRequest, SamplingFields, OutputFields):
    """Conversation to continue."""

    max_tokens: Count
    temperature: Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)] | None = Field(
        default=None, description="0 to 1; 1 stands for the model's recommended temperature."
    )
    stop_sequences: StopStrings | None = None
    output_format: JsonFormat | None = Field(
        default=None, description="Older `output_config.format`."
    )
    stream: bool | None = None


class AnthropicUsage(Model):
    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int


class MessagesResponse(Model):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[JsonObject]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None
    usage: AnthropicUsage


class CountTokensResponse(Model):
    input_tokens: int
