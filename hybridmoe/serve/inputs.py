"""Generation inputs: what a request asks for, the same for every API."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hybridmoe.serve.schemas.output import ResponseFormat
from hybridmoe.text.thinking_options import ThinkingOptions

__all__ = ["ChatInput", "TextInput"]

_LONG_CHARS = 1 << 14
_MANY_MESSAGES = 64


@dataclass(slots=True, kw_only=True)
class ChatInput:
    """Conversation to continue, with its tools and options; messages are in OpenAI's form."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: Literal["auto", "none", "required"] = "auto"
    forced_tool: str | None = None  # the only tool that may, and must, be called
    allowed_tools: list[str] | None = None  # the only tools shown to the model; None: all
    call_id_prefix: str = "call_"  # of ids of tool calls in the response
    is_parallel: bool = True  # allow several calls in one response
    format: ResponseFormat | None = None
    thinking: ThinkingOptions = field(default_factory=ThinkingOptions)
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    # Continue the assistant's last message; None: if it has text and no tool calls.
    continue_final: bool | None = False
    sampling: dict[str, Any] = field(default_factory=dict)
    relative_temperature: float | None = None  # in units of the model's recommended temperature
    num_choices: int = 1
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None  # alternatives to each token of the prompt
    expert_trace: bool = False

    @property
    def is_short(self) -> bool:
        """True if preparing it takes negligible time."""
        if self.tools or self.format is not None or len(self.messages) > _MANY_MESSAGES:
            return False
        texts = (message.get("content") for message in self.messages)
        return (
            sum(len(text) if isinstance(text, str) else _LONG_CHARS for text in texts if text)
            < _LONG_CHARS
        )


@dataclass(slots=True, kw_only=True)
class TextInput:
    """Texts, or their token ids, to continue, with options; a prompt may mix both."""

    prompts: Sequence[str | Sequence[int | str]]
    add_special: bool = True  # to texts: the begin token
    format: ResponseFormat | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    num_choices: int = 1  # of each prompt
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: bool = False  # give the prompt back
    expert_trace: bool = False

    @property
    def is_short(self) -> bool:
        """True if preparing it takes negligible time."""
        return self.format is None and sum(map(len, self.prompts)) < _LONG_CHARS
