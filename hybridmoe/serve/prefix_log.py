"""Report of how much of each prompt was in the prefix cache, and where it differs from the last.

For people who look for what keeps an agent's prompts from being reused. A line shows a few tokens
of text around the first difference, so it is off unless asked for.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybridmoe.serve.generation import Generation
from hybridmoe.text.tokenizer import Tokenizer

__all__ = ["PrefixLog"]

_MOST_REQUESTS = 32  # of each model to compare with
_MOST_TOKENS = 1 << 21  # of these, at 4 bytes
_TOKENS_BEFORE, _TOKENS_AFTER = 4, 3  # of text around a difference
_MOST_CHARS = 60  # of each piece


@dataclass(frozen=True, slots=True)
class _Past:
    """Prompt of an earlier request and its response."""

    request: str
    ids: NDArray[np.int32]


class PrefixLog:
    """Compares prompts with those of requests that have ended. Used from the event loop."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """say: gets each line."""
        self._say = say
        self._past: dict[str, deque[_Past]] = {}  # by model

    def report(self, request: str, generation: Generation) -> None:
        """Report the prompts of a generation that has ended, and remember them."""
        step = generation.request.choices_per_prompt
        for index, prompt in enumerate(generation.request.prompts):
            choices = generation.choices[index * step : (index + 1) * step]
            usage = choices[0].usage or choices[0].last_usage
            if usage is None:  # it failed before its prompt was read
                continue
            past = self._past.setdefault(generation.model_name, deque(maxlen=_MOST_REQUESTS))
            found = f"{usage.cached_tokens} of {len(prompt)} prompt tokens found"
            if usage.disk_tokens:
                found += f" ({usage.disk_tokens} on disk)"
            why = _difference(prompt, usage.cached_tokens, past, generation.tokenizer)
            self._say(f"prefix of {request}: {found}; {why}")
            for choice in choices:
                past.append(_Past(request, np.array([*prompt, *choice.token_ids], np.int32)))
            while sum(len(one.ids) for one in past) > _MOST_TOKENS:
                past.popleft()


def _difference(
    prompt: Sequence[int], num_cached: int, past: Sequence[_Past], tokenizer: Tokenizer
) -> str:
    """Describe the first difference from the earlier request with the longest common prefix."""
    if num_cached >= len(prompt) - 1:  # the last token is always computed
        return "nothing is missing"
    if not past:
        return "no earlier request to compare with"
    ids = np.array(prompt, np.int32)
    lengths = [_common_length(ids, one.ids) for one in past]
    common, last = max((length, i) for i, length in enumerate(lengths))
    other = past[last]
    lost = min(common, len(ids) - 1) - num_cached
    kept = f"; {lost} of these tokens were not kept" if lost > 0 else ""
    if common == len(ids):
        return f"the prompt of {other.request} begins with it{kept}"
    if common == len(other.ids):
        return f"it continues {other.request} after {common} tokens{kept}"
    before = _text(tokenizer, ids[max(0, common - _TOKENS_BEFORE) : common])
    ours, theirs = (
        _text(tokenizer, of[common : common + _TOKENS_AFTER]) for of in (ids, other.ids)
    )
    return (
        f"it differs from {other.request} at token {common}:"
        f" behind {before}, {ours} instead of {theirs}{kept}"
    )


def _text(tokenizer: Tokenizer, ids: NDArray[np.int32]) -> str:
    """Quote the text of a few tokens, without control characters."""
    text = tokenizer.decode(ids.tolist(), skip_special=False)
    return repr(text if len(text) <= _MOST_CHARS else f"{text[:_MOST_CHARS]}…")


def _common_length(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    num = min(len(a), len(b))
    differs = a[:num] != b[:num]
    return int(differs.argmax()) if differs.any() else num
