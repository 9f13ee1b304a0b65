"""Masks of constrained sequences: computed inline if cheap, else in a thread beside the model.

Submitting a mask to the thread costs more than most masks do: a wake-up, the interpreter lock, and
a core taken from the kernels. So a mask is computed inline if the last one was cheap and the
step's inline budget lasts. The thread computes every first mask, expensive ones, and all of slow
constraints. While a mask is late, its sequence waits and the others go on; after a deadline it
fails.
"""

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hybridmoe.engine.constraint import Constraint
from hybridmoe.engine.mask_thread import MaskThread
from hybridmoe.engine.sequence import Sequence
from hybridmoe.errors import ConfigError

__all__ = ["DEADLINE_S", "INLINE_BUDGET_S", "ConstraintMasks"]

INLINE_BUDGET_S = 2e-4  # per step: about the cost of one submission
_WAIT_BUDGET_S = 0.05  # per step: less than a late mask costs its sequence
DEADLINE_S = 20.0


class ConstraintMasks:
    """Schedules the masks of all sequences. Belongs to the engine's thread."""

    def __init__(self) -> None:
        self._thread = MaskThread()
        self._inline_left_s = self._wait_left_s = 0.0

    def begin_step(self) -> None:
        """Reset the per-step budgets for inline masks and for waiting."""
        self._inline_left_s = INLINE_BUDGET_S
        self._wait_left_s = _WAIT_BUDGET_S

    def start(self, sequence: Sequence, constraint: Constraint) -> None:
        """Submit the first mask, unless the constraint is inactive."""
        if not constraint.is_inactive():
            self._submit(sequence, constraint, None)

    def advance(self, sequence: Sequence, constraint: Constraint, token_id: int) -> None:
        """Advance by a token; compute or submit the next mask. Errors: the constraint's."""
        if constraint.is_inactive():
            constraint.accept(token_id)
            sequence.next_mask = sequence.pending_mask = None
            self.start(sequence, constraint)
            return
        if sequence.mask_s > self._inline_left_s or constraint.is_slow():
            self._submit(sequence, constraint, token_id)
            return
        mask = _compute(sequence, constraint, token_id)
        self._inline_left_s -= sequence.mask_s
        sequence.next_mask = lambda: mask
        sequence.pending_mask = None

    def is_ready(self, sequence: Sequence, wake: Callable[[], None]) -> bool:
        """Test whether the mask is ready, or becomes so within the step's wait budget.

        wake: called from the mask thread once a late mask is ready.
        """
        pending = sequence.pending_mask
        if pending is None or pending.is_ready:
            return True
        started_at = time.monotonic()
        pending.wait(self._wait_left_s)
        self._wait_left_s = max(0.0, self._wait_left_s + started_at - time.monotonic())
        if not pending.is_ready:
            self._thread.replace_late()
            pending.call_when_ready(wake)
        return pending.is_ready

    def check_late(self, sequence: Sequence) -> bool:
        """Test whether a late mask is ready. Raises ConfigError after the deadline."""
        pending = sequence.pending_mask
        if pending is None or pending.is_ready:
            return True
        if pending.elapsed_s > DEADLINE_S:
            raise ConfigError(
                f"the constraint takes longer than {DEADLINE_S:g} s for one token: make it simpler"
            )
        return False

    def close(self) -> None:
        """End the thread, without waiting for it."""
        self._thread.close()

    def _submit(self, sequence: Sequence, constraint: Constraint, token_id: int | None) -> None:
        pending = self._thread.submit(lambda: _compute(sequence, constraint, token_id))
        sequence.next_mask = pending.result
        sequence.pending_mask = pending


def _compute(
    sequence: Sequence, constraint: Constraint, token_id: int | None
) -> NDArray[np.uint32] | None:
    """Advance by a token and compute the mask, or None at the end; takes the CPU time."""
    started_at = time.thread_time()
    if token_id is not None:
        constraint.accept(token_id)
    mask = None if constraint.is_done() else constraint.mask()
    sequence.mask_s = time.thread_time() - started_at
    return mask
