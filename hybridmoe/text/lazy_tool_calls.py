"""A constraint that is free until a tool call begins, and then admits declared tools only."""

from collections.abc import Mapping
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from hybridmoe.text.tokenizer import Tokenizer
from hybridmoe.text.tool_names import CALL_BEGIN, SECTION_BEGIN

__all__ = ["LazyToolCalls", "forbid_tool_calls"]

Ids = NDArray[np.int64]


class ToolCallFormat(Protocol):
    """The part of a compiled grammar that a guard needs."""

    def mask(self) -> NDArray[np.uint32]: ...
    def accept(self, token_id: int) -> None: ...
    def is_done(self) -> bool: ...
    def is_slow(self) -> bool: ...
    def eos_redirect(self) -> tuple[Ids, Ids] | None: ...
    def copy(self) -> Self: ...


class LazyToolCalls:
    """One sequence's state. Costs nothing while the text is free: there are no masks then."""

    def __init__(self, calls: ToolCallFormat, begins: Mapping[int, int]) -> None:
        """calls: a grammar's start. begins: marks, and the one that the grammar has for each."""
        self._start = calls
        self._begins = begins
        self._calls: ToolCallFormat | None = None

    def is_inactive(self) -> bool:
        """True where any token may follow."""
        return self._calls is None

    def mask(self) -> NDArray[np.uint32]:
        """The mask of tokens that may follow, once a call has begun."""
        assert self._calls is not None
        return self._calls.mask()

    def accept(self, token_id: int) -> None:
        """Go on behind a token. Raises ConfigError where a limit is met."""
        if self._calls is not None:
            self._calls.accept(token_id)
        elif token_id in self._begins:
            self._calls = self._start.copy()
            self._calls.accept(self._begins[token_id])

    def is_done(self) -> bool:
        """True where only an end token may follow."""
        return self._calls is not None and self._calls.is_done()

    def is_slow(self) -> bool:
        """True where any mask may take seconds."""
        return self._start.is_slow()

    def eos_redirect(self) -> tuple[Ids, Ids] | None:
        """Tokens that close the part that is open (text/closing_tokens.py)."""
        return None if self._calls is None else self._calls.eos_redirect()

    def copy(self) -> "LazyToolCalls":
        """The same state for another sequence."""
        out = LazyToolCalls(self._start, self._begins)
        out._calls = None if self._calls is None else self._calls.copy()
        return out


def forbid_tool_calls(tokenizer: Tokenizer) -> dict[int, float]:
    """A bias that keeps an answer from calls where no tool is declared."""
    ids = map(tokenizer.special_id, (*SECTION_BEGIN, *CALL_BEGIN))
    return {token_id: float("-inf") for token_id in ids if token_id is not None}
