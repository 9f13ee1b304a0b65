"""Anthropic's server-sent events: content blocks that start, grow and stop, one at a time."""

from collections.abc import Iterator
from typing import Any

from hybridmoe.serve.event_stream import KEEP_ALIVE, named_event
from hybridmoe.serve.generation import ChoiceEnd, Delta
from hybridmoe.text.response_parser import (
    ArgumentsPart,
    CallStart,
    Part,
    ReasoningPart,
    TextPart,
)

__all__ = ["AnthropicEvents", "stop_reason"]

_PING = named_event("ping", {"type": "ping"})


def stop_reason(end: ChoiceEnd) -> str:
    """Convert a finish reason to Anthropic's name."""
    if end.stop_string is not None:
        return "stop_sequence"
    return {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}[end.finish_reason]


class AnthropicEvents:
    """Makes the events of one message, in order."""

    def __init__(self) -> None:
        self._index = -1  # of the last block
        self._open: str | None = None  # type of the open block
        self.is_started = False

    def keep_alive(self) -> bytes:
        """Make what fills silence: a ping too, once the message has started."""
        return KEEP_ALIVE + _PING if self.is_started else KEEP_ALIVE

    def start(self, message: dict[str, Any]) -> bytes:
        self.is_started = True
        return named_event("message_start", {"type": "message_start", "message": message})

    def error(self, body: dict[str, Any]) -> bytes:
        return named_event("error", body)

    def delta(self, update: Delta) -> Iterator[bytes]:
        for part in update.parts:
            yield from self._part(part)

    def end(self, end: ChoiceEnd, usage: dict[str, Any]) -> Iterator[bytes]:
        if self._index < 0:
            yield from self._open_block({"type": "text", "text": ""})
        yield from self._close()
        delta = {"stop_reason": stop_reason(end), "stop_sequence": end.stop_string}
        event = {"type": "message_delta", "delta": delta, "usage": usage}
        yield named_event("message_delta", event)
        yield named_event("message_stop", {"type": "message_stop"})

    def _part(self, part: Part) -> Iterator[bytes]:
        if isinstance(part, TextPart):
            yield from self._open_block({"type": "text", "text": ""})
            yield self._grow({"type": "text_delta", "text": part.text})
        elif isinstance(part, ReasoningPart):
            yield from self._open_block({"type": "thinking", "thinking": "", "signature": ""})
            yield self._grow({"type": "thinking_delta", "thinking": part.text})
        elif isinstance(part, CallStart):
            yield from self._close()
            call = {"type": "tool_use", "id": part.id, "name": part.name, "input": {}}
            yield from self._open_block(call)
        elif isinstance(part, ArgumentsPart):
            yield self._grow({"type": "input_json_delta", "partial_json": part.text})

    def _open_block(self, block: dict[str, Any]) -> Iterator[bytes]:
        """Open a block, unless one of its type is open."""
        if self._open == block["type"]:
            return
        yield from self._close()
        self._index += 1
        self._open = block["type"]
        event = {"type": "content_block_start", "index": self._index, "content_block": block}
        yield named_event("content_block_start", event)

    def _grow(self, delta: dict[str, Any]) -> bytes:
        event = {"type": "content_block_delta", "index": self._index, "delta": delta}
        return named_event("content_block_delta", event)

    def _close(self) -> Iterator[bytes]:
        if self._open is None:
            return
        if self._open == "thinking":
            yield self._grow({"type": "signature_delta", "signature": ""})
        self._open = None
        event = {"type": "content_block_stop", "index": self._index}
        yield named_event("content_block_stop", event)
