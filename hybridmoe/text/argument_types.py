"""Types of a tool's arguments by its schema, for calls that write values as text (XML).

A string is its own text, and any other value is JSON. Where the schema allows both, JSON of an
allowed type counts as such, and all else as a string. A value that is neither becomes a string.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = [
    "ANY_TYPE", "TypeFinder", "argument_types", "local_reference", "properties_of", "value_json",
]  # fmt: skip

ANY_TYPE = frozenset({"string", "number", "boolean", "object", "array", "null"})
_NAMES = {"integer": "number"} | {name: name for name in ANY_TYPE}
_MAX_PARTS = 256  # of one object's schema
_MAX_DEPTH = 64  # of references and alternatives, within the limit of recursion
_PYTHON = {"True": "true", "False": "false", "None": "null"}


def properties_of(schema: Any) -> dict[str, Any]:
    """Collect the properties of an object's schema, also of its references and alternatives."""
    out: dict[str, Any] = {}
    for part in _parts(schema):
        properties = part.get("properties")
        if isinstance(properties, Mapping):
            for name, inner in properties.items():
                out.setdefault(name, inner)
    return out


def argument_types(root: Any, schema: Any) -> frozenset[str]:
    """Find the JSON types that a schema allows. root: what its references are relative to."""
    return TypeFinder(root).types(schema)


def value_json(text: str, types: frozenset[str], *, is_json: bool = False) -> str:
    """Convert a value to JSON of one of these types, if it can be read so.

    is_json: the model has marked the value as JSON, also if it is a string.
    """
    stripped = text.strip()
    stripped = _PYTHON.get(stripped, stripped)
    try:
        value = json.loads(stripped, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    may_be_text = "string" in types and types != ANY_TYPE and not is_json
    if isinstance(value, str) and "string" not in types:  # "5" for 5
        inner = value_json(value, types)
        return stripped if inner.startswith('"') else inner
    is_allowed = _json_type(value) in types and not (may_be_text and isinstance(value, str))
    if is_allowed or "string" not in types:
        return stripped
    return json.dumps(text, ensure_ascii=False)


def local_reference(root: Any, reference: Any) -> Any:
    """Look up `#/...`; None if it has no target."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    node = root
    for step in reference[1:].split("/")[1:]:
        if not isinstance(node, Mapping):
            return None
        node = node.get(step.replace("~1", "/").replace("~0", "~"))
    return node


class TypeFinder:
    """Finds the JSON types of a root's schemas, which may be cyclic; reads each once."""

    def __init__(self, root: Any) -> None:
        """root: what references are relative to."""
        self._root = root
        self._depth = 0
        # By identity, with the schema, which keeps it; those under way allow any type.
        self._known: dict[int, tuple[Any, frozenset[str]]] = {}

    def types(self, schema: Any) -> frozenset[str]:
        """Find the types that a schema allows."""
        if not isinstance(schema, Mapping) or self._depth == _MAX_DEPTH:
            return ANY_TYPE
        if id(schema) not in self._known:
            self._known[id(schema)] = (schema, ANY_TYPE)
            self._depth += 1
            self._known[id(schema)] = (schema, self._read(schema))
            self._depth -= 1
        return self._known[id(schema)][1]

    def _read(self, schema: Mapping[str, Any]) -> frozenset[str]:
        types = _declared(schema)
        target = _target(self._root, schema)
        if target is not None:
            types &= self.types(target)
        for key in ("anyOf", "oneOf"):
            parts = _listed(schema, key)
            if parts:
                types &= frozenset().union(*map(self.types, parts))
        for part in _listed(schema, "allOf"):
            types &= self.types(part)
        return types


def _parts(root: Any) -> Iterator[Mapping[str, Any]]:
    """Iterate over a schema and all that it is made of: references and alternatives."""
    waiting, seen = [root], set[int]()
    while waiting and len(seen) < _MAX_PARTS:
        part = waiting.pop()
        if isinstance(part, Mapping) and id(part) not in seen:
            seen.add(id(part))
            yield part
            waiting += [*_listed(part, "oneOf", "anyOf", "allOf"), _target(root, part)]


def _target(root: Any, schema: Mapping[str, Any]) -> Any:
    return local_reference(root, schema["$ref"]) if "$ref" in schema else None


def _listed(schema: Mapping[str, Any], *keys: str) -> list[Any]:
    lists = (schema.get(key) for key in keys)
    return [part for parts in lists if isinstance(parts, list) for part in parts]


def _declared(schema: Mapping[str, Any]) -> frozenset[str]:
    if "const" in schema:
        return frozenset({_json_type(schema["const"])})
    values = schema.get("enum")
    if isinstance(values, list) and values:
        return frozenset(map(_json_type, values))
    given = schema.get("type")
    names = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    types = {_NAMES[name] for name in names if isinstance(name, str) and name in _NAMES}
    if schema.get("nullable") is True and types:
        types.add("null")
    if not types and "properties" in schema:
        return frozenset({"object"})
    return frozenset(types) or ANY_TYPE


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "object" if isinstance(value, Mapping) else "array"


def _refuse(constant: str) -> None:
    raise ValueError(constant)
