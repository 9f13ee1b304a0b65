"""Removal of Claude Code's billing header from prompts.

It is the first block of the system text, or its first line where a proxy joined the blocks, and it
has a number (`cch=`) that changes with every request: behind it nothing would ever be found in the
prefix cache. Models have no use for it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["is_billing_header", "without_billing_header"]

_PREFIX = "x-anthropic-"
# Its "key=value;" pairs, and the end of the line; a text may follow without a space.
_HEADER = re.compile(
    r"\A\s*x-anthropic-billing-header:(?:[ \t]*[\w-]+=[^;\s]*(?:;|(?=\s|\Z)))*[ \t]*(?:\r?\n)*"
)


def is_billing_header(text: str | None) -> bool:
    """Test whether a block of text is such a header."""
    return (text or "").lstrip().startswith(_PREFIX)


def without_billing_header(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Remove the header from the system messages that a conversation begins with.

    messages: as clients send them, in OpenAI's form. They are not changed.
    """
    out: list[Mapping[str, Any]] = []
    for index, message in enumerate(messages):
        if message.get("role") not in ("system", "developer"):
            return [*out, *messages[index:]]
        content = message.get("content")
        kept = _kept(content)
        if kept or kept == content:
            out.append(message if kept == content else {**message, "content": kept})
    return out


def _kept(content: Any) -> Any:
    """Content without the header."""
    if isinstance(content, str):
        return _HEADER.sub("", content)
    if isinstance(content, list):
        return [part for part in content if not _is_header_part(part)]
    return content


def _is_header_part(part: Any) -> bool:
    text = part.get("text") if isinstance(part, Mapping) else None
    return isinstance(text, str) and is_billing_header(text)
