"""Lazy tool-call grammar: inactive in free text, and active once a tool call begins."""

from collections.abc import Mapping, Sequence
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from hybridmoe.text.tool_syntax import ToolSyntax

__all__ = ["LazyToolCalls", "forbid_tool_calls"]

Ids = NDArray[np.int64]


class CallGrammar(Protocol):
    """Compiled grammar of tool calls, such as a MatcherConstraint."""

    @property
    def relaxed(self) -> tuple[str, ...]: ...
    def mask(self) -> NDArray[np.uint32]: ...
    def accept(self, token_id: int) -> None: ...
    def num_allowed(self, token_ids: Sequence[int]) -> int: ...
    def is_done(self) -> bool: ...
    def is_slow(self) -> bool: ...
    def eos_redirect(self) -> tuple[Ids, Ids] | None: ...
    def copy(self) -> Self: ...


class LazyToolCalls:
    """Constraint of one sequence. Computes no masks before a trigger token."""

    def __init__(self, grammar: CallGrammar, triggers: Mapping[int, int]) -> None:
        """grammar: at its start. triggers: tokens that begin a call or section, each with the one
        that the grammar uses for it.
        """
        self._grammar = grammar
        self._triggers = triggers
        self._active: CallGrammar | None = None

    @property
    def relaxed(self) -> tuple[str, ...]:
        """Paths in schemas of what is not supported, and so left out."""
        return self._grammar.relaxed

    def is_inactive(self) -> bool:
        """True before a trigger: any token may follow."""
        return self._active is None

    def mask(self) -> NDArray[np.uint32]:
        """Compute the mask of allowed tokens. Only once active."""
        assert self._active is not None
        return self._active.mask()

    def accept(self, token_id: int) -> None:
        """Advance by a token. Raises ConfigError beyond a limit."""
        if self._active is not None:
            self._active.accept(token_id)
        elif token_id in self._triggers:
            self._active = self._grammar.copy()
            self._active.accept(self._triggers[token_id])

    def num_allowed(self, token_ids: Sequence[int]) -> int:
        """Count the first of some draft tokens that may follow; those of a new call all count."""
        return len(token_ids) if self._active is None else self._active.num_allowed(token_ids)

    def is_done(self) -> bool:
        """True if only an end token may follow."""
        return self._active is not None and self._active.is_done()

    def is_slow(self) -> bool:
        """True if any mask may take seconds."""
        return self._grammar.is_slow()

    def eos_redirect(self) -> tuple[Ids, Ids] | None:
        """Find end tokens and closing tokens, as in the engine's `Constraint`."""
        return None if self._active is None else self._active.eos_redirect()

    def copy(self) -> "LazyToolCalls":
        """Copy the state for another sequence."""
        out = LazyToolCalls(self._grammar, self._triggers)
        out._active = None if self._active is None else self._active.copy()
        return out


def forbid_tool_calls(syntax: ToolSyntax | None) -> dict[int, float]:
    """Make a logit bias that forbids tool calls, for requests without tools."""
    return {} if syntax is None else dict.fromkeys(syntax.triggers, float("-inf"))
