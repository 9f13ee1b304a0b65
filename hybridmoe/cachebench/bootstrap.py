"""Confidence intervals over conversations: the unit that is drawn, since its tokens are alike."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Bootstrap"]

_ROUNDS = 1000


class Bootstrap:
    """Draws the same conversations for whatever is asked, so that figures can be compared."""

    def __init__(self, conversations: ArrayLike, seed: int) -> None:
        """conversations: (N,) of the items that sums are made of."""
        names, self._owner = np.unique(np.asarray(conversations), return_inverse=True)
        count = len(names)
        random = np.random.default_rng(seed)
        chances = np.full(count, 1 / max(1, count))
        self._drawn = (
            random.multinomial(count, chances, _ROUNDS) if count else np.zeros((0, 0), np.int64)
        )  # (rounds, conversations): how often each is there

    def interval(self, parts: NDArray[np.int64], wholes: NDArray[np.int64]) -> tuple[float, float]:
        """95 % interval of sum(parts) / sum(wholes), given for each item; (0, 0) of no items."""
        if not len(self._drawn):
            return 0.0, 0.0
        count = self._drawn.shape[1]
        above, below = (self._drawn @ np.bincount(self._owner, of, count) for of in (parts, wholes))
        low, high = np.quantile(above / np.maximum(below, 1), (0.025, 0.975))
        return float(low), float(high)
