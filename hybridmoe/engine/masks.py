"""When masks of constrained sequences are computed: at once where that is quick, else in a thread.

Handing a mask over costs more than most masks do: the thread is woken, waits for Python's lock,
and takes a core from the kernels. So what was quick the last time is computed at once, as long as
a step's masks together stay short; the others, and every first one, which compiles, are computed
while the model runs.
"""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from hybridmoe.engine.constraint import Constraint
from hybridmoe.engine.sequence import Sequence

__all__ = ["Masks"]

_AT_ONCE_S = 2e-4  # in one step: about what one hand-over costs


class Masks:
    """Sees to the masks of all sequences. Belongs to the engine's thread."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None  # made for the first constraint
        self._left_s = 0.0

    def begin_step(self) -> None:
        """There is time again."""
        self._left_s = _AT_ONCE_S

    def first(self, sequence: Sequence, constraint: Constraint) -> None:
        """Begin a new sequence's first mask, unless it is free."""
        if not constraint.is_free():
            self._hand_over(sequence, constraint, None)

    def next(self, sequence: Sequence, constraint: Constraint, token_id: int) -> None:
        """The sequence has taken a token: see to its next mask. Errors: the constraint's."""
        if sequence.mask is None:  # free until now
            constraint.accept(token_id)
            self.first(sequence, constraint)
            return
        if sequence.mask_s > self._left_s:
            self._hand_over(sequence, constraint, token_id)
            return
        mask = _compute(sequence, constraint, token_id)
        self._left_s -= sequence.mask_s
        sequence.mask = lambda: mask

    def close(self) -> None:
        """End the thread."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _hand_over(self, sequence: Sequence, constraint: Constraint, token_id: int | None) -> None:
        self._pool = self._pool or ThreadPoolExecutor(1, "hybridmoe-masks")
        sequence.mask = self._pool.submit(_compute, sequence, constraint, token_id).result


def _compute(
    sequence: Sequence, constraint: Constraint, token_id: int | None
) -> NDArray[np.uint32] | None:
    """The mask behind a token, or None where nothing may follow; notes what it cost."""
    began_s = time.thread_time()
    if token_id is not None:
        constraint.accept(token_id)
    mask = None if constraint.is_done() else constraint.mask()
    sequence.mask_s = time.thread_time() - began_s
    return mask
