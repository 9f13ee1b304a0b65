"""Validation errors in one line: the field, what it should be, and what it is."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError

from hybridmoe.serve.errors import ApiError

__all__ = ["validation_error"]

_SHOULD_BE = "Input should be "


def validation_error(error: RequestValidationError) -> ApiError:
    """Report the deepest of several errors, with its place in the body.

    For a field of several types, the errors of the types not meant end at the field itself.
    """
    found = error.errors()
    first = found[0]
    if first.get("type") == "json_invalid":
        reason = (first.get("ctx") or {}).get("error", "")
        return ApiError(400, f"the body is not JSON: {reason}"[:200])
    deepest = max((_place(one) for one in found), key=len)
    param = _dotted(deepest)[:100] or None
    here = [one for one in found if _place(one) == deepest]
    given = here[0].get("input")
    got = f"; got {given!r:.60}" if isinstance(given, str | int | float) else ""
    return ApiError(400, f"{param or 'body'}: {_message(here)[:400]}{got}", param=param)


def _message(errors: Sequence[Mapping[str, Any]]) -> str:
    """Write the errors of one value, of which each is of another type that it may have."""
    meant = [one for one in errors if not str(one.get("type", "")).endswith("_type")]
    if meant:
        return _text(meant[0])
    texts = list(dict.fromkeys(_text(one) for one in errors))
    if not all(text.startswith(_SHOULD_BE) for text in texts):
        return texts[0]
    return _SHOULD_BE + " or ".join(text.removeprefix(_SHOULD_BE) for text in texts)


def _text(error: Mapping[str, Any]) -> str:
    text = str(error.get("msg", "not valid")).removeprefix("Value error, ")
    return re.sub(r"a valid dictionary( or instance of \w+)?", "an object", text)


def _place(error: Mapping[str, Any]) -> list[int | str]:
    return [part for part in error.get("loc", ())[1:] if isinstance(part, int) or _is_field(part)]


def _dotted(place: Sequence[int | str]) -> str:
    out = ""
    for part in place:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else part
    return out


def _is_field(part: str) -> bool:
    """Tell fields from types that were tried, which places name too (`list[int]`, `NamedTool`)."""
    is_type = part in ("str", "int", "float", "bool", "dict")
    return part.isidentifier() and part.islower() and not is_type
