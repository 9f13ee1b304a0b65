"""Interface of cache policies: they see which experts a layer uses, and decide which stay resident.

A key is `layer * num_experts + expert`, with layers counted from the first that has experts. An
access is one layer of one step: the distinct experts that its tokens chose, in order of first use.
Policies know no memory, files, devices or clocks, so that the same object serves a live cache and
the simulator.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = ["CacheShape", "Decision", "LowerPolicy", "Policy", "PricedPolicy"]


class CacheShape(NamedTuple):
    """Sizes of one cache for the experts of all layers."""

    num_layers: int
    num_experts: int  # of each layer
    num_slots: int
    top_k: int

    @property
    def num_keys(self) -> int:
        return self.num_layers * self.num_experts


class Decision(NamedTuple):
    """Effect of one access on the cache."""

    hits: NDArray[np.bool_]  # for each expert of the access: it was resident before
    admitted: NDArray[np.int32]  # misses to keep, in their order
    evicted: NDArray[np.int64]  # keys that leave for them; none of this access


class Policy(Protocol):
    """Set of resident keys, at most `num_slots`, that accesses change."""

    def on_access(self, layer: int, experts: NDArray[np.int32], is_prefill: bool) -> Decision:
        """Record an access and decide about its misses.

        experts: distinct. A miss that is not admitted is streamed: computed and forgotten.
        is_prefill: of a step of more than `config.PREFILL_TOKENS` tokens; it takes free slots only.
        """
        ...

    def resident(self) -> NDArray[np.int64]:
        """Return the resident keys, ascending."""
        ...

    def warm(self, keys: NDArray[np.int64]) -> None:
        """Admit keys, most valuable first, while slots are free."""
        ...


@runtime_checkable
class PricedPolicy(Policy, Protocol):
    """Policy that weighs what an upload costs."""

    upload_hits: float  # cost of an upload, in hits; infinite: swap nothing


class LowerPolicy(Policy, Protocol):
    """Policy of a tier below another one; each key is resident in one of them at most.

    Its accesses are those that the tier above does not hold, empty ones too. The tier above decides
    between steps: what it admits is discarded here, then what it evicts is offered here.
    """

    def note_above(self, layer: int, experts: NDArray[np.int32]) -> None:
        """Record uses, in the visit of the last access, of experts that the tier above holds."""
        ...

    def discard(self, key: int) -> bool:
        """Forget a key that the tier above has admitted. Returns False if it was not resident."""
        ...

    def offer(self, key: int) -> tuple[bool, int]:
        """Decide about a key that the tier above has evicted.

        Returns whether it is resident now, and the key that left for it, or -1.
        """
        ...
