"""Schemas of OpenAI's /v1/chat/completions."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hybridmoe.serve.schemas.common import (
    FunctionName,
    JsonObject,
    Listed,
    Model,
    Request,
    StreamOptions,
    TokenLimit,
    TopLogprobs,
    Whole,
)
from hybridmoe.serve.schemas.output import OutputFields
from hybridmoe.serve.schemas.sampling import SamplingFields
from hybridmoe.serve.schemas.thinking import ChatThinkingFields
from hybridmoe.text.content_parts import result_text

__all__ = [
    "RETURN_EXPERTS",
    "AllowedToolChoice",
    "ChatCompletionRequest",
    "ChatCompletionResponse",
    "Message",
    "NamedFunction",
    "NamedToolChoice",
    "Tool",
    "ToolChoiceMode",
    "Usage",
]

RETURN_EXPERTS = (
    "Report each token's chosen experts as `experts`, and what served them as `expert_tiers`:"
    " a text per MoE layer, with V (VRAM), R (RAM) or D (disk) for each expert."
)


class ContentPart(Request):
    """Text part, by any of its names. An earlier refusal counts as the assistant's text."""

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
    """Message of a conversation.

    Send `reasoning_content` of earlier responses back unchanged. The content of a tool's message
    may be any JSON. `function` and `function_call` are older names of `tool` and `tool_calls`.
    """

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Listed[ContentPart] | None = None
    refusal: str | None = None
    name: str | None = Field(default=None, max_length=256)
    tool_calls: Annotated[Listed[ToolCall], Field(max_length=256)] | None = None
    tool_call_id: str | None = Field(default=None, max_length=512)
    reasoning_content: str | None = None
    reasoning: str | None = Field(default=None, description="Same as `reasoning_content`.")
    prefix: bool | None = Field(default=None, description="true: continue it, if it is the last.")
    partial: bool | None = Field(default=None, description="Same as `prefix`.")
    function_call: FunctionCall | None = None

    @model_validator(mode="before")
    @classmethod
    def _results_are_text(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("role") in ("tool", "function"):
            return {**given, "content": result_text(given.get("content"))}
        return given

    def to_template(self) -> dict[str, Any]:
        """Convert to the one form that templates get."""
        out = self.model_dump(exclude_none=True)
        refusal, reasoning = out.pop("refusal", None), out.pop("reasoning", None)
        out.pop("prefix", None)
        out.pop("partial", None)
        if refusal and not out.get("content"):
            out["content"] = refusal
        if reasoning:
            out.setdefault("reasoning_content", reasoning)
        return out


class Function(Request):
    name: FunctionName
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = Field(
        default=None, description="Constrain the arguments to the schema in `parameters`."
    )


class Tool(Request):
    type: Literal["function"]
    function: Function


class NamedFunction(Request):
    name: FunctionName


class NamedToolChoice(Request):
    type: Literal["function"]
    function: NamedFunction


class ToolChoiceMode(Request):
    """Mode of `tool_choice`, written as an object."""

    type: Literal["none", "auto", "required", "any"]


class AllowedTools(Request):
    mode: Literal["auto", "required"] = "auto"
    tools: Annotated[Listed[NamedToolChoice], Field(min_length=1, max_length=512)]


class AllowedToolChoice(Request):
    """`tool_choice` that allows only some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class ChatCompletionRequest(SamplingFields, OutputFields, ChatThinkingFields):
    """Conversation to continue."""

    api = "chat"

    model: str | None = Field(default=None, max_length=512)
    messages: Listed[Message] = Field(min_length=1)
    max_tokens: TokenLimit | None = Field(default=None, description="0 and -1: no limit.")
    max_completion_tokens: TokenLimit | None = Field(
        default=None, description="Same as `max_tokens`."
    )
    n: Annotated[Whole, Field(ge=1, le=128)] | None = None
    n_cmpl: Annotated[Whole, Field(ge=1, le=128)] | None = Field(
        default=None, description="Same as `n`."
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    prompt_logprobs: TopLogprobs | None = Field(
        default=None, description="Log-probabilities of the prompt by token id, as vLLM's."
    )
    n_probs: TopLogprobs | None = Field(
        default=None, description="llama.cpp's `top_logprobs`; implies `logprobs`, but for 0."
    )
    tools: Annotated[Listed[Tool], Field(max_length=512)] | None = None
    tool_choice: (
        Literal["none", "auto", "required", "any"]
        | NamedToolChoice
        | ToolChoiceMode
        | AllowedToolChoice
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[Listed[Function], Field(max_length=512)] | None = Field(
        default=None, description="Older `tools`; the response then has a `function_call`."
    )
    function_call: Literal["none", "auto"] | NamedFunction | None = Field(
        default=None, description="Older `tool_choice`, for `functions`."
    )
    return_progress: bool = Field(
        default=False, description="Report prefill progress as `prompt_progress` in stream chunks."
    )
    include_reasoning: bool = Field(
        default=True, description="false: the response is without its reasoning."
    )
    return_token_ids: bool = Field(
        default=False, description="Give `token_ids` and `prompt_token_ids`, as vLLM does."
    )
    return_tokens_as_token_ids: bool = Field(
        default=False, description="Log-probabilities name tokens `token_id:N`."
    )
    timings_per_token: bool = Field(default=False, description="Every chunk has `timings`.")
    return_experts: bool = Field(default=False, description=RETURN_EXPERTS)


class Usage(Model):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: JsonObject


class Choice(Model):
    index: int
    message: JsonObject
    logprobs: JsonObject | None
    finish_reason: Literal["stop", "length", "tool_calls", "function_call"]


class ChatCompletionResponse(Model):
    """Chat completion. `timings` has milliseconds and tokens per second."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
    timings: JsonObject
