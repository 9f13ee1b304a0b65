"""One answer's tokens, as they come, sorted into what a client shows apart.

Text, reasoning (between `<think>` and `</think>`), and tool calls with their arguments. Pushed, not
pulled: whoever receives tokens calls `push`. Whole characters only, cut at stop strings; marks are
found by token id and never shown. Lenient as text/call_names.py describes: a call also begins
without its section or inside an unclosed `<think>`, and ends where the answer does. A call of no
declared tool is text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hybridmoe.text.call_names import MARKS, CallNames, unfenced
from hybridmoe.text.stop_strings import StopFilter
from hybridmoe.text.tokenizer import Tokenizer

__all__ = [
    "ArgumentsPart",
    "CallEnd",
    "CallStart",
    "Part",
    "ReasoningPart",
    "ResponseParser",
    "TextPart",
]


@dataclass(frozen=True, slots=True)
class TextPart:
    """Characters of the answer itself."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningPart:
    """Characters of the model's thinking."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A tool call begins: the how-manieth of this answer, and of which function."""

    index: int
    name: str
    id: str  # as the model wrote it


@dataclass(frozen=True, slots=True)
class ArgumentsPart:
    """Characters of a call's JSON arguments."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The call has all its arguments, or the answer ended in it."""

    index: int


Part = TextPart | ReasoningPart | CallStart | ArgumentsPart | CallEnd
Mode = Literal["text", "reasoning", "section", "name", "arguments", "held"]


class ResponseParser:
    """Sorts one answer's tokens."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        may_call: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
        may_think: bool = False,
        is_thinking: bool = False,
    ) -> None:
        """may_call, may_think: whether such marks are acted upon; else the names of the latter
        are text, and the former hidden. tools: the declared ones; without any, all names are
        taken. is_thinking: the prompt ended inside `<think>`.
        """
        names = (*(MARKS if may_call else ()), *(("<think>", "</think>") if may_think else ()))
        self._marks = {
            token_id: MARKS.get(name, name)
            for name in names
            if (token_id := tokenizer.special_id(name)) is not None
        }
        self._names = CallNames(tools)
        self._tokenizer = tokenizer
        self._decoder = tokenizer.stream()
        self._stops = StopFilter(stop)
        self._mode: Mode = "reasoning" if is_thinking else "text"
        self._is_section = False  # where a call ends, whether text or a further call follows
        self._call_id = ""
        self._held = ""  # of a call whose tool, or form, is not known before its end
        self._spaces = ""  # held back at the end of arguments
        self._has_arguments = False
        self.num_calls = 0  # begun so far

    @property
    def has_stopped(self) -> bool:
        """Whether a stop string ended the answer: no token after it counts."""
        return self._stops.has_stopped

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the answer."""
        return self._stops.matched

    def is_text(self, token_id: int) -> bool:
        """Whether this token, if it is pushed next, belongs to the answer's text."""
        return self._mode == "text" and token_id not in self._marks and not self.has_stopped

    @property
    def is_thinking(self) -> bool:
        """Whether the last token pushed was a thought."""
        return self._mode == "reasoning"

    def push(self, token_id: int) -> list[Part]:
        """What this token completes; often nothing."""
        if self.has_stopped:
            return []
        mark = self._marks.get(token_id)
        if mark is not None:
            return self._turn(mark)
        return self._show(self._decoder.push(token_id))

    def finish(self) -> list[Part]:
        """What was held back, once no more tokens will come."""
        if self.has_stopped:
            return []
        if self._mode == "name" and "{" not in self._call_id:
            self._mode = "text"  # cut off before there was a call
        out = self._leave()
        rest = self._stops.flush()
        return [*out, TextPart(rest)] if rest else out

    def _turn(self, mark: str) -> list[Part]:
        if mark == "arguments begin" and self._mode == "name":
            return self._begin_arguments()
        out = self._leave()
        if mark == "call begin":
            self._mode, self._call_id, self._held = "name", "", ""
        elif mark in ("call end", "arguments begin"):
            if self._mode in ("name", "arguments", "held"):
                self._mode = "section" if self._is_section else "text"
        else:
            self._is_section = mark == "section begin"
            after: Mode = "section" if self._is_section else "text"
            self._mode = "reasoning" if mark == "<think>" else after
        return out

    def _begin_arguments(self) -> list[Part]:
        self._call_id += self._decoder.flush()
        name = self._names.resolve(self._call_id)
        if name is None:
            self._mode = "held"
            return []
        self._mode, self._spaces, self._has_arguments = "arguments", "", False
        return [self._start(name)]

    def _start(self, name: str) -> CallStart:
        self.num_calls += 1
        return CallStart(self.num_calls - 1, name, self._call_id.strip())

    def _leave(self) -> list[Part]:
        """End what the current mode has begun; the mode itself is the caller's to change."""
        out = self._show(self._decoder.flush())
        if self._mode == "name":  # arguments without their mark, or none
            self._call_id, brace, rest = self._call_id.partition("{")
            self._held = brace + rest
        if self._mode in ("name", "held"):
            return self._end_held()
        if self._mode == "arguments":
            index = self.num_calls - 1
            if self._held:
                out.append(ArgumentsPart(index, unfenced(self._held)))
                self._held = ""
            elif not self._has_arguments:
                out.append(ArgumentsPart(index, "{}"))
            out.append(CallEnd(index))
        return out

    def _end_held(self) -> list[Part]:
        """A call that is known as a whole only, or else its text."""
        call = self._names.resolve_whole(self._call_id, self._held)
        if call is None:
            text = self._stops.push(self._call_id + self._held)
            return [TextPart(text)] if text else []
        start = self._start(call.name)
        return [start, ArgumentsPart(start.index, call.arguments), CallEnd(start.index)]

    def _show(self, text: str) -> list[Part]:
        if not text:
            return []
        if self._mode == "text":
            shown = self._stops.push(text)
            return [TextPart(shown)] if shown else []
        if self._mode == "reasoning":
            return [ReasoningPart(text)]
        if self._mode == "name":
            self._call_id += text
        elif self._mode == "held":
            self._held += text
        elif self._mode == "arguments":
            return self._show_arguments(text)
        return []  # between the calls of a section

    def _show_arguments(self, text: str) -> list[Part]:
        text = self._spaces + text
        kept = text.rstrip()
        self._spaces = text[len(kept) :]
        if not self._has_arguments:
            kept = kept.lstrip()
            if self._held or kept.startswith("`"):  # a code fence around them
                self._held += kept + self._spaces
                self._spaces = ""
                return []
        if not kept:
            return []
        self._has_arguments = True
        return [ArgumentsPart(self.num_calls - 1, kept)]
