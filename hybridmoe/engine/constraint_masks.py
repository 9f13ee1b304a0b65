"""When masks of constrained sequences are computed: at once where that is quick, else in a thread.

Handing a mask over costs more than most masks do: the thread is woken, waits for Python's lock,
and takes a core from the kernels. So what was quick the last time is computed at once, as long as
a step's masks together stay short; the others, every first one, and those of large grammars, any of
which may suddenly be slow, are computed while the model runs. Where one is not ready when the model
is, its sequence is held while the others go on; after a deadline it ends.
"""

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hybridmoe.engine.constraint import Constraint
from hybridmoe.engine.mask_thread import MaskThread
from hybridmoe.engine.sequence import Sequence
from hybridmoe.errors import ConfigError

__all__ = ["ConstraintMasks"]

_AT_ONCE_S = 2e-4  # in one step: about what one hand-over costs
_PATIENCE_S = 0.05  # in one step, of waiting for masks: less than a held sequence costs itself
_DEADLINE_S = 20.0


class ConstraintMasks:
    """Sees to the masks of all sequences. Belongs to the engine's thread."""

    def __init__(self) -> None:
        self._thread = MaskThread()
        self._left_s = self._patience_s = 0.0

    def begin_step(self) -> None:
        """Reset the per-step budgets of masks computed inline and of waiting."""
        self._left_s = _AT_ONCE_S
        self._patience_s = _PATIENCE_S

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
        if sequence.mask_s > self._left_s or constraint.is_large():
            self._hand_over(sequence, constraint, token_id)
            return
        mask = _compute(sequence, constraint, token_id)
        self._left_s -= sequence.mask_s
        sequence.mask = lambda: mask
        sequence.pending_mask = None

    def is_ready(self, sequence: Sequence, wake: Callable[[], None]) -> bool:
        """Test for a mask that can be had now, or after a short wait.

        wake: called, where it cannot, from the thread that has computed it.
        """
        pending = sequence.pending_mask
        if pending is None or pending.is_ready:
            return True
        began_s = time.monotonic()
        pending.wait(self._patience_s)
        self._patience_s = max(0.0, self._patience_s + began_s - time.monotonic())
        if not pending.is_ready:
            self._thread.note_late()
            pending.call_when_ready(wake)
        return pending.is_ready

    def check_late(self, sequence: Sequence) -> bool:
        """Test a late mask for readiness. Raises ConfigError where it takes too long."""
        pending = sequence.pending_mask
        if pending is None or pending.is_ready:
            return True
        if pending.took_s > _DEADLINE_S:
            raise ConfigError(
                f"the constraint takes longer than {_DEADLINE_S:g} s for one token: make it simpler"
            )
        return False

    def close(self) -> None:
        """End the thread without waiting for it."""
        self._thread.close()

    def _hand_over(self, sequence: Sequence, constraint: Constraint, token_id: int | None) -> None:
        pending = self._thread.submit(lambda: _compute(sequence, constraint, token_id))
        sequence.mask = pending.result
        sequence.pending_mask = pending


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
