"""Resolves the tool that a call names, also where the model strays from its format.

Models are known to write `functions_NAME_N`, `functionsNAMEN` or a bare number in place of
`functions.NAME:N`. Sources: Moonshot's tool_call_guidance.md, DeepSeek's chat templates, and
reports of other parsers' authors.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hybridmoe.text.argument_types import properties_of
from hybridmoe.text.call_arguments import strip_code_fence

__all__ = ["MAX_ID_CHARS", "ResolvedCall", "ToolNames"]

_PREFIX = re.compile(r"(?:functions?|tools?)[._:]", re.IGNORECASE)
_JOINED_PREFIX = re.compile(r"(?:functions?|tools?)[._:]|functions", re.IGNORECASE)
_NUMBER = re.compile(r"[:#]\d+$")
_JOINED_NUMBER = re.compile(r"[:#._-]?\d+$")
_NAMELESS = re.compile(r"\d*|function|(?:call|toolu)[_-]?(?=\w*\d)\w*")
MAX_ID_CHARS = 1024  # the patterns are quadratic


class ResolvedCall(NamedTuple):
    """Name and arguments of a call of a declared tool."""

    name: str
    arguments: str


class ToolNames:
    """The declared tools; without any, all plausible names are accepted."""

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        """tools: OpenAI's function declarations."""
        self._functions: dict[str, Mapping[str, Any]] = {
            tool["function"]["name"]: tool["function"] for tool in tools
        }

    def resolve(self, call_id: str) -> str | None:
        """Resolve `functions.NAME:N`, or a variant of it, to a name, or None."""
        call_id = call_id.strip()
        if len(call_id) > MAX_ID_CHARS:
            return None
        if not self._functions:
            return _guess_name(call_id)
        readings = _readings(call_id)
        exact = next((name for name in readings if name in self._functions), None)
        if exact is not None:
            return exact
        numbered = [  # NAME followed by a number in any form
            name
            for name in self._functions
            for reading in readings
            if reading.startswith(name) and _JOINED_NUMBER.fullmatch(reading[len(name) :])
        ]
        if numbered:
            return max(numbered, key=len)
        keys = {_key(text) for text in (*readings, *map(_unnumbered, readings)) if text}
        similar = [name for name in self._functions if _key(name) in keys]
        return similar[0] if len(similar) == 1 else None

    def resolve_call(self, call_id: str, arguments: str) -> ResolvedCall | None:
        """Resolve a call without a name in its id: by DeepSeek-V3's format, or by the schemas."""
        name, arguments = self.resolve(call_id), strip_code_fence(arguments)
        if name is not None:
            return ResolvedCall(name, arguments or "{}")
        if call_id.strip() == "function":
            first, _, rest = arguments.partition("\n")
            name = self.resolve(first)
            return None if name is None else ResolvedCall(name, strip_code_fence(rest) or "{}")
        if not (call_id.strip() or arguments):
            return None
        try:
            given = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return None
        found = self.resolve_arguments(call_id, given)
        return None if found is None else ResolvedCall(found, arguments or "{}")

    def resolve_arguments(self, call_id: str, arguments: Any) -> str | None:
        """Resolve a call by its arguments: to the one tool whose schema they fit.

        With a name in its id, only to a tool with a similar name: another one was not meant.
        Without, also to the tool that they fit best, or that is the only one.
        """
        if not isinstance(arguments, dict):
            return None
        written = call_id.strip()[:MAX_ID_CHARS]
        is_nameless = _NAMELESS.fullmatch(written) is not None
        fitting = [
            name
            for name, function in self._functions.items()
            if (is_nameless or _is_similar(written, name)) and _misfit(function, arguments) == 0
        ]
        if len(fitting) == 1 or not is_nameless:
            return fitting[0] if len(fitting) == 1 else None
        if len(self._functions) == 1:
            return next(iter(self._functions))
        ranks = {name: _rank(f, arguments) for name, f in self._functions.items()}
        highest = max(ranks.values(), default=None)
        best = [name for name, rank in ranks.items() if rank == highest]
        return best[0] if len(best) == 1 and ranks[best[0]][0] > 0 else None

    def schema(self, name: str) -> Any:
        """The schema of a tool's arguments; an empty one if it has none."""
        return self._functions.get(name, {}).get("parameters") or {}


def _readings(call_id: str) -> list[str]:
    """List the names that an id may stand for, the documented form first."""
    unnumbered = _NUMBER.sub("", call_id)
    bare = _PREFIX.sub("", unnumbered, count=1) if _PREFIX.match(unnumbered) else unnumbered
    joined = _JOINED_PREFIX.match(unnumbered)
    rest = unnumbered[joined.end() :] if joined else unnumbered
    return [bare.strip(), unnumbered.strip(), call_id, rest]


def _unnumbered(text: str) -> str:
    return _JOINED_NUMBER.sub("", text)


def _guess_name(call_id: str) -> str | None:
    """Guess the name if no tools are declared."""
    if _NAMELESS.fullmatch(call_id):
        return None
    readings = _readings(call_id)
    is_joined = not _NUMBER.search(call_id) and _JOINED_PREFIX.match(call_id)
    return (_unnumbered(readings[-1]) if is_joined else readings[0]) or None


def _key(name: str) -> str:
    """Normalize a name: lower case, letters and digits only."""
    return re.sub(r"[^0-9a-z]", "", name.lower()) or name


def _is_similar(call_id: str, name: str) -> bool:
    """Test whether one name contains the other."""
    own = _key(name)
    readings = (_key(_unnumbered(text)) for text in _readings(call_id) if text)
    return any(own in text or text in own for text in readings)


def _misfit(function: Mapping[str, Any], arguments: Mapping[str, Any]) -> int:
    """Count required arguments that lack, and arguments that are not declared."""
    schema = function.get("parameters")
    required = schema.get("required") if isinstance(schema, Mapping) else None
    declared = properties_of(schema)
    needed = required if isinstance(required, list) else ()
    num_lacking = sum(isinstance(name, str) and name not in arguments for name in needed)
    return num_lacking + sum(name not in declared for name in arguments)


def _rank(function: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[int, int]:
    """Rank how well arguments fit: declared ones less all that does not fit; then few others."""
    declared = properties_of(function.get("parameters"))
    num_declared = sum(name in declared for name in arguments)
    return num_declared - _misfit(function, arguments), num_declared - len(declared)
