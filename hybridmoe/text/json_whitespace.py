"""White space of JSON under a constraint: at most one space behind `,` and `:`, none elsewhere.

A small model that may write any white space fills its output with it. This style admits the JSON
that models are trained on: Python's `json.dumps` with its default and its compact separators.
llguidance reads it from `x-guidance`, for a schema as a whole.
"""

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

__all__ = ["set_json_whitespace", "set_lark_whitespace"]

_WHITESPACE: "JsonCompileOptions" = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
}
_LENIENT: "JsonCompileOptions" = {"lenient": True, "coerce_one_of": True}
# `%json`, or a token of llguidance's Lark that may contain these characters.
_LARK_TOKENS = re.compile(
    r"""(?://|\#)[^\n]*+ | "(?:\\.|[^"\\])*+" | /(?:\\.|[^/\\])++/ | <[^<>\s]++> | %json\s*+""",
    re.VERBOSE | re.DOTALL,
)


def set_json_whitespace(schema: Mapping[str, Any], *, is_strict: bool = True) -> dict[str, Any]:
    """Copy a schema with the white space options replaced.

    is_strict: unsupported keywords are errors; else they are ignored.
    """
    given = schema.get("x-guidance")
    options = dict(given) if isinstance(given, Mapping) else {}
    options.pop("whitespace_pattern", None)  # would override whitespace_flexible
    lenient = {} if is_strict else _LENIENT
    return {**schema, "x-guidance": {**options, **_WHITESPACE, **lenient}}


def set_lark_whitespace(text: str) -> str:
    """Set the white space of every `%json` schema in a Lark grammar; malformed ones are kept."""
    decoder = json.JSONDecoder()
    parts, start, at = [], 0, 0
    while match := _LARK_TOKENS.search(text, at):
        at = match.end()
        if not match.group().startswith("%json"):
            continue
        try:
            schema, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            continue
        if schema is True:
            schema = {}
        if isinstance(schema, dict):
            parts += [text[start:at], json.dumps(set_json_whitespace(schema))]
            start = at = end
    return "".join([*parts, text[start:]])
