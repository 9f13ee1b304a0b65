"""JSON arguments of one call, streamed: from JSON as models write it, or from XML values."""

import json
import string
from typing import Any

from hybridmoe.text.argument_types import ANY_TYPE, argument_types, properties_of, value_json

__all__ = ["JsonArguments", "XmlArguments", "strip_code_fence"]

_STRING = frozenset({"string"})


def strip_code_fence(arguments: str) -> str:
    """Remove the code fence that some models write around arguments."""
    arguments = arguments.strip()
    if not arguments.startswith("```"):
        return arguments
    return arguments[3:].removesuffix("```").lstrip(string.ascii_letters).strip()


class JsonArguments:
    """Passes JSON through, without the blanks and the code fence around it."""

    def __init__(self) -> None:
        self._start = ""  # a fence that is not complete
        self._tail: list[str] = []  # blanks and back quotes that may end the arguments
        self._is_fenced = False
        self._has_begun = False

    def push(self, text: str) -> str:
        """Add text. Returns what is certain to be arguments."""
        if not self._has_begun:
            self._start = (self._start + text).lstrip()
            if not self._start or self._is_open_fence():
                return ""
            text, self._start = self._start, ""
            if text.startswith("```"):
                self._is_fenced = True
                text = text[3:].lstrip(string.ascii_letters).lstrip()
            self._has_begun = True
        kept = text.rstrip(string.whitespace + "`") if self._is_fenced else text.rstrip()
        if not kept:
            self._tail.append(text)
            return ""
        out = "".join([*self._tail, kept])
        self._tail = [text[len(kept) :]]
        return out

    def finish(self) -> str:
        """Return the rest."""
        tail = (strip_code_fence(self._start) + "".join(self._tail)).rstrip()
        self._start, self._tail = "", []
        return tail.removesuffix("```").rstrip() if self._is_fenced else tail

    def _is_open_fence(self) -> bool:
        """True while more text may belong to the fence before the arguments."""
        fence = self._start[:3]
        if not "```".startswith(fence):
            return False
        rest = self._start[3:].lstrip(string.ascii_letters).lstrip()
        return not rest and len(self._start) < 256


class XmlArguments:
    """Writes a JSON object from names and values; strings as they are streamed."""

    def __init__(self, schema: Any) -> None:
        """schema: of the arguments, as the tool declares it."""
        self._schema = schema
        self._properties = properties_of(schema)
        self._count = 0
        self._types = ANY_TYPE
        self._is_text = False  # a string, written as it is
        self._is_json = False
        self._value: list[str] = []  # of another type

    @property
    def is_empty(self) -> bool:
        """True before the first value."""
        return self._count == 0

    def begin(self, name: str, is_string: bool | None = None) -> str:
        """Begin a value. is_string: as the model has marked it; None: it has not."""
        self._types = argument_types(self._schema, self._properties.get(name))
        self._is_json = is_string is False
        self._is_text = (
            self._types == _STRING if is_string is None else (is_string and "string" in self._types)
        )
        self._value = []
        head = f"{',' if self._count else '{'}{json.dumps(name, ensure_ascii=False)}:"
        self._count += 1
        return head + ('"' if self._is_text else "")

    def push(self, text: str) -> str:
        """Add text of the value."""
        if self._is_text:
            return json.dumps(text, ensure_ascii=False)[1:-1]
        self._value.append(text)
        return ""

    def end(self) -> str:
        """End the value."""
        if self._is_text:
            return '"'
        return value_json("".join(self._value), self._types, is_json=self._is_json)

    def finish(self) -> str:
        """End the object."""
        return "}" if self._count else "{}"
