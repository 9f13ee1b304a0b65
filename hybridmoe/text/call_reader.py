"""Streaming parsers of tool calls: what each family's reader has in common, and JSON arguments.

A reader takes marks and text from the first mark on. A call of no declared tool is given back as
text. Readers keep no text but what a call's tool or its form depends on.
"""

from collections.abc import Callable, Iterator
from typing import Literal, Protocol

from hybridmoe.text.call_arguments import JsonArguments
from hybridmoe.text.mark_scanner import Piece
from hybridmoe.text.response_parts import ArgumentsPart, CallEnd, CallStart, Part, TextPart
from hybridmoe.text.tool_names import MAX_ID_CHARS, ToolNames

__all__ = ["CallParts", "CallReader", "JsonCallReader"]

Parts = Iterator[Part]


class CallParts:
    """Makes the parts of one response's calls, and numbers them."""

    def __init__(self, make_call_id: Callable[[str, int], str]) -> None:
        self._make_call_id = make_call_id
        self._count = 0

    def start(self, name: str) -> CallStart:
        """Start a call."""
        self._count += 1
        index = self._count - 1
        return CallStart(index, name, self._make_call_id(name, index))

    def arguments(self, text: str) -> Parts:
        """Add to the arguments of the last call."""
        if text:
            yield ArgumentsPart(self._count - 1, text)

    def end(self) -> CallEnd:
        """End the last call."""
        return CallEnd(self._count - 1)


class CallReader(Protocol):
    """Parses the calls of one response."""

    @property
    def is_open(self) -> bool:
        """True if the next text is to be pushed, False if it is the response's."""
        ...

    @property
    def is_call(self) -> bool:
        """True inside calls: their text is none of the response's."""
        ...

    @property
    def is_in_arguments(self) -> bool:
        """True if the next text belongs to a call's arguments."""
        ...

    def push(self, piece: Piece) -> Parts:
        """Take a mark; or text, while open."""
        ...

    def finish(self, *, is_cut: bool) -> Parts:
        """End the response. is_cut: it has not come to its own end."""
        ...


State = Literal["closed", "ended", "stray", "section", "header", "form", "arguments", "held"]


class JsonCallReader:
    """Reads Kimi's and DeepSeek's calls: an id or a name, a separator, and JSON.

    Lenient: a section's marks may be missing, or texts in the singular ("stray"); a call ends with
    the next mark at the latest. With DeepSeek-V3's form, the name stands behind the separator.
    """

    def __init__(self, names: ToolNames, parts: CallParts) -> None:
        self._names = names
        self._parts = parts
        self._state: State = "closed"
        self._is_section = False  # a call's end is not followed by the response's text
        self._has_call = False  # in the section
        self._header = ""
        self._held: list[str] = []
        self._json = JsonArguments()
        self._has_arguments = False

    @property
    def is_open(self) -> bool:
        return self._state != "closed"

    @property
    def is_call(self) -> bool:
        return self._state not in ("closed", "ended", "stray")

    @property
    def is_in_arguments(self) -> bool:
        return self._state in ("form", "arguments", "held")

    def push(self, piece: Piece) -> Parts:
        if piece.mark is None:
            yield from self._text(piece.text)
        elif piece.mark == "arguments begin" and self._state in ("header", "section"):
            yield from self._begin_arguments()
        elif piece.mark.startswith("stray"):
            yield from self._stray(piece)
        else:
            yield from self._mark(piece.mark)

    def finish(self, *, is_cut: bool) -> Parts:
        if self._state == "header" and "{" not in self._header and not self._held:
            self._state = "closed"  # cut off before its name was complete
        yield from self._end_state()
        yield from self._end_section()
        self._state = "closed"

    def _mark(self, mark: str) -> Parts:
        is_call = self._state in ("header", "form", "arguments", "held")
        if not (self._state == "stray" and mark == "call begin"):
            yield from self._end_state()
        if mark == "section end":
            yield from self._end_section()
        self._held = []
        if mark == "call begin":
            self._state, self._header, self._has_call = "header", "", True
        elif mark in ("call end", "arguments begin"):
            if is_call:
                self._state = "section" if self._is_section else "ended"
        else:
            self._is_section, self._has_call = mark == "section begin", False
            self._state = "section" if self._is_section else "closed"

    def _stray(self, piece: Piece) -> Parts:
        """Take a section's mark that was written as text; only beside a call it is one."""
        if self.is_in_arguments or self._state == "header":
            yield from self._text(piece.text)
            return
        if piece.mark == "stray end" and self._state in ("ended", "section"):
            self._state, self._held, self._is_section = "closed", [], False
            return
        if self._state != "section":
            yield from self._end_state()
            self._state, self._held = "stray", [piece.text]

    def _text(self, text: str) -> Parts:
        if self._state in ("ended", "stray"):
            self._held.append(text)
            if text.strip():
                yield from self._end_state()
                self._state = "closed"
        elif self._state == "section":
            self._held.append(text)
        elif self._state == "header":
            self._read_header(text)
        elif self._state == "form":
            yield from self._read_form(text)
        elif self._state == "held":
            self._held.append(text)
        elif self._state == "arguments":
            yield from self._arguments(self._json.push(text))

    def _read_header(self, text: str) -> None:
        if self._held:  # arguments without their mark
            self._held.append(text)
            return
        self._header += text
        header, brace, rest = self._header.partition("{")
        if brace:
            self._header, self._held = header, [brace + rest]
        elif len(header) > MAX_ID_CHARS:
            self._header, self._held = "", [header]

    def _begin_arguments(self) -> Parts:
        if self._state == "section":  # the call's first mark is missing
            self._header, self._held, self._has_call = "".join(self._held), [], True
        name = None if self._held else self._names.resolve(self._header)
        if name is not None:
            yield from self._start(name)
        elif self._header.strip() == "function" and not self._held:
            self._state = "form"
        else:
            self._state = "held"

    def _read_form(self, text: str) -> Parts:
        """Read the name in DeepSeek-V3's form: the first line."""
        self._held.append(text)
        if "\n" not in text and len(self._held) < MAX_ID_CHARS:
            return
        first, _, rest = "".join(self._held).partition("\n")
        name = self._names.resolve(first)
        if name is None:
            self._state = "held"
            return
        self._held = []
        yield from self._start(name)
        yield from self._arguments(self._json.push(rest))

    def _start(self, name: str) -> Parts:
        self._state, self._json, self._has_arguments = "arguments", JsonArguments(), False
        yield self._parts.start(name)

    def _arguments(self, text: str) -> Parts:
        self._has_arguments |= bool(text)
        yield from self._parts.arguments(text)

    def _end_state(self) -> Parts:
        """End what the current state has begun. The caller changes the state."""
        if self._state in ("header", "form", "held"):
            yield from self._end_held()
        elif self._state == "arguments":
            yield from self._arguments(self._json.finish())
            if not self._has_arguments:
                yield from self._parts.arguments("{}")
            yield self._parts.end()
        elif self._state == "stray" or (self._state == "ended" and "".join(self._held).strip()):
            yield TextPart("".join(self._held))

    def _end_section(self) -> Parts:
        """Give the text of a section without a call."""
        text = "".join(self._held)
        if self._state == "section" and not self._has_call and text.strip():
            yield TextPart(text)

    def _end_held(self) -> Parts:
        """Resolve a call from its id and arguments together, or give it as text."""
        held = "".join(self._held)
        call = self._names.resolve_call(self._header, held)
        if call is not None:
            yield self._parts.start(call.name)
            yield from self._parts.arguments(call.arguments)
            yield self._parts.end()
        elif self._header + held:
            yield TextPart(self._header + held)
