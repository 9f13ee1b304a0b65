"""What a cache policy is: it hears which experts a layer uses, and says who stays.

A key is `layer * num_experts + expert`, with layers counted from the first that has experts. An
access is one layer of one step: the distinct experts that its tokens chose, in order of first use.
Policies know no memory, files, devices or clocks, so that the same object serves a live cache and
the simulator.
"""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["PREFILL_TOKENS", "CacheShape", "Decision", "Policy"]

# A step of more tokens is prefill: it touches most experts of a layer, so what it loads must not
# displace what decoding has gathered.
PREFILL_TOKENS = 16


class CacheShape(NamedTuple):
    """Sizes of one cache for all expert layers together."""

    num_layers: int
    num_experts: int  # of each layer
    num_slots: int
    top_k: int

    @property
    def num_keys(self) -> int:
        return self.num_layers * self.num_experts

    @property
    def token_cycle(self) -> int:
        """Experts that one token uses; below this a plain LRU cache hits nothing."""
        return self.num_layers * self.top_k


class Decision(NamedTuple):
    """What one access does to the cache."""

    hits: NDArray[np.bool_]  # per given expert: it was resident before
    admitted: NDArray[np.int32]  # experts of this layer that shall stay; misses, in their order
    evicted: NDArray[np.int64]  # keys that leave for them, none of this access's own


class Policy(Protocol):
    """Decides who is resident. Never more than `num_slots` keys are."""

    name: str

    def on_access(self, layer: int, experts: NDArray[np.int32], is_prefill: bool) -> Decision:
        """Note an access and decide about its misses.

        experts: distinct. A miss that is not admitted is computed and forgotten. is_prefill: of a
        step of more than `PREFILL_TOKENS` tokens; it takes free slots only.
        """
        ...

    def resident(self) -> NDArray[np.int64]:
        """The resident keys, ascending."""
        ...

    def warm(self, keys: NDArray[np.int64]) -> None:
        """Make these resident, the most valuable first, as far as there are free slots."""
        ...
