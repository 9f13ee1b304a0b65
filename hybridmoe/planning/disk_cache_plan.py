"""Plan of the RAM cache over experts in the file: a budget divided into buffers of one size."""

from typing import NamedTuple

from hybridmoe.errors import ConfigError
from hybridmoe.units import at_least, format_bytes

__all__ = ["DiskCachePlan", "plan_disk_cache"]

# Buffers for each streamed expert: a prompt's reads go on while attention is computed, as long as
# buffers are free, and each of them is a slot less.
_BUFFERS_PER_STREAMED = 16


class DiskCachePlan(NamedTuple):
    """Buffers for experts; each takes an expert of any layer."""

    num_slots: int  # for resident experts
    num_staging: int  # for streamed experts
    num_ahead: int  # for experts that are read ahead
    buffer_bytes: int
    num_layers: int
    num_experts: int  # of a layer
    top_k: int
    num_leaving: int = 0  # for experts on their way between RAM and VRAM

    @property
    def num_buffers(self) -> int:
        """Buffers of all kinds."""
        return self.num_slots + self.num_staging + self.num_ahead + self.num_leaving

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers."""
        return self.num_buffers * self.buffer_bytes

    @property
    def working_set(self) -> int:
        """Experts that one token uses, in all layers."""
        return self.num_layers * self.top_k

    @property
    def warning(self) -> str | None:
        """Sentence on what is wrong with so few slots, or None."""
        if self.num_slots >= self.working_set:
            return None
        others = self.num_ahead + self.num_leaving
        needed = self.working_set + others + self.num_staging
        while needed - others - _num_streamed(needed, self.num_experts, self.top_k) < (
            self.working_set
        ):
            needed += 1
        needed *= self.buffer_bytes
        return (
            f"{self.num_slots} expert slots are less than the {self.working_set} experts that one"
            f" token uses ({self.num_layers} layers x {self.top_k}): most are read from disk"
            f" for every token; --expert-ram {at_least(needed)} would hold one token's"
        )

    def __str__(self) -> str:
        return (
            f"expert cache: {self.num_slots} slots for {self.num_layers * self.num_experts} experts"
            f" ({self.num_slots / self.num_layers:.1f} of {self.num_experts} a layer,"
            f" {self.num_slots / self.working_set:.1f} tokens' worth),"
            f" {format_bytes(self.num_bytes)}"
        )


def plan_disk_cache(
    budget_bytes: int,
    buffer_bytes: int,
    num_layers: int,
    num_experts: int,
    top_k: int,
    *,
    num_ahead: int = 0,
    num_leaving: int = 0,
) -> DiskCachePlan:
    """Divide a budget. Errors: ConfigError, which names the least that works."""
    num_buffers = budget_bytes // buffer_bytes
    least = top_k + num_ahead + num_leaving
    if num_buffers < least:
        others = (
            f" and {num_ahead} read ahead" if num_ahead else "",
            f" and {num_leaving} on their way to VRAM" if num_leaving else "",
        )
        raise ConfigError(
            f"expert_ram={budget_bytes} bytes: expected at least {least * buffer_bytes}"
            f" ({format_bytes(least * buffer_bytes)}), which one layer's {top_k} experts"
            f"{''.join(others)} take"
        )
    num_staging = _num_streamed(num_buffers - num_ahead - num_leaving, num_experts, top_k)
    least += num_staging - top_k
    return DiskCachePlan(
        num_slots=min(num_buffers - least, num_layers * num_experts),
        num_staging=num_staging,
        num_ahead=num_ahead,
        buffer_bytes=buffer_bytes,
        num_layers=num_layers,
        num_experts=num_experts,
        top_k=top_k,
        num_leaving=num_leaving,
    )


def _num_streamed(num_buffers: int, num_experts: int, top_k: int) -> int:
    """Buffers for streamed experts, of those for streamed and resident ones.

    At least one token's experts of a layer, so that they can be read at once; at most a layer.
    """
    return max(top_k, min(num_experts, num_buffers // _BUFFERS_PER_STREAMED))
