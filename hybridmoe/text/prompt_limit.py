"""Bounds on the work that an untrusted text may make before it is refused.

A prompt that cannot fit the context is not worth its tokenizing: it is refused by its size where
that settles it, and else as soon as so many tokens have been found. Some way beyond the context it
is still counted, since agents read the count and shorten their conversation by the difference.
"""

import math
from collections.abc import Callable
from typing import Self

from hybridmoe.errors import ContextLengthError

__all__ = ["PromptLimit"]

_COUNTED = 4  # contexts; a prompt longer than these is not counted to its end


def _go_on() -> None:
    pass


class PromptLimit:
    """The limit of one prompt, with what is used of it."""

    def __init__(
        self, context_tokens: int, max_token_bytes: int, check: Callable[[], None] = _go_on
    ) -> None:
        """check: called again and again while the prompt is made; to end that, it raises a
        HybridMoeError.
        """
        self.check = check
        self.max_tokens: float = _COUNTED * context_tokens
        self._context_tokens = context_tokens
        self._max_chars: float = self.max_tokens * max_token_bytes
        self._num_tokens = 0

    @classmethod
    def unlimited(cls) -> Self:
        """No limit."""
        limit = cls(1, 1)
        limit.max_tokens = limit._max_chars = math.inf
        return limit

    def check_size(self, num_chars: int) -> None:
        """Raise ContextLengthError if a text has more tokens than are counted, however long each
        of them may be.
        """
        if num_chars > self._max_chars:
            raise self._exceeded()

    def add_tokens(self, num_tokens: int) -> None:
        """So many more tokens are found. Errors: ContextLengthError; those of `check`."""
        self.check()
        self._num_tokens += num_tokens
        if self._num_tokens > self.max_tokens:
            raise self._exceeded()

    def _exceeded(self) -> ContextLengthError:
        return ContextLengthError(int(self.max_tokens), self._context_tokens, is_all=False)
