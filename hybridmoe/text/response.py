"""Response: text, reasoning and tool calls of one completion, with its finish reason.

Shared by the Python API and the endpoint. Both push generated ids, stream the parts that come
back, and read the whole at the end.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hybridmoe.text.response_parser import (
    ArgumentsPart,
    CallEnd,
    CallStart,
    Part,
    ReasoningPart,
    ResponseParser,
    TextPart,
)

__all__ = ["FinishReason", "Response", "ToolCall"]

FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]


@dataclass(slots=True)
class ToolCall:
    """Tool call with its JSON arguments, as far as they are generated."""

    id: str
    name: str
    arguments: str = ""

    def to_openai(self) -> dict[str, Any]:
        """Convert to OpenAI's structure."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


class Response:
    """Collects the parts of one response while its tokens are generated."""

    def __init__(self, parser: ResponseParser, *, is_parallel: bool = True) -> None:
        """is_parallel: allow several tool calls; otherwise the first one ends the response."""
        self.parser = parser
        self.tool_calls: list[ToolCall] = []
        self.finish_reason: FinishReason | None = None  # None while unfinished
        self._is_parallel = is_parallel
        self._text: list[str] = []
        self._reasoning: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def complete_tool_calls(self) -> list[ToolCall]:
        """The tool calls, except a last one that was cut off and is not valid JSON."""
        calls = self.tool_calls
        is_whole = self.finish_reason in ("stop", "tool_calls")
        return calls if is_whole or not calls or _is_json(calls[-1].arguments) else calls[:-1]

    def push(self, token_id: int) -> list[Part]:
        """Parse the next token. Returns the parts that it completes, often none.

        Sets `finish_reason` at a stop string, and at the end of the only call allowed: the
        response needs no more tokens then.
        """
        parts = self._collect(self.parser.push(token_id))
        if self.parser.has_stopped:
            self.finish_reason = "stop"
        elif not self._is_parallel and any(isinstance(part, CallEnd) for part in parts):
            self.finish_reason = "tool_calls"
        return parts

    def finish(self, reason: Literal["stop", "length", "cancelled"]) -> list[Part]:
        """End the response for the engine's reason. Returns the parts that were held back.

        Does nothing if `push` has finished it already.
        """
        if self.finish_reason is not None:
            return []
        parts = self._collect(self.parser.finish(is_cut=reason != "stop"))
        self.finish_reason = "tool_calls" if reason == "stop" and self.tool_calls else reason
        return parts

    def _collect(self, parts: Sequence[Part]) -> list[Part]:
        for part in parts:
            if isinstance(part, TextPart):
                self._text.append(part.text)
            elif isinstance(part, ReasoningPart):
                self._reasoning.append(part.text)
            elif isinstance(part, CallStart):
                self.tool_calls.append(ToolCall(part.id, part.name))
            elif isinstance(part, ArgumentsPart):
                self.tool_calls[-1].arguments += part.text
        return list(parts)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
