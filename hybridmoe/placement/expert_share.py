"""One host's share of the routed experts: mapped where RAM holds it, else cached over the file."""

from typing import NamedTuple

from hybridmoe.config import ModelConfig
from hybridmoe.experts.backend import CpuExperts, ExpertBackend
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.kernels.ops import touch_rows
from hybridmoe.model.weights import Weights, routed_experts
from hybridmoe.placement.budgets import free_ram_bytes
from hybridmoe.placement.ram import Progress, read_weights
from hybridmoe.planning.disk_cache_plan import plan_disk_cache
from hybridmoe.planning.expert_shares import held_by
from hybridmoe.planning.memory_plan import RAM_RESERVE_BYTES
from hybridmoe.planning.model_sizes import sizes_of

__all__ = ["PlacedShare", "place_share", "ram_for_experts"]


class PlacedShare(NamedTuple):
    """Experts of one host, and what computes them."""

    experts: RoutedExperts
    backend: ExpertBackend


def ram_for_experts(expert_ram: int | None) -> int:
    """Bytes of RAM that a host without any other part of the model gives to experts."""
    free = max(0, free_ram_bytes() - RAM_RESERVE_BYTES)
    return free if expert_ram is None else min(expert_ram, free)


def place_share(
    file: GGUFFile,
    config: ModelConfig,
    share: range,
    ram_bytes: int,
    progress: Progress = lambda done, total: None,
) -> PlacedShare:
    """Place these experts of each layer in so much RAM; no other tensor is read.

    Errors: ConfigError where not even one layer's chosen experts fit; DiskError, GGUFError.
    """
    experts = routed_experts(Weights(file), config).of_experts(share)
    own, tensors = held_by(config, file.tensors.values(), share)
    sizes = sizes_of(tensors, own)
    if sizes.all_expert_bytes <= ram_bytes:
        _page_in(experts, progress)
        return PlacedShare(experts, CpuExperts(experts))
    plan = plan_disk_cache(ram_bytes, sizes.buffer_parts, own.num_experts, own.top_k)
    ram = read_weights(file, experts, plan, None, progress, is_kept=lambda name: False)
    return PlacedShare(experts, ram.experts)


def _page_in(experts: RoutedExperts, progress: Progress) -> None:
    """Read mapped experts, so that the first response does not wait for the disk."""
    matrices = [w for weights in experts.by_index for w in weights]
    done, total = 0, max(1, sum(w.num_bytes for w in matrices))
    progress(0, total)
    for w in matrices:
        for i in range(w.batch):
            touch_rows(w.data[i * w.stride : i * w.stride + w.matrix_bytes], 1, w.rows)
        done += w.num_bytes
        progress(done, total)
