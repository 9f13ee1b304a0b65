"""Limit on the tokens of an untrusted prompt, enforced while it is rendered and tokenized.

A prompt that cannot fit the context is refused by its size if that decides it, or else once enough
tokens are found. Up to 4 contexts are counted exactly: agents read the count and shorten their
conversation by the difference.
"""

import math
from collections.abc import Callable
from typing import Self

from hybridmoe.errors import ContextLengthError

__all__ = ["PromptLimit"]

_COUNTED_CONTEXTS = 4


def _do_nothing() -> None:
    pass


class PromptLimit:
    """The limit of one prompt, and the tokens counted against it."""

    def __init__(
        self, context_tokens: int, max_token_bytes: int, check: Callable[[], None] = _do_nothing
    ) -> None:
        """check: called repeatedly during the work; raises a HybridMoeError to cancel it."""
        self.check = check
        self.max_tokens: float = _COUNTED_CONTEXTS * context_tokens
        self._context_tokens = context_tokens
        self._max_chars: float = self.max_tokens * max_token_bytes
        self._num_tokens = 0

    @classmethod
    def unlimited(cls) -> Self:
        """Make a limit that never raises."""
        limit = cls(1, 1)
        limit.max_tokens = limit._max_chars = math.inf
        return limit

    def check_size(self, num_chars: int) -> None:
        """Raise ContextLengthError for a text too long even with the longest tokens."""
        if num_chars > self._max_chars:
            raise self._exceeded()

    def add_tokens(self, num_tokens: int) -> None:
        """Count tokens. Raises ContextLengthError, and the errors of `check`."""
        self.check()
        self._num_tokens += num_tokens
        if self._num_tokens > self.max_tokens:
            raise self._exceeded()

    def _exceeded(self) -> ContextLengthError:
        return ContextLengthError(int(self.max_tokens), self._context_tokens, is_all=False)
