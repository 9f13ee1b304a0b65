"""Parts of a response: text, reasoning and tool calls, as they are streamed."""

from dataclasses import dataclass

__all__ = ["ArgumentsPart", "CallEnd", "CallStart", "Part", "ReasoningPart", "TextPart"]


@dataclass(frozen=True, slots=True)
class TextPart:
    """Characters of the response's text."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningPart:
    """Characters of the model's reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """Start of a tool call."""

    index: int  # among the response's calls
    name: str
    id: str  # made by the parser's `make_call_id`


@dataclass(frozen=True, slots=True)
class ArgumentsPart:
    """Characters of a call's JSON arguments."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """End of a tool call: its arguments are complete, or the response ended."""

    index: int


Part = TextPart | ReasoningPart | CallStart | ArgumentsPart | CallEnd
