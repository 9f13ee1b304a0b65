"""Output items of the Responses API, and the events of their growth."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hybridmoe.serve.event_stream import named_event
from hybridmoe.serve.generation import Delta, TokenLogprob
from hybridmoe.serve.stored_id import new_id
from hybridmoe.text.response_parser import (
    ArgumentsPart,
    CallEnd,
    CallStart,
    Part,
    ReasoningPart,
    TextPart,
)

__all__ = ["OutputItems"]

Logprobs = Callable[[Sequence[TokenLogprob]], list[dict[str, Any]]]


class OutputItems:
    """Collects the output items of one response, and makes an event of each change."""

    def __init__(
        self, logprobs: Logprobs, timings: Callable[[], dict[str, Any]] | None = None
    ) -> None:
        """timings: adds them to each delta."""
        self.output: list[dict[str, Any]] = []  # the last item may be in progress
        self._logprobs = logprobs
        self._timings = timings
        self._sequence = 0

    def event(self, kind: str, **fields: Any) -> bytes:
        """Make an event with the next sequence number."""
        self._sequence += 1
        if self._timings is not None and kind.endswith(".delta"):
            fields["timings"] = self._timings()
        body = {"type": kind, "sequence_number": self._sequence - 1, **fields}
        return named_event(kind, body)

    def delta(self, update: Delta) -> Iterator[bytes]:
        """Add a delta. Yields its events."""
        logprobs = self._logprobs(update.logprobs)
        for part in update.parts:
            yield from self._part(part, logprobs)
            logprobs = logprobs if not isinstance(part, TextPart) else []

    def add(self, item: dict[str, Any]) -> Iterator[bytes]:
        """Add a whole item. Yields its events."""
        yield from self._open(item)
        yield self.event("response.output_item.done", output_index=len(self.output) - 1, item=item)

    def close(self, status: str = "completed") -> Iterator[bytes]:
        """End the item in progress, if any. Yields its events."""
        if not self.output or self.output[-1].get("status") != "in_progress":
            return
        item = self.output[-1]
        item["status"] = status
        at = self._place()
        if item["type"] == "function_call":
            yield self.event(
                "response.function_call_arguments.done",
                **at,
                name=item["name"],
                arguments=item["arguments"],
            )
        else:
            part = item["content"][0]
            is_text = item["type"] == "message"
            kind = "output_text" if is_text else "reasoning_text"
            extra = {"logprobs": part["logprobs"]} if is_text else {}
            yield self.event(
                f"response.{kind}.done", **at, content_index=0, text=part["text"], **extra
            )
            yield self.event("response.content_part.done", **at, content_index=0, part=part)
        yield self.event("response.output_item.done", output_index=at["output_index"], item=item)

    def _part(self, part: Part, logprobs: list[dict[str, Any]]) -> Iterator[bytes]:
        if isinstance(part, TextPart):
            yield from self._open_text("message")
            content = self.output[-1]["content"][0]
            content["text"] += part.text
            content["logprobs"] += logprobs
            yield self.event(
                "response.output_text.delta",
                **self._place(),
                content_index=0,
                delta=part.text,
                logprobs=logprobs,
            )
        elif isinstance(part, ReasoningPart):
            yield from self._open_text("reasoning")
            self.output[-1]["content"][0]["text"] += part.text
            yield self.event(
                "response.reasoning_text.delta", **self._place(), content_index=0, delta=part.text
            )
        elif isinstance(part, CallStart):
            yield from self.close()
            yield from self._open(
                {
                    "type": "function_call",
                    "id": new_id("fc"),
                    "call_id": part.id,
                    "name": part.name,
                    "arguments": "",
                    "status": "in_progress",
                }
            )
        elif isinstance(part, ArgumentsPart):
            self.output[-1]["arguments"] += part.text
            yield self.event(
                "response.function_call_arguments.delta", **self._place(), delta=part.text
            )
        elif isinstance(part, CallEnd):
            yield from self.close()

    def _open_text(self, kind: str) -> Iterator[bytes]:
        last = self.output[-1] if self.output else {}
        if last.get("type") == kind and last["status"] == "in_progress":
            return
        yield from self.close()
        if kind == "message":
            part: dict[str, Any] = {
                "type": "output_text", "text": "", "annotations": [], "logprobs": []
            }  # fmt: skip
            item = {"type": "message", "id": new_id("msg"), "role": "assistant"}
        else:
            part = {"type": "reasoning_text", "text": ""}
            item = {"type": "reasoning", "id": new_id("rs"), "summary": []}  # type: ignore[dict-item]
        yield from self._open({**item, "content": [], "status": "in_progress"})
        event = self.event(
            "response.content_part.added", **self._place(), content_index=0, part=part
        )
        self.output[-1]["content"].append(part)
        yield event

    def _open(self, item: dict[str, Any]) -> Iterator[bytes]:
        self.output.append(item)
        index = len(self.output) - 1
        yield self.event("response.output_item.added", output_index=index, item=item)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.output[-1]["id"], "output_index": len(self.output) - 1}
