"""Schemas of OpenAI's /v1/responses."""

from typing import Annotated, Any, Literal

from pydantic import Field

from hybridmoe.serve.schemas.common import (
    Count,
    FunctionName,
    JsonObject,
    Listed,
    Model,
    Request,
    TokenLimit,
    TopLogprobs,
)
from hybridmoe.serve.schemas.output import OutputFields
from hybridmoe.serve.schemas.sampling import SamplingFields
from hybridmoe.serve.schemas.thinking import ResponsesThinkingFields

__all__ = [
    "CompactRequest",
    "CompactedResponse",
    "ConversationItemsRequest",
    "ConversationRef",
    "ConversationRequest",
    "ConversationResponse",
    "DeletedConversation",
    "DeletedResponse",
    "InputTokensRequest",
    "InputTokensResponse",
    "Item",
    "ItemList",
    "ResponsesAllowedTools",
    "ResponsesNamedTool",
    "ResponsesRequest",
    "ResponsesResponse",
    "ResponsesTool",
]


class Item(Request):
    """Message, reasoning, tool call, tool output, or reference to a stored item.

    Calls of other tools than functions are read as function calls. Work of hosted services
    (`web_search_call`, ...) is skipped. Other types are refused by name.
    """

    type: str | None = Field(default=None, max_length=64)
    id: str | None = Field(default=None, max_length=512)
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | Listed[JsonObject] | None = None
    call_id: str | None = Field(default=None, max_length=512)
    name: FunctionName | None = None
    arguments: str | JsonObject | None = None
    input: str | None = Field(default=None, description="Input of a custom tool's call.")
    output: str | Listed[Any] | JsonObject | None = None
    encrypted_content: str | None = Field(
        default=None, description="Of a `compaction`: it stands for all items before it."
    )


class ResponsesTool(Request):
    """Function tool. Tools of other types are skipped, since this server runs none."""

    type: str = Field(max_length=64)
    name: FunctionName | None = None
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class ResponsesNamedTool(Request):
    type: Literal["function"]
    name: FunctionName


class ResponsesAllowedTools(Request):
    """`tool_choice` that allows only some of the tools."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"] = "auto"
    tools: Annotated[Listed[ResponsesTool], Field(min_length=1, max_length=512)]


class TextFormat(Request):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    schema_: JsonObject | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextOptions(Request):
    format: TextFormat | None = None


class ConversationRef(Request):
    id: str = Field(max_length=512)


class ContextManagement(Request):
    type: Literal["compaction"]
    compact_threshold: Count | None = Field(
        default=None,
        description="Tokens of the prompt; default, and at most: 7/8 of the context.",
    )


class ResponsesRequest(SamplingFields, OutputFields, ResponsesThinkingFields):
    """Conversation to continue: the stored one that is named, if any, then `input`."""

    api = "responses"

    model: str | None = Field(default=None, max_length=512)
    input: str | Listed[Item]
    instructions: str | None = None
    max_output_tokens: TokenLimit | None = Field(default=None, description="0 and -1: no limit.")
    stream: bool | None = None
    tools: Annotated[Listed[ResponsesTool], Field(max_length=512)] | None = None
    tool_choice: (
        Literal["none", "auto", "required"] | ResponsesNamedTool | ResponsesAllowedTools | None
    ) = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    top_logprobs: TopLogprobs | None = None
    include: Listed[str] | None = None
    metadata: JsonObject | None = None
    previous_response_id: str | None = Field(default=None, max_length=512)
    conversation: Annotated[str, Field(max_length=512)] | ConversationRef | None = Field(
        default=None, description="Stored conversation; it grows by the input and the output."
    )
    context_management: Annotated[Listed[ContextManagement], Field(max_length=1)] | None = Field(
        default=None,
        description="Above a threshold, the model summarizes the oldest turns first. The output"
        " then begins with a `compaction` item, which stands for all items before it.",
    )
    return_progress: bool = Field(
        default=False, description="Report prefill progress as `prompt_progress` in events."
    )
    timings_per_token: bool = Field(default=False, description="Every delta has `timings`.")
    store: bool | None = Field(
        default=None,
        description="false: later requests cannot refer to the response or its items.",
    )


class InputTokensRequest(ResponsesRequest):
    """Conversation whose prompt tokens are counted."""

    input: str | Listed[Item] = ""


class CompactRequest(InputTokensRequest):
    """Conversation to summarize."""


class ConversationItemsRequest(Request):
    """Items to add to a conversation."""

    items: Listed[Item]


class ConversationRequest(Request):
    """Metadata of a conversation; for a new one also its first items."""

    items: Listed[Item] | None = None
    metadata: JsonObject | None = None


class InputTokensResponse(Model):
    object: Literal["response.input_tokens"]
    input_tokens: int


class CompactedResponse(Model):
    id: str
    object: Literal["response.compaction"]
    created_at: int
    output: list[JsonObject]
    usage: JsonObject


class ItemList(Model):
    object: Literal["list"]
    data: list[JsonObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ConversationResponse(Model):
    id: str
    object: Literal["conversation"]
    created_at: int
    metadata: JsonObject


class DeletedConversation(Model):
    id: str
    object: Literal["conversation.deleted"]
    deleted: bool


class ResponsesResponse(Model):
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "failed", "in_progress"]
    model: str
    output: list[JsonObject]
    usage: JsonObject | None


class DeletedResponse(Model):
    id: str
    object: Literal["response"]
    deleted: bool
