"""Streaming parser from token ids to text, reasoning and tool calls.

Reasoning stands between `<think>` and `</think>`. The parts hold whole characters only and end at
stop strings. Marks are found by token id and never shown. The parser is lenient, as
text/tool_names.py describes: a call may begin without its section or inside an unclosed `<think>`,
and it ends with the response at the latest. A call of no declared tool is text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hybridmoe.text.stop_strings import StopFilter
from hybridmoe.text.tokenizer import Tokenizer
from hybridmoe.text.tool_call_tokens import MARKS
from hybridmoe.text.tool_names import ToolNames, strip_code_fence

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
Mode = Literal["text", "reasoning", "section", "name", "arguments", "held"]


def numbered_call_id(name: str, index: int) -> str:
    """Make a call id in the form that Kimi K2 was trained on."""
    return f"functions.{name}:{index}"


class ResponseParser:
    """Parses the tokens of one response as they are pushed."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        may_call: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
        may_think: bool = False,
        is_thinking: bool = False,
        make_call_id: Callable[[str, int], str] = numbered_call_id,
    ) -> None:
        """Set up the parser.

        may_call: parse tool calls; otherwise their marks are hidden. may_think: parse reasoning;
        otherwise its marks are text. tools: the declared tools; without any, every name is
        accepted. is_thinking: the prompt ended inside `<think>`. make_call_id: makes a call's id
        from the tool's name and the call's index.
        """
        names = (*(MARKS if may_call else ()), *(("<think>", "</think>") if may_think else ()))
        self._marks = {
            token_id: MARKS.get(name, name)
            for name in names
            if (token_id := tokenizer.special_id(name)) is not None
        }
        self._names = ToolNames(tools)
        self._decoder = tokenizer.stream()
        self._stops = StopFilter(stop)
        self._make_call_id = make_call_id
        self._mode: Mode = "reasoning" if is_thinking else "text"
        self._is_section = False  # inside a section: a call's end is not followed by text
        self._call_header = ""  # the id that the model wrote
        self._held = ""  # arguments of a call whose tool or form is unknown until its end
        self._spaces = ""  # held back at the end of arguments
        self._has_arguments = False
        self._num_calls = 0

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
        return self._mode == "text" and token_id not in self._marks and not self.has_stopped

    @property
    def is_thinking(self) -> bool:
        """True if the last token pushed was reasoning."""
        return self._mode == "reasoning"

    def push(self, token_id: int) -> list[Part]:
        """Parse the next token. Returns the parts that it completes, often none."""
        if self.has_stopped:
            return []
        mark = self._marks.get(token_id)
        if mark is not None:
            return self._switch(mark)
        return self._emit(self._decoder.push(token_id))

    def finish(self) -> list[Part]:
        """End the response. Returns the parts that were held back."""
        if self.has_stopped:
            return []
        if self._mode == "name" and "{" not in self._call_header:
            self._mode = "text"  # cut off before its name was complete
        out = self._end_mode()
        rest = self._stops.flush()
        return [*out, TextPart(rest)] if rest else out

    def _switch(self, mark: str) -> list[Part]:
        if mark == "arguments begin" and self._mode == "name":
            return self._begin_arguments()
        out = self._end_mode()
        if mark == "call begin":
            self._mode, self._call_header, self._held = "name", "", ""
        elif mark in ("call end", "arguments begin"):
            if self._mode in ("name", "arguments", "held"):
                self._mode = "section" if self._is_section else "text"
        else:
            self._is_section = mark == "section begin"
            after: Mode = "section" if self._is_section else "text"
            self._mode = "reasoning" if mark == "<think>" else after
        return out

    def _begin_arguments(self) -> list[Part]:
        self._call_header += self._decoder.flush()
        name = self._names.resolve(self._call_header)
        if name is None:
            self._mode = "held"
            return []
        self._mode, self._spaces, self._has_arguments = "arguments", "", False
        return [self._start(name)]

    def _start(self, name: str) -> CallStart:
        self._num_calls += 1
        index = self._num_calls - 1
        return CallStart(index, name, self._make_call_id(name, index))

    def _end_mode(self) -> list[Part]:
        """End what the current mode has begun. The caller changes the mode."""
        out = self._emit(self._decoder.flush())
        if self._mode == "name":  # arguments without their mark, or none
            self._call_header, brace, rest = self._call_header.partition("{")
            self._held = brace + rest
        if self._mode in ("name", "held"):
            return self._end_held()
        if self._mode == "arguments":
            index = self._num_calls - 1
            if self._held:
                out.append(ArgumentsPart(index, strip_code_fence(self._held)))
                self._held = ""
            elif not self._has_arguments:
                out.append(ArgumentsPart(index, "{}"))
            out.append(CallEnd(index))
        return out

    def _end_held(self) -> list[Part]:
        """Resolve a call from its id and arguments together, or give it as text."""
        call = self._names.resolve_call(self._call_header, self._held)
        if call is None:
            text = self._stops.push(self._call_header + self._held)
            return [TextPart(text)] if text else []
        start = self._start(call.name)
        return [start, ArgumentsPart(start.index, call.arguments), CallEnd(start.index)]

    def _emit(self, text: str) -> list[Part]:
        if not text:
            return []
        if self._mode == "text":
            shown = self._stops.push(text)
            return [TextPart(shown)] if shown else []
        if self._mode == "reasoning":
            return [ReasoningPart(text)]
        if self._mode == "name":
            self._call_header += text
        elif self._mode == "held":
            self._held += text
        elif self._mode == "arguments":
            return self._emit_arguments(text)
        return []  # between the calls of a section

    def _emit_arguments(self, text: str) -> list[Part]:
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
        return [ArgumentsPart(self._num_calls - 1, kept)]
