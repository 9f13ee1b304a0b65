"""Protocol of constrained decoding, in token ids.

hybridmoe.text.grammar_compiler implements it for JSON schemas, grammars and tool calls.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Constraint", "EosRedirect"]

EosRedirect = tuple[NDArray[np.int64], NDArray[np.int64]]  # end tokens, closing tokens


class Constraint(Protocol):
    """State of one sequence's constraint. Used by one thread at a time."""

    def is_inactive(self) -> bool:
        """True while any token may follow: no mask is needed.

        May become False, and True again, with each token.
        """
        ...

    def mask(self) -> NDArray[np.uint32]:
        """Compute the bit mask of allowed tokens: bit i % 32 of word i // 32 is that of token i.

        Shape: (ceil(V / 32),). End tokens are allowed where the output may end. Valid until the
        next call. May take milliseconds, so that a thread may call it while the model runs.
        """
        ...

    def accept(self, token_id: int) -> None:
        """Advance by an allowed token. End tokens are not passed."""
        ...

    def num_allowed(self, token_ids: Sequence[int]) -> int:
        """Count the first of some draft tokens that may follow, one after the other.

        The state stays. Not while a mask is computed. Each token is sampled with its mask all the
        same, so that a count that is too large costs time, and nothing else.
        """
        ...

    def is_done(self) -> bool:
        """True if only an end token may follow: the engine then stops by itself."""
        ...

    def is_slow(self) -> bool:
        """True if any mask may take seconds: none is then computed in the engine's thread."""
        ...

    def eos_redirect(self) -> EosRedirect | None:
        """Find the end tokens, all forbidden, and the tokens that close the open part instead.

        Called after `mask`. The sampler gives the closing tokens the best score of the end tokens,
        so that a model that would end does so soon. None: an end token is allowed, or no closing
        token is known.
        """
        ...
