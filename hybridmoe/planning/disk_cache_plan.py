"""How a budget of RAM for experts becomes buffers: pure sums, and what to say about them."""

from typing import NamedTuple

from hybridmoe.errors import ConfigError
from hybridmoe.units import format_bytes

__all__ = ["TierPlan", "plan_tier"]


class TierPlan(NamedTuple):
    """Buffers for experts, all of one size."""

    num_slots: int  # experts that stay
    num_staging: int  # that only pass by
    num_ahead: int  # that are read for the layer to come
    buffer_bytes: int
    num_layers: int
    num_experts: int
    top_k: int

    @property
    def num_buffers(self) -> int:
        return self.num_slots + self.num_staging + self.num_ahead

    @property
    def token_cycle(self) -> int:
        """Experts that one token uses, in all layers."""
        return self.num_layers * self.top_k

    @property
    def warning(self) -> str | None:
        """What is wrong with so few slots, or None."""
        if self.num_slots >= self.token_cycle:
            return None
        needed = (self.token_cycle + self.num_staging + self.num_ahead) * self.buffer_bytes
        return (
            f"{self.num_slots} expert slots are less than the {self.token_cycle} experts that one"
            f" token uses ({self.num_layers} layers x {self.top_k}): most will be read from the"
            f" disk for every token; --expert-ram {format_bytes(needed)} would hold one token's"
        )

    def __str__(self) -> str:
        return (
            f"expert cache: {self.num_slots} slots for {self.num_layers * self.num_experts} experts"
            f" ({self.num_slots / self.num_layers:.1f} of {self.num_experts} a layer,"
            f" {self.num_slots / self.token_cycle:.1f} tokens' worth),"
            f" {format_bytes(self.num_buffers * self.buffer_bytes)}"
        )


def plan_tier(
    budget_bytes: int,
    buffer_bytes: int,
    num_layers: int,
    num_experts: int,
    top_k: int,
    *,
    num_ahead: int = 0,
) -> TierPlan:
    """Divide a budget. Errors: ConfigError, which names the least that works."""
    num_staging = top_k  # so that all that one token needs of a layer can be read at once
    num_buffers = budget_bytes // buffer_bytes
    least = num_staging + num_ahead
    if num_buffers < least:
        raise ConfigError(
            f"expert_ram={budget_bytes} bytes: expected at least {least * buffer_bytes}"
            f" ({format_bytes(least * buffer_bytes)}), which one layer's {top_k} experts"
            f"{f' and {num_ahead} read ahead' if num_ahead else ''} take"
        )
    num_slots = min(num_buffers - least, num_layers * num_experts)
    return TierPlan(num_slots, num_staging, num_ahead, buffer_bytes, num_layers, num_experts, top_k)
