"""Constraint of one sequence: the state of a grammar that llguidance has compiled.

Implements the engine's `Constraint` protocol (hybridmoe/engine/constraint.py).
"""

import copy
from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from hybridmoe.text.closing_tokens import ClosingTokens
from hybridmoe.text.grammar_build import check_matcher, prefixed_errors

__all__ = ["MatcherConstraint"]


class MatcherConstraint:
    """State of a sequence in a grammar. Methods raise ConfigError beyond llguidance's limits."""

    def __init__(
        self,
        matcher: LLMatcher,
        num_tokens: int,
        closing_tokens: ClosingTokens,
        *,
        name: str,
        is_json: bool,
        is_slow: bool,
        relaxed: Sequence[str] = (),
    ) -> None:
        """name: of the constraint, for errors. is_json: all output but special tokens and thinking
        is JSON. relaxed: paths in schemas of what is not supported, and so left out.
        """
        self._matcher = matcher
        self._closing_tokens = closing_tokens
        self._name = name
        self._is_json = is_json
        self._is_slow = is_slow
        self.relaxed = tuple(relaxed)
        self._mask = np.zeros(-(-num_tokens // 32), np.uint32)
        self._mask_buffer = self._mask.ctypes.data, self._mask.nbytes
        self._is_mask_current = False

    def is_inactive(self) -> bool:
        """False: the mask always counts."""
        return False

    def mask(self) -> NDArray[np.uint32]:
        """Compute the bit mask of allowed tokens: bit i % 32 of word i // 32 is that of token i.

        Overwritten by the next call.
        """
        if not self._is_mask_current:
            self._matcher.unsafe_compute_mask_ptr(*self._mask_buffer)
            self._check()
            self._is_mask_current = True
        return self._mask

    def accept(self, token_id: int) -> None:
        """Advance by a token."""
        self._is_mask_current = False
        if not self._matcher.consume_token(token_id):
            self._check()

    def num_allowed(self, token_ids: Sequence[int]) -> int:
        """Count the first of some draft tokens that may follow."""
        return int(self._matcher.validate_tokens(list(token_ids)))

    def begin_with(self, ids: list[int]) -> bool:
        """Advance by the tokens of a text that is already there; False if it is not allowed."""
        self._is_mask_current = False
        num_taken = self._matcher.try_consume_tokens(ids)
        self._check()
        return num_taken == len(ids)

    def is_done(self) -> bool:
        """True if only an end token may follow."""
        return bool(self._matcher.is_stopped())

    def is_slow(self) -> bool:
        """True if any mask may take seconds."""
        return self._is_slow

    def eos_redirect(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Find the end tokens, if all are forbidden, and the tokens that close the open part."""
        return self._closing_tokens.eos_redirect(self._mask, is_json=self._is_json)

    def copy(self) -> "MatcherConstraint":
        """Copy the state for another sequence."""
        copied = copy.copy(self)
        copied._matcher = self._matcher.deep_copy()
        copied._mask = self._mask.copy()
        copied._mask_buffer = copied._mask.ctypes.data, copied._mask.nbytes
        return copied

    def _check(self) -> None:
        with prefixed_errors(self._name):
            check_matcher(self._matcher)
