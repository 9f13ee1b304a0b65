"""What the next token may be: the engine's view of constrained decoding.

The engine knows ids only; hybridmoe.text.grammar makes constraints of schemas and grammars.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Closing", "Constraint"]

Closing = tuple[NDArray[np.int64], NDArray[np.int64]]  # ids of ends, ids that stand for them


class Constraint(Protocol):
    """The state of one sequence's constraint. Used by one thread at a time."""

    def is_free(self) -> bool:
        """True where any token may follow: no mask is asked for then, and drafts are taken."""
        ...

    def mask(self) -> NDArray[np.uint32]:
        """(ceil(V / 32),): bit i % 32 of word i / 32 says whether id i may come next.

        End tokens are among the allowed ones where the output may end. Valid until the next call.
        May take milliseconds: the engine then calls it from a thread, while the model runs.
        """
        ...

    def accept(self, token_id: int) -> None:
        """Go on to the state after an allowed, chosen token (end tokens are not reported)."""
        ...

    def is_done(self) -> bool:
        """Whether nothing but an end token may follow: the engine then stops by itself."""
        ...

    def is_large(self) -> bool:
        """True where any mask may take seconds, so that none is computed in the engine's thread."""
        ...

    def closing(self) -> Closing | None:
        """Behind `mask`: the ends, all forbidden, and what closes the part that is open.

        The sampler gives the latter the best score of the former, so that a model which would end
        comes to an end soonest. None: an end is allowed, or nothing is known to lead to one.
        """
        ...
