"""Work of hosted tools in a conversation's history (searches, code that ran), as text.

This server runs no such tools. What another one has done stays readable for the model.
"""

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["hosted_text"]

# Of no use to a model: ids, states, and encrypted or binary data.
_HIDDEN = {
    "type", "id", "call_id", "tool_use_id", "status", "caller", "signature", "cache_control",
    "encrypted_content", "encrypted_index", "encrypted_stdout", "encrypted_code", "data", "result",
    "image_url", "fingerprint",
}  # fmt: skip


def hosted_text(item: Mapping[str, Any]) -> str:
    """Write a call of a hosted tool, or its result, in a line: `[TYPE {"query":"..."}]`."""
    shown = _shown(item)
    details = " " + json.dumps(shown, ensure_ascii=False, separators=(",", ":")) if shown else ""
    return f"[{item.get('type', 'call')!s:.60}{details}]"


def _shown(value: Any) -> Any:
    if isinstance(value, Mapping):
        shown = {key: _shown(one) for key, one in value.items() if key not in _HIDDEN}
        return {key: one for key, one in shown.items() if one not in (None, "", [], {})}
    return [_shown(one) for one in value] if isinstance(value, list) else value
