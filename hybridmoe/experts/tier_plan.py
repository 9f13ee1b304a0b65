"""How a budget of RAM for experts becomes buffers: pure sums, and what to say about them."""

import re
from typing import NamedTuple

from hybridmoe.errors import ConfigError

__all__ = ["TierPlan", "parse_bytes", "plan_tier"]

_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}
_MOST_BYTES = 1 << 50


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
            f" disk for every token; --expert-ram {_size(needed)} would hold one token's"
        )

    def __str__(self) -> str:
        return (
            f"expert cache: {self.num_slots} slots for {self.num_layers * self.num_experts} experts"
            f" ({self.num_slots / self.num_layers:.1f} of {self.num_experts} a layer,"
            f" {self.num_slots / self.token_cycle:.1f} tokens' worth),"
            f" {_size(self.num_buffers * self.buffer_bytes)}"
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
            f" ({_size(least * buffer_bytes)}), which one layer's {top_k} experts"
            f"{f' and {num_ahead} read ahead' if num_ahead else ''} take"
        )
    num_slots = min(num_buffers - least, num_layers * num_experts)
    return TierPlan(num_slots, num_staging, num_ahead, buffer_bytes, num_layers, num_experts, top_k)


def parse_bytes(text: str, *, needs_unit: bool = False) -> int:
    """A size such as 12GiB, 12G (the same), 12GB (by 1000) or 4096, unless it needs a unit.

    Errors: ConfigError.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *(?:([KMGT])(IB|B)?)?", text.strip().upper())
    base = 1000 if match and match[3] == "B" else 1024
    size = float(match[1]) * base ** _POWERS.get(match[2], 0) if match else 0.0
    if match is None or size > _MOST_BYTES or (needs_unit and match[2] is None):
        raise ConfigError(f"{text!r:.40}: expected a size such as 12GiB or 800MiB")
    return int(size)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >> 30 else f"{num_bytes / 2**20:.1f} MiB"
