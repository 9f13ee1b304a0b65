"""Where a model's weights lie: all in the memory map, or, where RAM is short, in RAM over the file.

In the second case routed experts go to an expert cache of a fixed size, and every other tensor is
read once into memory of its own: mapped pages would be given up under pressure again and again, and
a file that is shortened later would end the process.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hybridmoe.config import ModelConfig
from hybridmoe.errors import ConfigError
from hybridmoe.experts.backend import CpuExperts
from hybridmoe.experts.disk.arena import Arena
from hybridmoe.experts.disk.cached_experts import CachedExperts
from hybridmoe.experts.disk.expert_layout import ExpertLayout, is_expert_tensor
from hybridmoe.experts.disk.file_reader import FileReader
from hybridmoe.experts.disk.read_queue import FileRange, ReadRequest
from hybridmoe.experts.hot_profile import HotProfile
from hybridmoe.gguf.reader import GGUFFile, Tensor
from hybridmoe.hardware.disk import BLOCK_BYTES, direct_buffer_bytes
from hybridmoe.hardware.topology import available_bytes
from hybridmoe.model.weights import Weights, routed_experts
from hybridmoe.placement.options import ExpertOptions
from hybridmoe.placement.residency import Latents, Residency
from hybridmoe.planning.disk_cache_plan import TierPlan, plan_tier
from hybridmoe.planning.memory_plan import Problem, plan_experts
from hybridmoe.planning.model_sizes import sizes_of

__all__ = ["place_weights"]

_READ_BYTES = 32 << 20  # one progress step

Progress = Callable[[int, int], None]  # bytes done, bytes in all


def place_weights(
    file: GGUFFile,
    config: ModelConfig,
    options: ExpertOptions,
    latents: Latents,
    progress: Progress,
) -> Residency:
    """Decide, and read what has to be in memory before the first token.

    progress: called only where something is read here.
    Errors: GGUFError for missing or misshapen tensors; ConfigError for a budget that is too small
    or more than there is; DiskError.
    """
    experts = routed_experts(Weights(file), config)
    layout = ExpertLayout(file, experts)
    dense = [t for t in file.tensors.values() if not is_expert_tensor(t.name)]
    plan = _plan(
        file, config, layout, options, latents, sum(direct_buffer_bytes(t.num_bytes) for t in dense)
    )
    if plan is None:
        return Residency(CpuExperts(experts))
    reader = FileReader(file.parts)
    try:
        tier = CachedExperts(experts, layout, reader, plan)
        profile, hot = None, np.empty(0, np.int64)
        if options.profile is not None:
            profile = HotProfile.load(options.profile, layout.num_layers, layout.num_experts)
            hot = profile.hot_keys()[: plan.num_slots]
        expert_bytes = layout.num_bytes // (layout.num_layers * layout.num_experts)
        bar = _Bar(progress, sum(t.num_bytes for t in dense) + len(hot) * expert_bytes)
        private = _read_tensors(reader, dense, bar.add)
        tier.load_hot(hot, bar.add)
        bar.end()
    except BaseException:
        reader.close()
        raise
    return Residency(
        tier, private, tier=tier, cache=tier, profile=profile, profile_path=options.profile
    )


def _plan(
    file: GGUFFile,
    config: ModelConfig,
    layout: ExpertLayout,
    options: ExpertOptions,
    latents: Latents,
    dense_bytes: int,
) -> TierPlan | None:
    """The expert cache, or None where all experts fit."""
    if not layout.num_layers:
        return None
    budget, free = options.ram_bytes, available_bytes()
    if budget is None:
        budget = _default_budget(file, config, layout, latents, free)
    if budget is None or layout.num_bytes <= budget:
        return None
    sizes = (layout.buffer_bytes, layout.num_layers, layout.num_experts, config.top_k)
    plan = plan_tier(budget, *sizes, num_ahead=options.num_ahead)
    others = dense_bytes + latents.num_bytes
    needed = plan.num_buffers * plan.buffer_bytes + others
    if options.ram_bytes is not None and free is not None and needed > free:
        raise ConfigError(
            f"expert_ram={budget} bytes: with {others} bytes of other weights and latents that is"
            f" {needed / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB are free"
        )
    return plan


def _default_budget(
    file: GGUFFile, config: ModelConfig, layout: ExpertLayout, latents: Latents, free: int | None
) -> int | None:
    """RAM for experts as `hybridmoe plan` would have it.

    None where all fit; and where not even the other weights do, since the system's own paging works
    with anything, and nobody has asked for a cache.
    """
    if free is None:
        return None
    try:
        plan = plan_experts(
            Problem(
                sizes=sizes_of(file.tensors.values(), config),
                ram_bytes=free,
                kv_tokens=latents.num_tokens,
                kv_token_bytes=latents.token_bytes,
            )
        )
    except ConfigError:
        return None
    # Of the planner's slots, each is a little larger here: whole blocks of the disk.
    return (plan.num_slots + config.top_k) * layout.buffer_bytes if plan.needs_disk else None


class _Bar:
    """Adds up what has been read."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._done, self._total = 0, max(1, total)
        progress(0, self._total)

    def add(self, num_bytes: int) -> None:
        self._done = min(self._total, self._done + num_bytes)
        self._progress(self._done, self._total)

    def end(self) -> None:
        self.add(self._total)


def _read_tensors(
    reader: FileReader, tensors: list[Tensor], progress: Callable[[int], None]
) -> dict[str, NDArray[np.uint8]]:
    """Tensors in memory of their own; calls progress(bytes) as they come. Errors: DiskError."""
    arena = Arena(sum(direct_buffer_bytes(t.num_bytes) for t in tensors))
    found: dict[str, NDArray[np.uint8]] = {}
    start = num_requests = 0
    for tensor in tensors:
        skew = tensor.offset % BLOCK_BYTES
        first = start + skew
        found[tensor.name] = arena.bytes[first : first + tensor.num_bytes]
        for done in range(0, skew + tensor.num_bytes, _READ_BYTES):
            begin = max(skew, done)
            size = min(_READ_BYTES + done, skew + tensor.num_bytes) - begin
            part = FileRange(tensor.part, tensor.offset - skew + begin, size, tensor.name)
            memory = arena.view[start + done : start + done + direct_buffer_bytes(size + skew)]
            reader.submit(ReadRequest(num_requests, [part], [memory]))
            num_requests += 1
        start += direct_buffer_bytes(tensor.num_bytes)
    for _ in range(num_requests):
        request = reader.take_completed(wait=True)
        assert request is not None
        if request.error is not None:
            raise request.error
        progress(request.ranges[0].num_bytes)
    return found
