"""Bootstrap confidence intervals over conversations, whose tokens are not independent."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Bootstrap"]

_ROUNDS = 1000


class Bootstrap:
    """Resamples of conversations, the same for every figure, so that figures compare."""

    def __init__(self, conversations: ArrayLike, seed: int) -> None:
        """conversations: (N,), one for each summand."""
        names, self._owner = np.unique(np.asarray(conversations), return_inverse=True)
        count = len(names)
        random = np.random.default_rng(seed)
        chances = np.full(count, 1 / max(1, count))
        self._drawn = (
            random.multinomial(count, chances, _ROUNDS) if count else np.zeros((0, 0), np.int64)
        )  # (rounds, conversations): times that each was drawn

    def interval(self, parts: NDArray[Any], wholes: NDArray[Any]) -> tuple[float, float]:
        """Estimate the 95 % interval of sum(parts) / sum(wholes), both (N,); (0, 0) if N = 0."""
        if not len(self._drawn):
            return 0.0, 0.0
        count = self._drawn.shape[1]
        above, below = (self._drawn @ np.bincount(self._owner, of, count) for of in (parts, wholes))
        low, high = np.quantile(above / np.maximum(below, 1), (0.025, 0.975))
        return float(low), float(high)
