"""JSON encoding of all responses and events."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

__all__ = ["CompactJSONResponse", "encode_json"]

# Line separators of Unicode, at which some clients (httpx) split an event in two.
_LINE_SEPARATORS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}


def encode_json(value: Any) -> bytes:
    """Encode as compact UTF-8. A lone surrogate, which UTF-8 cannot hold, becomes "?"."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if not text.isascii():
        text = text.translate(_LINE_SEPARATORS)
    return text.encode("utf-8", "replace")


class CompactJSONResponse(JSONResponse):
    """`JSONResponse` with this module's encoding."""

    def __init__(
        self, content: Any, status_code: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(content, status_code, headers)

    def render(self, content: Any) -> bytes:
        return encode_json(content)
