"""Streaming parser from token ids to text, reasoning and tool calls.

Reasoning stands between `<think>` and `</think>`. The parts hold whole characters only and end at
stop strings. Special tokens are found by id and never shown. Calls are read as the model's family
writes them (text/tool_syntax.py); a call may begin inside an unclosed `<think>`, and it ends with
the response at the latest. A call of no declared tool is text.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from hybridmoe.text.mark_scanner import MarkScanner, Piece
from hybridmoe.text.response_parts import (
    ArgumentsPart,
    CallEnd,
    CallStart,
    Part,
    ReasoningPart,
    TextPart,
)
from hybridmoe.text.stop_strings import StopFilter
from hybridmoe.text.tokenizer import Tokenizer
from hybridmoe.text.tool_syntax import ToolSyntax, choose_syntax

__all__ = [
    "ArgumentsPart",
    "CallEnd",
    "CallStart",
    "Part",
    "ReasoningPart",
    "ResponseParser",
    "TextPart",
    "numbered_call_id",
]


def numbered_call_id(name: str, index: int) -> str:
    """Make a call id in the form that Kimi K2 was trained on."""
    return f"functions.{name}:{index}"


class ResponseParser:
    """Parses the tokens of one response as they are pushed."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        syntax: ToolSyntax | None = None,
        stop: Sequence[str] = (),
        may_call: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
        may_think: bool = False,
        is_thinking: bool = False,
        make_call_id: Callable[[str, int], str] = numbered_call_id,
    ) -> None:
        """Set up the parser.

        syntax: of the model's calls; None chooses it by the vocabulary. may_call: parse tool calls;
        otherwise their tokens are hidden. may_think: parse reasoning; otherwise its marks are text.
        tools: the declared tools; without any, every name is accepted. is_thinking: the prompt
        ended inside `<think>`. make_call_id: makes a call's id from the tool's name and the call's
        index.
        """
        thinking = ("<think>", "</think>") if may_think else ()
        self._thinking = {tokenizer.special_id(mark): mark for mark in thinking}
        syntax = (syntax or choose_syntax(tokenizer)) if may_call else None
        self._stand_ins = {} if syntax is None else syntax.stand_ins
        self._scanner = MarkScanner({}, {}) if syntax is None else syntax.scanner()
        self._calls = None if syntax is None else syntax.reader(tools, make_call_id)
        self._decoder = tokenizer.stream()
        self._stops = StopFilter(stop)
        self._mode: Literal["text", "reasoning"] = "reasoning" if is_thinking else "text"

    @property
    def has_stopped(self) -> bool:
        """True once a stop string ended the response: later tokens are ignored."""
        return self._stops.has_stopped

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the response; None without one."""
        return self._stops.matched

    def is_text(self, token_id: int) -> bool:
        """True if this token, pushed next, would belong to the response's text."""
        is_mark = token_id in self._stand_ins or token_id in self._thinking
        return self._mode == "text" and not (is_mark or self._is_call or self.has_stopped)

    @property
    def is_thinking(self) -> bool:
        """True if the last token pushed was reasoning."""
        return self._mode == "reasoning" and not self._is_call

    def push(self, token_id: int) -> list[Part]:
        """Parse the next token. Returns the parts that it completes, often none."""
        if self.has_stopped:
            return []
        mark = self._thinking.get(token_id)
        if mark is not None and not (self._calls is not None and self._calls.is_in_arguments):
            return self._switch(mark)
        character = self._stand_ins.get(token_id)
        if character is None:
            return self._read(self._scanner.push(self._decoder.push(token_id)))
        return self._read(self._scanner.push(self._decoder.flush() + character))

    def finish(self, *, is_cut: bool = False) -> list[Part]:
        """End the response. Returns the parts that were held back.

        is_cut: it has not come to its own end, so that a call under way is not complete.
        """
        if self.has_stopped:
            return []
        out = self._end_mode(is_cut=is_cut)
        rest = self._stops.flush()
        return [*out, TextPart(rest)] if rest else out

    @property
    def _is_call(self) -> bool:
        return self._calls is not None and self._calls.is_call

    def _switch(self, mark: str) -> list[Part]:
        """Begin or end reasoning."""
        out = self._end_mode(is_cut=False)
        self._mode = "reasoning" if mark == "<think>" else "text"
        return out

    def _end_mode(self, *, is_cut: bool) -> list[Part]:
        out = self._read(self._scanner.push(self._decoder.flush()))
        out += self._read(self._scanner.flush())
        if self._calls is not None:
            out += self._take(self._calls.finish(is_cut=is_cut))
        return out

    def _read(self, pieces: Iterable[Piece]) -> list[Part]:
        out: list[Part] = []
        for piece in pieces:
            if self._calls is not None and (piece.mark is not None or self._calls.is_open):
                out += self._take(self._calls.push(piece))
            else:
                out += self._show(piece.text)
        return out

    def _take(self, parts: Iterable[Part]) -> list[Part]:
        """Take the parts of calls, and the text that turns out to be none."""
        out: list[Part] = []
        for part in parts:
            if isinstance(part, CallStart):
                self._mode = "text"  # a call ends the reasoning
            out += self._show(part.text) if isinstance(part, TextPart) else [part]
        return out

    def _show(self, text: str) -> list[Part]:
        if not text:
            return []
        if self._mode == "reasoning":
            return [ReasoningPart(text)]
        shown = self._stops.push(text)
        return [TextPart(shown)] if shown else []
