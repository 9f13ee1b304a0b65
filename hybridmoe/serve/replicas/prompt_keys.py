"""Keys of a request's prompt: one digest for each message, of all up to its end.

Requests with a common key have a common beginning of their prompts, whatever the tokenizer.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from hybridmoe.serve.billing_header import without_billing_header

__all__ = ["prompt_keys"]

_HEAD = (
    "model", "instructions", "tools", "reasoning", "reasoning_effort", "thinking", "think",
    "chat_template_kwargs",
)  # fmt: skip
_SYSTEM = ("system", "developer")
_PROMPTS = ("messages", "input", "prompt")  # of the APIs
_BLOCK = 512  # characters or token ids, of a text that has no messages
_MOST_KEYS = 4096
_DIGEST_BYTES = 16


def prompt_keys(body: Mapping[str, Any]) -> list[bytes]:
    """Make the keys, the shortest beginning first: of all before the first message, then of each.

    Empty if the body has no prompt.
    """
    name = next((name for name in _PROMPTS if body.get(name)), None)
    if name is None:
        return []
    start: list[Any] = [{field: body[field] for field in _HEAD if field in body}]
    system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
    prompt = body[name]
    if isinstance(prompt, list) and all(isinstance(one, Mapping) for one in prompt):
        messages = without_billing_header([*system, *prompt])
        begin = next((i for i, m in enumerate(messages) if m.get("role") not in _SYSTEM), 0)
        start, pieces = start + messages[:begin], iter(messages[begin:])
    else:
        start, pieces = start + without_billing_header(system), _blocks(prompt)
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    keys = []
    for piece in (start, *islice(pieces, _MOST_KEYS - 1)):
        digest.update(json.dumps(_without_marks(piece), sort_keys=True).encode() + b"\n")
        keys.append(digest.digest())
    return keys


def _blocks(prompt: Any) -> Iterator[Any]:
    """Cut a text or token ids; a rest that is no whole block is left out."""
    if isinstance(prompt, list | str):
        for begin in range(0, len(prompt) - _BLOCK + 1, _BLOCK):
            yield prompt[begin : begin + _BLOCK]


def _without_marks(piece: Any) -> Any:
    """Leave out Anthropic's cache marks: clients move them to the newest messages."""
    if isinstance(piece, Mapping):
        return {k: _without_marks(v) for k, v in piece.items() if k != "cache_control"}
    if isinstance(piece, list) and not isinstance(next(iter(piece), None), int):
        return [_without_marks(one) for one in piece]
    return piece
