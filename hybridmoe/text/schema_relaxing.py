"""JSON schemas within what llguidance supports: other keywords are left out, one by one.

Schemas come from many tools (MCP servers, zod, pydantic), and some of their keywords have no
grammar: `not`, `if`, `contains`, `uniqueItems`, formats without a pattern, regular expressions that
look around. Each is left out where it stands, and its path noted; the rest of the schema holds.
"""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher

from hybridmoe.text.argument_types import TypeFinder, local_reference

__all__ = ["relax_schema"]

_LACKING = frozenset({
    "not", "if", "then", "else", "contains", "minContains", "maxContains", "propertyNames",
    "uniqueItems", "dependentRequired", "dependentSchemas", "dependencies",
    "unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef",
})  # fmt: skip
_NEUTRAL: Mapping[str, Any] = {"uniqueItems": False, "propertyNames": {"type": "string"}}
_TYPES = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_COMPILED = frozenset({"pattern", "format", "patternProperties"})
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties", "additionalItems")
_MAX_PATTERN_CHARS = 4096
_MAX_NOTES = 64
_MAX_NAME_CHARS = 64  # in a path
_MAX_TRIALS = 512  # compilations of a keyword alone, about 1 ms each


def relax_schema(schema: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Copy a schema without what is not supported. Returns it, and the paths left out.

    A schema that is nested too deep comes back as it is; compiling it tells so.
    """
    notes: list[str] = []
    try:
        return _Relaxer(schema, notes).relax(schema, "$"), notes
    except RecursionError:
        return dict(schema), []


class _Relaxer:
    def __init__(self, root: Mapping[str, Any], notes: list[str]) -> None:
        self._root = root
        self._notes = notes
        self._types = TypeFinder(root)
        self._num_trials = 0

    def relax(self, schema: Mapping[str, Any], path: str) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in _modern(schema).items():
            place = f"{path}.{key[:_MAX_NAME_CHARS]}"
            if key in _LACKING or not self._is_supported(schema, key, value):
                if _NEUTRAL.get(key, self) != value and value is not None:
                    self._note(place)
            elif key in _MAPS:
                out[key] = {
                    name: self._part(part, f"{place}.{name[:_MAX_NAME_CHARS]}")
                    for name, part in value.items()
                }
            elif key in _LISTS or (key == "items" and isinstance(value, list)):
                parts = [self._part(part, f"{place}[{i}]") for i, part in enumerate(value)]
                if key == "oneOf":
                    self._one_of(out, parts, place)
                else:
                    out[key] = parts + out.get(key, [])
            elif key in _SCHEMAS:
                out[key] = self._part(value, place)
            else:
                out[key] = value
        return out

    def _part(self, schema: Any, path: str) -> Any:
        if isinstance(schema, Mapping):
            return self.relax(schema, path)
        if isinstance(schema, bool):
            return schema
        self._note(path)
        return True

    def _note(self, path: str) -> None:
        if len(self._notes) < _MAX_NOTES:
            self._notes.append(path)

    def _one_of(self, out: dict[str, Any], parts: list[Any], place: str) -> None:
        """Put `anyOf` in place of `oneOf`: the same if no value fits two of them."""
        types = [self._types.types(part) for part in parts]
        if sum(map(len, types)) != len(frozenset().union(*types)) and not _has_tags(parts):
            self._note(place)
        out["allOf"] = [*out.get("allOf", []), {"anyOf": parts}]

    def _is_supported(self, schema: Mapping[str, Any], key: str, value: Any) -> bool:
        check = _CHECKS.get(key)
        if key in _COMPILED and isinstance(value, str | Mapping):
            self._num_trials += len(value) if isinstance(value, Mapping) else 1
            if self._num_trials > _MAX_TRIALS:  # compiling the whole tells
                return True
        if key == "$ref":
            return local_reference(self._root, value) is not None
        if key in ("minProperties", "maxProperties"):
            properties, required = schema.get("properties"), schema.get("required")
            names = set(properties) if isinstance(properties, Mapping) else set()
            needed = required if isinstance(required, list) else []
            return _is_count(value) and names <= {n for n in needed if isinstance(n, str)}
        return check is None or check(value)


def _modern(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Convert bounds of draft 4 (`exclusiveMinimum: true`) and whole numbers written as 1.0."""
    out = dict(schema)
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(out.get(exclusive), bool) and out.pop(exclusive) and bound in out:
            out[exclusive] = out.pop(bound)
    for key in _COUNTS:
        if isinstance(out.get(key), float) and out[key].is_integer():
            out[key] = int(out[key])
    if "prefixItems" not in out and isinstance(out.get("items"), list):
        out["prefixItems"] = out.pop("items")
        if "additionalItems" in out:
            out["items"] = out.pop("additionalItems")
    return out


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_bound(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list) and value else [value]
    return all(isinstance(name, str) and name in _TYPES for name in names)


def _is_map(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _is_filled(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_pattern(value: Any) -> bool:
    return isinstance(value, str) and (
        len(value) > _MAX_PATTERN_CHARS or _compiles("pattern", value)
    )


def _is_format(value: Any) -> bool:
    return isinstance(value, str) and len(value) < 64 and _compiles("format", value)


@lru_cache(maxsize=256)
def _compiles(keyword: str, value: str) -> bool:
    schema = {"type": "string", keyword: value}
    grammar = json.dumps({"grammars": [{"json_schema": schema}]})
    try:
        return not LLMatcher.validate_grammar(grammar)
    except Exception:  # llguidance can raise anything
        return False


def _has_tags(parts: list[Any]) -> bool:
    """Test whether one property tells alternatives apart by its constant."""
    tags: dict[str, list[str]] = {}
    for part in filter(_is_map, parts):
        required = frozenset(part.get("required", ()))
        for name, property in part.get("properties", {}).items():
            value = property.get("const") if isinstance(property, Mapping) else None
            if isinstance(value, str) and name in required:
                tags.setdefault(name, []).append(value)
    return any(len(set(values)) == len(parts) for values in tags.values())


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "type": _is_type,
    "pattern": _is_pattern,
    "format": _is_format,
    "required": _is_list_of_names,
    "enum": _is_filled,
    "multipleOf": lambda value: _is_bound(value) and value > 0,
    "patternProperties": lambda value: _is_map(value) and all(map(_is_pattern, value)),
    "items": lambda value: isinstance(value, Mapping | list | bool),
    "additionalProperties": lambda value: isinstance(value, Mapping | bool),
    "additionalItems": lambda value: isinstance(value, Mapping | bool),
    **dict.fromkeys(_COUNTS, _is_count),
    **dict.fromkeys(_BOUNDS, _is_bound),
    **dict.fromkeys(("properties", "$defs", "definitions"), _is_map),
    **dict.fromkeys(_LISTS, _is_filled),
}
