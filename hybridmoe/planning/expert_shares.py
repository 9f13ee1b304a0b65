"""Shares of several hosts in a model's routed experts: the same range of each layer's experts.

A host whose experts take as long as every other's has a share in proportion to its read rate, as
far as its RAM holds them. Where all RAM together holds too few, shares are in proportion to RAM, so
that each host reads the same part of its experts from disk.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import NamedTuple

from hybridmoe.config import ModelConfig
from hybridmoe.errors import ConfigError
from hybridmoe.gguf.accounting import TensorLike
from hybridmoe.gguf.names import is_expert_tensor
from hybridmoe.gguf.quant_types import QuantType

__all__ = ["ExpertShare", "HostRate", "held_by", "split_by_weight", "split_experts"]


class HostRate(NamedTuple):
    """RAM of one host for experts, and the rate at which its kernels read it."""

    name: str
    ram_bytes: int
    read_gbs: float  # 10^9 bytes a second


class ExpertShare(NamedTuple):
    """Experts of each layer that this host has, of a larger model."""

    model: ModelConfig
    experts: range


def split_experts(
    num_experts: int, all_expert_bytes: int, hosts: Sequence[HostRate]
) -> tuple[range, ...]:
    """Share a layer's experts among hosts; all_expert_bytes: of all layers.

    Errors: ConfigError for more hosts than experts.
    """
    capacity = [host.ram_bytes * num_experts / max(1, all_expert_bytes) for host in hosts]
    if sum(capacity) <= num_experts:
        return split_by_weight(num_experts, capacity)
    targets, left = [0.0] * len(hosts), float(num_experts)
    filling = set(range(len(hosts)))
    while True:
        total = sum(hosts[i].read_gbs for i in filling)
        wanted = {i: left * hosts[i].read_gbs / total for i in filling}
        full = {i for i in filling if wanted[i] > capacity[i]}
        if not full:
            break
        for i in full:
            targets[i] = capacity[i]
            left -= capacity[i]
        filling -= full
    for i in filling:
        targets[i] = wanted[i]
    return split_by_weight(num_experts, targets)


def split_by_weight(num_experts: int, weights: Sequence[float]) -> tuple[range, ...]:
    """Share experts in proportion to weights, at least one each. Errors: ConfigError."""
    if len(weights) > num_experts:
        raise ConfigError(
            f"{len(weights)} hosts for {num_experts} experts of a layer: expected no more hosts"
        )
    if not any(weights):
        weights = [1.0] * len(weights)
    spare, total = num_experts - len(weights), sum(weights)
    above_one = [max(0.0, num_experts * weight / total - 1) for weight in weights]
    exact = [spare * part / (sum(above_one) or 1.0) for part in above_one]
    counts = [int(part) for part in exact]
    by_rest = sorted(range(len(weights)), key=lambda i: counts[i] - exact[i])
    for i in by_rest[: spare - sum(counts)]:
        counts[i] += 1
    ends = accumulate((count + 1 for count in counts), initial=0)
    return tuple(range(*ends) for ends in pairwise(ends))


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    type: QuantType
    shape: tuple[int, ...]
    num_bytes: int


def held_by(
    config: ModelConfig, tensors: Iterable[TensorLike], experts: range
) -> tuple[ModelConfig, list[TensorLike]]:
    """Describe what one host holds, for the planner: the model with that many experts a layer."""
    count = len(experts)
    own = replace(
        config,
        num_experts=count,
        top_k=min(config.top_k, count),
        num_groups=1,
        num_groups_used=1,
    )
    return own, [_part(t, count) if is_expert_tensor(t.name) else t for t in tensors]


def _part(tensor: TensorLike, num_experts: int) -> TensorLike:
    whole = tensor.shape[0]
    num_bytes = tensor.num_bytes // whole * num_experts
    return _Part(tensor.name, tensor.type, (num_experts, *tensor.shape[1:]), num_bytes)
