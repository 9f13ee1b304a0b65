"""Schemas of ollama's API."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from hybridmoe.serve.schemas.chat import Function
from hybridmoe.serve.schemas.common import (
    MAX_INT,
    FunctionName,
    JsonObject,
    Listed,
    Model,
    Request,
    TopLogprobs,
    Whole,
)
from hybridmoe.serve.schemas.output import OutputFields, ResponseFormat
from hybridmoe.serve.schemas.sampling import SamplingFields

__all__ = [
    "OllamaChatRequest",
    "OllamaChatResponse",
    "OllamaGenerateRequest",
    "OllamaGenerateResponse",
    "OllamaMessage",
    "OllamaModelList",
    "OllamaRequest",
    "OllamaShowRequest",
    "OllamaShowResponse",
    "OllamaVersion",
]


class OllamaFunctionCall(Request):
    name: FunctionName
    arguments: JsonObject | str | None = None


class OllamaToolCall(Request):
    id: str | None = Field(default=None, max_length=512)
    function: OllamaFunctionCall


class OllamaMessage(Request):
    """Message of a conversation. Images are refused by name."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: Listed[str] | None = None
    tool_calls: Annotated[Listed[OllamaToolCall], Field(max_length=256)] | None = None
    tool_name: str | None = Field(default=None, max_length=256)
    tool_call_id: str | None = Field(default=None, max_length=512)


class OllamaTool(Request):
    type: Literal["function"] | None = None
    function: Function


class OllamaOptions(SamplingFields):
    """Sampling parameters."""

    num_predict: Annotated[Whole, Field(ge=-2, le=MAX_INT)] | None = Field(
        default=None, description="Most tokens of the response; negative: no limit."
    )
    num_ctx: Annotated[Whole, Field(ge=0, le=MAX_INT)] | None = Field(
        default=None, description="The context is set when the server starts (--ctx)."
    )


class OllamaRequest(Request):
    """Fields that /api/chat and /api/generate share."""

    api = "ollama"

    model: str = Field(max_length=512)
    stream: Annotated[bool | None, AfterValidator(lambda given: given is not False)] = Field(
        default=True, description="A JSON object a line."
    )
    format: Literal["json", ""] | JsonObject | None = Field(
        default=None, description='"json" or a JSON schema.'
    )
    options: OllamaOptions | None = None
    think: Literal["low", "medium", "high", "max"] | bool | None = None
    keep_alive: float | int | str | None = Field(
        default=None, description="No effect: the server decides when a model is unloaded."
    )
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None

    def response_format(self) -> ResponseFormat | None:
        """Convert `format`; None for text."""
        return OutputFields(format=self.format).structured_format()

    def sampling(self) -> dict[str, Any]:
        """Convert the options to fields of `SamplingParams`."""
        if self.options is None:
            return {}
        limit = self.options.num_predict
        limit = self.options.n_predict if limit is None else limit
        limited = {} if limit is None or limit < 0 else {"max_tokens": limit}
        return {**self.options.sampling(), **limited}

    @property
    def num_top_logprobs(self) -> int | None:
        """Number of alternatives of each token's log-probability; None without any."""
        return (self.top_logprobs or 0) if self.logprobs or self.top_logprobs else None


class OllamaChatRequest(OllamaRequest):
    """Conversation to continue. Without messages the model is loaded."""

    messages: Listed[OllamaMessage] | None = None
    tools: Annotated[Listed[OllamaTool], Field(max_length=512)] | None = None


class OllamaGenerateRequest(OllamaRequest):
    """Prompt to respond to, or with `raw` a text to continue. Without one the model is loaded."""

    prompt: str | None = None
    system: str | None = None
    suffix: str | None = Field(default=None, description="Refused: see /infill.")
    raw: bool | None = None


class _OllamaResponse(Model):
    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load"] | None = None
    total_duration: int | None = Field(default=None, description="In nanoseconds, as all others.")
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


class OllamaChatResponse(_OllamaResponse):
    message: JsonObject


class OllamaGenerateResponse(_OllamaResponse):
    response: str
    thinking: str | None = None


class OllamaVersion(Model):
    version: str


class OllamaShowRequest(Request):
    """Model to describe, by either field."""

    model: str | None = Field(default=None, max_length=512)
    name: str | None = Field(default=None, max_length=512)
    verbose: bool | None = None


class OllamaShowResponse(Model):
    modelfile: str
    parameters: str
    template: str
    details: JsonObject
    model_info: JsonObject
    modified_at: str
    capabilities: list[str]


class OllamaModelList(Model):
    models: list[JsonObject]
