"""Errors of tools' schemas, by tool and path: found by compiling parts of them alone."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hybridmoe.errors import ConfigError
from hybridmoe.text.schema_relaxing import relax_schema

__all__ = ["locate_error"]

Compile = Callable[[dict[str, Any]], None]

_MAX_TRIALS = 64
_LIMITS = re.compile(r"nested|takes longer|needs more|more than")
_PLACE = re.compile(r"^.*failed to compile JSON schema: |^at \d+\(\d+\): ")  # in a grammar


def locate_error(
    functions: Sequence[Mapping[str, Any]], error: ConfigError, compile: Compile
) -> ConfigError:
    """Name the tool whose schema is at fault, and the path of the smallest part that is.

    compile: of a schema; raises ConfigError. Errors that are limits come back as they are.
    """
    if _LIMITS.search(str(error)):
        return error
    trials = iter(range(_MAX_TRIALS))

    def fault(schema: Mapping[str, Any]) -> str | None:
        if next(trials, None) is None:
            return None
        try:
            compile(dict(schema))
        except ConfigError as found:
            return str(found)
        return None

    for function in functions:
        given = {"type": "object", **(function.get("parameters") or {})}
        schema: Mapping[str, Any] = relax_schema(given)[0]
        if (message := fault(schema)) is not None:
            path, inner = "$", True
            names = ("$defs", "definitions")
            definitions: dict[str, Any] = {key: schema[key] for key in names if key in schema}
            while inner:
                inner = False
                for step, part in _parts(schema):
                    found = fault({**definitions, **part})
                    if found is not None:
                        path, schema, message, inner = path + step, part, found, True
                        break
            return ConfigError(f"tools: {function['name']}: {path}: {_PLACE.sub('', message)}")
    return ConfigError("tools: " + _PLACE.sub("", str(error).removeprefix("tools: ")))


def _parts(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Iterate over the schemas directly in a schema, with their paths."""
    for key in ("properties", "patternProperties", "$defs", "definitions"):
        for name, part in schema.get(key, {}).items():
            if isinstance(part, Mapping):
                yield f".{key}.{name}", part
    for key in ("allOf", "anyOf", "prefixItems"):
        for i, part in enumerate(schema.get(key, [])):
            if isinstance(part, Mapping):
                yield f".{key}[{i}]", part
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), Mapping):
            yield f".{key}", schema[key]
