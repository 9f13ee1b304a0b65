"""Where a model's weights lie: all in the memory map, or, where RAM is short, in RAM over the file.

In the second case routed experts go to an expert cache of a fixed size, and every other tensor is
read once into memory of its own: mapped pages would be given up under pressure again and again, and
a file that is shortened later would end the process.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hybridmoe.config import ModelConfig
from hybridmoe.errors import ConfigError
from hybridmoe.experts.backends import CpuExperts, ExpertBackend
from hybridmoe.experts.layout import ExpertLayout, is_expert_tensor
from hybridmoe.experts.pieces import BLOCK_BYTES, Piece, Ticket, room_for
from hybridmoe.experts.placement import Problem, plan_experts
from hybridmoe.experts.profile import ExpertProfile
from hybridmoe.experts.reader import FileReader
from hybridmoe.experts.sizes import sizes_of
from hybridmoe.experts.slots import Arena
from hybridmoe.experts.tier_plan import TierPlan, plan_tier
from hybridmoe.experts.tiered import TieredExperts
from hybridmoe.gguf.reader import GGUFFile, Tensor
from hybridmoe.kernels.device import CpuDevice, Device
from hybridmoe.kernels.topology import available_bytes
from hybridmoe.model.weights import Weights, expert_weights

__all__ = ["ExpertOptions", "HotExperts", "Latents", "Residency", "place_weights"]

_READ_BYTES = 32 << 20  # one progress step
_MOST_AHEAD = 64

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertOptions:
    """What a user says about experts in RAM. Raises ConfigError."""

    ram_bytes: int | None = None  # for experts; None = what is free, less a margin
    num_ahead: int = 0  # experts of the next layer that are read on a guess
    profile: Path | None = None  # hot experts: loaded first, saved at the end

    def __post_init__(self) -> None:
        if self.ram_bytes is not None and self.ram_bytes < 1:
            raise ConfigError(f"expert_ram={self.ram_bytes}: expected a size of 1 byte or more")
        if not 0 <= self.num_ahead <= _MOST_AHEAD:
            raise ConfigError(f"expert_prefetch={self.num_ahead}: expected 0 to {_MOST_AHEAD}")


class Latents(NamedTuple):
    """What the engine will keep, for which there has to be memory."""

    num_tokens: int
    token_bytes: int

    @property
    def num_bytes(self) -> int:
        return self.num_tokens * self.token_bytes


class HotExperts(Protocol):
    """A cache of experts, whose hot ones are worth remembering."""

    uses: NDArray[np.int64]  # accesses by key

    def resident(self) -> NDArray[np.int64]:
        """The keys that are there, ascending."""
        ...


@dataclass(slots=True)
class Residency:
    """What the decoder is built on. `close` saves the profile, and ends what runs beside."""

    experts: ExpertBackend
    private: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)  # tensors, by name
    tier: TieredExperts | None = None
    cache: HotExperts | None = None  # the tier, or a card's
    profile: ExpertProfile | None = None
    profile_path: Path | None = None
    device: Device = field(default_factory=CpuDevice)
    num_deferred: int = 0  # of a token's experts, those added one layer later
    vram_bytes: int | None = None  # of the card, what was planned for
    notes: tuple[str, ...] = ()  # sentences on where things are, for whoever started this

    @property
    def plan(self) -> TierPlan | None:
        """The expert cache's; None where all experts are in the memory map."""
        return None if self.tier is None else self.tier.plan

    def close(self) -> None:
        """Any number of times. Errors: ConfigError where the profile cannot be written."""
        self.experts.close()
        cache = self.cache
        if cache is None or self.profile is None or self.profile_path is None:
            return
        if cache.uses.any():
            shape = self.profile.uses.shape
            is_resident = np.zeros(shape, np.bool_)
            is_resident.reshape(-1)[cache.resident()] = True
            used = self.profile.plus(cache.uses.reshape(shape), is_resident)
            path, self.profile_path = self.profile_path, None
            used.save(path)


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
    layers = expert_weights(Weights(file), config)
    layout = ExpertLayout(file, layers)
    dense = [t for t in file.tensors.values() if not is_expert_tensor(t.name)]
    plan = _plan(file, config, layout, options, latents, sum(room_for(t.num_bytes) for t in dense))
    if plan is None:
        return Residency(CpuExperts(layers))
    reader = FileReader(file.parts)
    try:
        tier = TieredExperts(layers, layout, reader, plan)
        profile, hot = None, np.empty(0, np.int64)
        if options.profile is not None:
            profile = ExpertProfile.load(options.profile, layout.num_layers, layout.num_experts)
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
    arena = Arena(sum(room_for(t.num_bytes) for t in tensors))
    found: dict[str, NDArray[np.uint8]] = {}
    start = num_tickets = 0
    for tensor in tensors:
        skew = tensor.offset % BLOCK_BYTES
        first = start + skew
        found[tensor.name] = arena.bytes[first : first + tensor.num_bytes]
        for done in range(0, skew + tensor.num_bytes, _READ_BYTES):
            begin = max(skew, done)
            size = min(_READ_BYTES + done, skew + tensor.num_bytes) - begin
            piece = Piece(tensor.part, tensor.offset - skew + begin, size, tensor.name)
            memory = arena.view[start + done : start + done + room_for(size + skew)]
            reader.submit(Ticket(num_tickets, [piece], [memory]))
            num_tickets += 1
        start += room_for(tensor.num_bytes)
    for _ in range(num_tickets):
        ticket = reader.take(wait=True)
        assert ticket is not None
        if ticket.error is not None:
            raise ticket.error
        progress(ticket.pieces[0].num_bytes)
    return found
