"""Marks of tool calls, and which declared tool a call is of, however the model has written its id.

Kimi K2 (and DeepSeek, with other names for the same marks):

    <|tool_calls_section_begin|>
      <|tool_call_begin|>functions.NAME:N<|tool_call_argument_begin|>{JSON}<|tool_call_end|> ...
    <|tool_calls_section_end|>

Found by token id: the same names written out as text are text. Models are known to stray: the
singular section name, `functions_NAME_N`, `functionsNAMEN`, a bare number. Sources: Moonshot's
tool_call_guidance.md, DeepSeek's chat templates, and the reports of those who parsed both.
"""

import json
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

__all__ = [
    "ARGUMENTS_BEGIN",
    "CALL_BEGIN",
    "CALL_END",
    "MARKS",
    "SECTION_BEGIN",
    "SECTION_END",
    "Mark",
    "Resolved",
    "ToolNames",
    "strip_code_fence",
]

Mark = Literal["section begin", "section end", "call begin", "arguments begin", "call end"]

SECTION_BEGIN = (
    "<|tool_calls_section_begin|>", "<|tool_call_section_begin|>", "<｜tool▁calls▁begin｜>",
)  # fmt: skip
SECTION_END = (
    "<|tool_calls_section_end|>", "<|tool_call_section_end|>", "<｜tool▁calls▁end｜>",
)  # fmt: skip
CALL_BEGIN = ("<|tool_call_begin|>", "<｜tool▁call▁begin｜>")
ARGUMENTS_BEGIN = ("<|tool_call_argument_begin|>", "<｜tool▁sep｜>")
CALL_END = ("<|tool_call_end|>", "<｜tool▁call▁end｜>")

_BY_MARK: dict[Mark, tuple[str, ...]] = {
    "section begin": SECTION_BEGIN,
    "section end": SECTION_END,
    "call begin": CALL_BEGIN,
    "arguments begin": ARGUMENTS_BEGIN,
    "call end": CALL_END,
}
MARKS: dict[str, Mark] = {name: mark for mark, names in _BY_MARK.items() for name in names}

_PREFIX = re.compile(r"(?:functions?|tools?)[._:]", re.IGNORECASE)
_JOINED_PREFIX = re.compile(r"(?:functions?|tools?)[._:]|functions", re.IGNORECASE)
_NUMBER = re.compile(r"[:#]\d+$")
_JOINED_NUMBER = re.compile(r"[:#._-]?\d+$")
_NAMELESS = re.compile(r"\d*|function|(?:call|toolu)[_-]?(?=\w*\d)\w*")
_MAX_ID_CHARS = 1024  # the patterns take the square of it


class Resolved(NamedTuple):
    """A call of a declared tool."""

    name: str
    arguments: str


class ToolNames:
    """The tools that a conversation declares; without any, every name that reads like one."""

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        """tools: OpenAI's function declarations."""
        self._functions: dict[str, Mapping[str, Any]] = {
            tool["function"]["name"]: tool["function"] for tool in tools
        }

    def resolve(self, call_id: str) -> str | None:
        """The name in `functions.NAME:N` or what stands for it; None where there is none."""
        call_id = call_id.strip()
        if len(call_id) > _MAX_ID_CHARS:
            return None
        if not self._functions:
            return _name_in(call_id)
        readings = _readings(call_id)
        exact = next((name for name in readings if name in self._functions), None)
        if exact is not None:
            return exact
        numbered = [
            name
            for name in self._functions
            for reading in readings
            if reading.startswith(name) and _JOINED_NUMBER.fullmatch(reading[len(name) :])
        ]
        if numbered:
            return max(numbered, key=len)
        keys = {_key(text) for text in (*readings, *map(_unnumbered, readings)) if text}
        alike = [name for name in self._functions if _key(name) in keys]
        return alike[0] if len(alike) == 1 else None

    def resolve_call(self, call_id: str, arguments: str) -> Resolved | None:
        """The call, from its id and what follows: DeepSeek-V3 has its name there; or its schema."""
        name, arguments = self.resolve(call_id), strip_code_fence(arguments)
        if name is not None:
            return Resolved(name, arguments or "{}")
        if call_id.strip() == "function":
            first, _, rest = arguments.partition("\n")
            name = self.resolve(first)
            return None if name is None else Resolved(name, strip_code_fence(rest) or "{}")
        try:
            given = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
        fitting = [name for name, f in self._functions.items() if _fits(f, given)]
        return Resolved(fitting[0], arguments) if len(fitting) == 1 else None


def strip_code_fence(arguments: str) -> str:
    """Arguments without the code fence that some models write around them."""
    arguments = arguments.strip()
    if not arguments.startswith("```"):
        return arguments
    return arguments[3:].removesuffix("```").lstrip(string.ascii_letters).strip()


def _readings(call_id: str) -> list[str]:
    """Names that the id may stand for, the model's own form first."""
    unnumbered = _NUMBER.sub("", call_id)
    bare = _PREFIX.sub("", unnumbered, count=1) if _PREFIX.match(unnumbered) else unnumbered
    joined = _JOINED_PREFIX.match(unnumbered)
    rest = unnumbered[joined.end() :] if joined else unnumbered
    return [bare.strip(), unnumbered.strip(), call_id, rest]


def _unnumbered(text: str) -> str:
    return _JOINED_NUMBER.sub("", text)


def _name_in(call_id: str) -> str | None:
    """The likeliest name, where none are declared."""
    if _NAMELESS.fullmatch(call_id):
        return None
    readings = _readings(call_id)
    is_joined = not _NUMBER.search(call_id) and _JOINED_PREFIX.match(call_id)
    return (_unnumbered(readings[-1]) if is_joined else readings[0]) or None


def _key(name: str) -> str:
    """Key shared by names that differ in case and in their dots, lines and dashes."""
    return re.sub(r"[^0-9a-z]", "", name.lower()) or name


def _fits(function: Mapping[str, Any], arguments: Any) -> bool:
    """True where the arguments have all required names, and no other than the declared ones."""
    schema = function.get("parameters")
    if not isinstance(schema, Mapping) or not isinstance(arguments, dict):
        return False
    properties, required = schema.get("properties"), schema.get("required")
    declared = properties if isinstance(properties, Mapping) else {}
    needed = required if isinstance(required, list) else []
    return all(name in declared for name in arguments) and all(
        name in arguments for name in needed if isinstance(name, str)
    )
