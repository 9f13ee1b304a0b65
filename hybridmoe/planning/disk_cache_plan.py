"""Plan of the RAM cache over experts in the file: a budget divided into buffers."""

from collections.abc import Sequence
from typing import NamedTuple

from hybridmoe.errors import ConfigError
from hybridmoe.planning.buffer_pools import BufferPool, PartBytes, divide, group_layers
from hybridmoe.units import at_least, format_bytes, parse_bytes

__all__ = ["DiskCachePlan", "plan_disk_cache"]


class DiskCachePlan(NamedTuple):
    """Buffers for experts, in pools of one size each."""

    pools: tuple[BufferPool, ...]
    pool_of_layer: tuple[int, ...]
    by_layer: tuple[PartBytes, ...]  # room that an expert takes
    num_experts: int  # of a layer
    top_k: int
    num_ahead: int  # for experts that are read ahead, of each pool
    num_leaving: int = 0  # for experts on their way between RAM and VRAM, of each pool

    @property
    def num_layers(self) -> int:
        return len(self.pool_of_layer)

    @property
    def num_slots(self) -> int:
        """Buffers for resident experts."""
        return sum(pool.num_slots for pool in self.pools)

    @property
    def num_staging(self) -> int:
        """Buffers for streamed experts."""
        return sum(pool.num_staging for pool in self.pools)

    @property
    def least_staging(self) -> int:
        """Buffers for streamed experts that any layer has."""
        return min(pool.num_staging for pool in self.pools)

    @property
    def num_buffers(self) -> int:
        """Buffers of all kinds."""
        return sum(pool.num_buffers for pool in self.pools)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the largest buffer."""
        return max(pool.buffer_bytes for pool in self.pools)

    @property
    def resident_bytes(self) -> int:
        """Bytes of the buffers for resident experts."""
        return sum(pool.num_slots * pool.buffer_bytes for pool in self.pools)

    @property
    def staging_bytes(self) -> int:
        """Bytes of the buffers for streamed experts."""
        return sum(pool.num_staging * pool.buffer_bytes for pool in self.pools)

    @property
    def streaming_bytes(self) -> float:
        """Bytes of the buffers that a layer's streamed experts go through; the mean of layers."""
        filled = (p.num_layers * p.num_staging * p.buffer_bytes for p in self.pools)
        return sum(filled) / self.num_layers

    @property
    def one_of_each_bytes(self) -> int:
        """Bytes of one buffer of each pool."""
        return sum(pool.buffer_bytes for pool in self.pools)

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(pool.num_bytes for pool in self.pools)

    @property
    def working_set(self) -> int:
        """Experts that one token uses, in all layers."""
        return self.num_layers * self.top_k

    @property
    def warning(self) -> str | None:
        """Sentence on what is wrong with so few slots, or None."""
        if self.num_slots >= self.working_set:
            return None
        return (
            f"{self.num_slots} expert slots are less than the {self.working_set} experts that one"
            f" token uses ({self.num_layers} layers x {self.top_k}): most are read from disk"
            f" for every token; --expert-ram {self._enough()} would hold one"
            " token's"
        )

    def _enough(self) -> str:
        """Budget with slots for one token's experts."""

        def num_slots(budget_bytes: int) -> int:
            return plan_disk_cache(
                budget_bytes,
                self.by_layer,
                self.num_experts,
                self.top_k,
                num_ahead=self.num_ahead,
                num_leaving=self.num_leaving,
            ).num_slots

        low = high = self.num_bytes  # too little, and enough
        while num_slots(high) < self.working_set:
            low, high = high, 2 * high
        while high - low > self.buffer_bytes // 2:
            middle = (low + high) // 2
            if num_slots(middle) < self.working_set:
                low = middle
            else:
                high = middle
        # More bytes may make more pools, and so a slot less.
        while num_slots(parse_bytes(at_least(high))) < self.working_set:
            high += self.buffer_bytes
        return at_least(high)

    def __str__(self) -> str:
        return (
            f"expert cache: {self.num_slots} slots for {self.num_layers * self.num_experts} experts"
            f" ({self.num_slots / self.num_layers:.1f} of {self.num_experts} a layer,"
            f" {self.num_slots / self.working_set:.1f} tokens' worth),"
            f" {format_bytes(self.num_bytes)}"
        )


def plan_disk_cache(
    budget_bytes: int,
    by_layer: Sequence[PartBytes],
    num_experts: int,
    top_k: int,
    *,
    num_ahead: int = 0,
    num_leaving: int = 0,
) -> DiskCachePlan:
    """Divide a budget. by_layer: room that an expert takes, of each layer.

    Errors: ConfigError, which names the least that works.
    """
    num_aside = num_ahead + num_leaving
    least = top_k + num_aside
    sizes, size_of = group_layers(budget_bytes, by_layer, least)
    if budget_bytes < least * sum(map(sum, sizes)):  # then all are one size
        needed = least * sum(sizes[0])
        others = (
            f" and {num_ahead} read ahead" if num_ahead else "",
            f" and {num_leaving} on their way to VRAM" if num_leaving else "",
        )
        raise ConfigError(
            f"expert_ram={budget_bytes} bytes: expected at least {needed}"
            f" ({format_bytes(needed)}), which one layer's {top_k} experts"
            f"{''.join(others)} take"
        )
    pools = divide(budget_bytes, sizes, size_of, num_experts, top_k, num_aside)
    return DiskCachePlan(
        pools, size_of, tuple(by_layer), num_experts, top_k, num_ahead, num_leaving
    )
