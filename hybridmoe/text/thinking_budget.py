"""Budget of thoughts: after a number of reasoning tokens, only `</think>` is allowed.

A constraint around another one, or around none. Implements the engine's `Constraint` protocol
(hybridmoe/engine/constraint.py).
"""

import codecs
from collections.abc import Callable, Collection, Sequence
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from hybridmoe.text.tokenizer import Tokenizer

__all__ = ["ThinkingBudget"]

Ids = NDArray[np.int64]


class InnerConstraint(Protocol):
    """A constraint that can be copied."""

    def is_inactive(self) -> bool: ...
    def mask(self) -> NDArray[np.uint32]: ...
    def accept(self, token_id: int) -> None: ...
    def num_allowed(self, token_ids: Sequence[int]) -> int: ...
    def is_done(self) -> bool: ...
    def is_slow(self) -> bool: ...
    def eos_redirect(self) -> tuple[Ids, Ids] | None: ...
    def copy(self) -> Self: ...


class ThinkingBudget:
    """State of one sequence: inactive but for the token that closes, if nothing is inside."""

    def __init__(
        self,
        inner: InnerConstraint | None,
        tokenizer: Tokenizer,
        budget_tokens: int,
        *,
        is_thinking: bool,
        leaving_ids: Collection[int] = (),
    ) -> None:
        """tokenizer: has both marks. is_thinking: the prompt ended inside `<think>`. leaving_ids:
        further tokens that end thoughts, as those that begin a tool call.
        """
        open_id, close_id = tokenizer.special_id("<think>"), tokenizer.special_id("</think>")
        assert open_id is not None and close_id is not None
        self._inner = inner
        self._budget_tokens = budget_tokens
        self._open_id, self._close_id = open_id, close_id
        self._leaving_ids = frozenset((close_id, *leaving_ids))
        self._token_bytes: Callable[[int], bytes] = tokenizer.token_bytes
        self._num_words = -(-tokenizer.num_tokens // 32)
        self._is_thinking = is_thinking
        self._num_tokens = 0  # of reasoning, so far
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    @classmethod
    def around(
        cls,
        inner: InnerConstraint | None,
        tokenizer: Tokenizer,
        budget_tokens: int | None,
        *,
        is_thinking: bool,
        leaving_ids: Collection[int] = (),
    ) -> "InnerConstraint | None":
        """Limit the thoughts, if a budget is set and the vocabulary has thoughts."""
        marks = map(tokenizer.special_id, ("<think>", "</think>"))
        if budget_tokens is None or None in marks:
            return inner
        return cls(
            inner, tokenizer, budget_tokens, is_thinking=is_thinking, leaving_ids=leaving_ids
        )

    def is_inactive(self) -> bool:
        """True while any token may follow."""
        return not self._must_close() and (self._inner is None or self._inner.is_inactive())

    def mask(self) -> NDArray[np.uint32]:
        """Compute the bit mask of allowed tokens; all of them while it is inactive."""
        inner = None if self._inner is None or self._inner.is_inactive() else self._inner.mask()
        if self._must_close():
            word, bit = divmod(self._close_id, 32)
            if inner is None or int(inner[word]) >> bit & 1:  # else within a character
                mask = np.zeros(self._num_words, np.uint32)
                mask[word] = 1 << bit
                return mask
        if inner is None:
            return np.full(self._num_words, 0xFFFFFFFF, np.uint32)
        return inner

    def accept(self, token_id: int) -> None:
        """Advance by a token. Errors: those of the constraint inside."""
        if self._inner is not None:
            self._inner.accept(token_id)
        if token_id == self._open_id:
            self._is_thinking = True
        elif token_id in self._leaving_ids:
            self._is_thinking = False
        elif self._is_thinking:
            self._num_tokens += 1
            self._utf8.decode(self._token_bytes(token_id))

    def num_allowed(self, token_ids: Sequence[int]) -> int:
        """Count the first of some draft tokens that may follow; they may be beyond the budget."""
        return len(token_ids) if self._inner is None else self._inner.num_allowed(token_ids)

    def is_done(self) -> bool:
        """True if only an end token may follow."""
        return self._inner is not None and self._inner.is_done()

    def is_slow(self) -> bool:
        """True if any mask may take seconds."""
        return self._inner is not None and self._inner.is_slow()

    def eos_redirect(self) -> tuple[Ids, Ids] | None:
        """Find end tokens and closing tokens, as the constraint inside does."""
        if self._inner is None or self._inner.is_inactive():
            return None
        return self._inner.eos_redirect()

    def copy(self) -> "ThinkingBudget":
        """Copy the state for another sequence."""
        out = object.__new__(ThinkingBudget)
        out.__dict__ |= self.__dict__
        out._inner = None if self._inner is None else self._inner.copy()
        out._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        out._utf8.setstate(self._utf8.getstate())
        return out

    def _must_close(self) -> bool:
        is_spent = self._is_thinking and self._num_tokens >= self._budget_tokens
        return is_spent and not self._utf8.getstate()[0]  # bytes of an unfinished character
