"""Streaming parser of XML tool calls: GLM's, and DeepSeek-V3.2's (DSML).

    <tool_call>NAME<arg_key>city</arg_key><arg_value>Oslo</arg_value></tool_call>

    <｜DSML｜function_calls>
    <｜DSML｜invoke name="NAME">
    <｜DSML｜parameter name="city" string="true">Oslo</｜DSML｜parameter>
    </｜DSML｜invoke>
    </｜DSML｜function_calls>

Values become a JSON object by the tool's schema. Both families also write the object itself in
place of the values. Sources: GLM's chat templates, DeepSeek-V3.2's encoding.
"""

import json
import re
from typing import Any, Literal, Protocol

from hybridmoe.text.call_arguments import JsonArguments, XmlArguments
from hybridmoe.text.call_reader import CallParts, Parts
from hybridmoe.text.mark_scanner import Piece
from hybridmoe.text.response_parts import ArgumentsPart, TextPart
from hybridmoe.text.tool_names import MAX_ID_CHARS, ToolNames

__all__ = ["XmlCallReader"]

State = Literal["closed", "ended", "section", "header", "body", "json", "tag", "key", "value"]

_NAME = re.compile(r"""name\s*=\s*(?:"([^"]*)"|'([^']*)')""")
_IS_STRING = re.compile(r"""string\s*=\s*["'](true|false)["']""", re.IGNORECASE)

_ENDS = ("value end", "call end", "section end")  # marks that count in a value


class Names(Protocol):
    """The part of `ToolNames` that a reader needs."""

    def resolve(self, call_id: str) -> str | None: ...
    def schema(self, name: str) -> Any: ...


class XmlCallReader:
    """Reads calls of one response.

    Marks: "section begin", "section end", "call begin", "call end", "key begin", "key end",
    "value begin", "value end"; with tags (DSML), a call and a value begin with attributes up to
    ">". All but "call begin" may be missing; of a value, only at the end of its call.
    """

    def __init__(self, names: ToolNames, parts: CallParts, *, has_tags: bool) -> None:
        self._tools = names
        self._names: Names = names
        self._parts = parts
        self._has_tags = has_tags
        self._state: State = "closed"
        self._is_section = False
        self._written: list[str] = []  # name, attributes, or key, as far as it is written
        self._begin = Piece("")  # mark of the call
        self._record: list[Piece] | None = None  # of a call whose tool is unknown
        self._key = ""
        self._values = XmlArguments({})
        self._json = JsonArguments()
        self._blanks: list[str] = []  # behind a call

    @property
    def is_open(self) -> bool:
        return self._state != "closed"

    @property
    def is_call(self) -> bool:
        return self._state not in ("closed", "ended")

    @property
    def is_in_arguments(self) -> bool:
        return self._state in ("value", "json", "key") or self._record is not None

    def push(self, piece: Piece) -> Parts:
        if self._record is not None and piece.mark not in ("call begin", "section end"):
            self._record.append(piece)
            if piece.mark == "call end":
                yield from self._end_call()
        elif piece.mark is None or (self._state == "value" and piece.mark not in _ENDS):
            yield from self._text(piece.text)
        else:
            yield from self._mark(piece)

    def finish(self, *, is_cut: bool) -> Parts:
        if self._state == "value" or (is_cut and self._state in ("body", "key", "tag", "json")):
            if self._state == "json":
                yield from self._parts.arguments(self._json.finish())
            yield self._parts.end() if self._record is None else TextPart(self._recorded())
        elif not (is_cut and self._state == "header"):
            yield from self._end_call()
        self._state, self._record = "closed", None

    def _mark(self, piece: Piece) -> Parts:
        match piece.mark:
            case "call begin":
                yield from self._end_call()
                self._state, self._written, self._begin = "header", [], piece
            case "call end":
                yield from self._end_call()
            case "section begin" | "section end":
                yield from self._end_call()
                self._is_section = piece.mark == "section begin"
                self._state = "section" if self._is_section else "closed"
            case "key begin":
                yield from self._end_header()
                if self._record is not None:
                    self._record.append(piece)
                elif self._state == "body":
                    self._state, self._written = "key", []
            case "value begin" if self._has_tags:
                if self._state == "body":
                    self._state, self._written = "tag", []
            case "key end" | "value begin":
                if self._state == "key":
                    self._key, self._state = "".join(self._written).strip(), "body"
                if piece.mark == "value begin" and self._state == "body":
                    yield from self._begin_value(self._key, None)
            case "value end" if self._state == "value":
                yield from self._parts.arguments(self._values.end())
                self._state = "body"

    def _text(self, text: str) -> Parts:
        match self._state:
            case "value":
                yield from self._parts.arguments(self._values.push(text))
            case "json":
                yield from self._parts.arguments(self._json.push(text))
            case "key":
                self._written.append(text)
            case "header" | "tag":
                self._written.append(text)
                yield from self._read_header(text)
            case "body" if self._values.is_empty and text.lstrip().startswith("{"):
                self._state, self._json = "json", JsonArguments()
                yield from self._parts.arguments(self._json.push(text))
            case "ended":
                self._blanks.append(text)
                if text.strip():
                    yield from self._end_blanks()
                    self._state = "closed"

    def _read_header(self, text: str) -> Parts:
        """Look for the end of what is written: of a tag ">", of a name a new line or object."""
        if self._has_tags:
            if ">" in text:
                tag, _, rest = "".join(self._written).partition(">")
                yield from self._end_tag(tag)
                if rest:
                    yield from self.push(Piece(rest))
        elif "\n" in text or "{" in text or len(self._written) > MAX_ID_CHARS:
            written = "".join(self._written).lstrip()
            end = re.search(r"[\n{]", written)
            if end is not None or len(written) > MAX_ID_CHARS:
                at = end.start() if end else len(written)
                self._written = [written[:at]]
                yield from self._end_header()
                yield from self.push(Piece(written[at:]))

    def _end_tag(self, tag: str) -> Parts:
        """Take a tag's attributes: those of a call, or of a value."""
        if self._state == "header":
            self._written = [tag, ">"]
            yield from self._end_header()
        else:
            kind = _IS_STRING.search(tag)
            is_string = kind[1].lower() == "true" if kind else None
            yield from self._begin_value(_attribute(tag), is_string)
        if tag.endswith("/"):
            mark = "call end" if self._state == "body" else "value end"
            yield from self.push(Piece("", mark))

    def _end_header(self) -> Parts:
        """Resolve the tool, and start the call; without a tool, begin a record."""
        if self._state != "header":
            return
        written = "".join(self._written)
        name = self._names.resolve(_attribute(written) if self._has_tags else written)
        self._state, self._values = "body", XmlArguments({})
        if name is None:
            self._record = [self._begin, Piece(written)]
        else:
            self._values = XmlArguments(self._names.schema(name))
            yield self._parts.start(name)

    def _begin_value(self, name: str, is_string: bool | None) -> Parts:
        yield from self._parts.arguments(self._values.begin(name, is_string))
        self._state = "value"

    def _end_call(self) -> Parts:
        """End the call under way, if any, or the blanks behind the last one."""
        yield from self._end_blanks()
        yield from self._end_header()
        if self._record is not None:
            yield from self._end_unknown()
        elif self._state == "json":
            yield from self._parts.arguments(self._json.finish())
            yield self._parts.end()
        elif self._state in ("body", "key", "tag", "value"):
            if self._state == "value":
                yield from self._parts.arguments(self._values.end())
            yield from self._parts.arguments(self._values.finish())
            yield self._parts.end()
        self._state = "section" if self._is_section else "ended"

    def _end_unknown(self) -> Parts:
        """Resolve a call by its arguments, or give it as text."""
        assert self._record is not None
        record, self._record = self._record, None
        header = record[1].text
        try:
            given = json.loads(self._replay(record, {}))
        except (ValueError, RecursionError):
            given = None
        call_id = _attribute(header) if self._has_tags else header.strip()
        name = self._tools.resolve_arguments(call_id, given) if call_id or given else None
        if name is None:
            yield TextPart("".join(piece.text for piece in record))
            return
        yield self._parts.start(name)
        yield from self._parts.arguments(self._replay(record, self._tools.schema(name)))
        yield self._parts.end()

    def _replay(self, record: list[Piece], schema: Any) -> str:
        """Read the arguments of a recorded call, as a tool's with this schema."""
        parts = CallParts(lambda name, index: "")
        reader = XmlCallReader(self._tools, parts, has_tags=self._has_tags)
        reader._names = _OneTool(schema)
        out = [part for piece in record for part in reader.push(piece)]
        out += reader.finish(is_cut=False)
        return "".join(part.text for part in out if isinstance(part, ArgumentsPart))

    def _recorded(self) -> str:
        return "".join(piece.text for piece in self._record or ())

    def _end_blanks(self) -> Parts:
        text, self._blanks = "".join(self._blanks), []
        if text.strip():
            yield TextPart(text)


class _OneTool:
    """Names that all stand for one tool."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema

    def resolve(self, call_id: str) -> str | None:
        return "tool"

    def schema(self, name: str) -> Any:
        return self._schema


def _attribute(tag: str) -> str:
    """The attribute `name`; "" without it."""
    match = _NAME.search(tag)
    return (match[1] or match[2] or "") if match else ""
