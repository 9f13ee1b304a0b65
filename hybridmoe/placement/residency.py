"""Where a model's weights are after placement, and what runs beside them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hybridmoe.device.cpu import CpuDevice
from hybridmoe.device.interface import Device
from hybridmoe.experts.backend import ExpertBackend
from hybridmoe.experts.disk.cached_experts import CachedExperts
from hybridmoe.experts.hot_profile import HotProfile
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.model.weights import Weights
from hybridmoe.planning.disk_cache_plan import TierPlan

__all__ = ["HotExperts", "Latents", "Residency"]


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
    tier: CachedExperts | None = None
    cache: HotExperts | None = None  # the tier, or a card's
    profile: HotProfile | None = None
    profile_path: Path | None = None
    device: Device = field(default_factory=CpuDevice)
    num_deferred: int = 0  # of a token's experts, those added one layer later
    vram_bytes: int | None = None  # of the card, what was planned for
    notes: tuple[str, ...] = ()  # sentences on where things are, for whoever started this

    def weights(self, file: GGUFFile) -> Weights:
        """The file's tensors, as they were placed."""
        return Weights(file, self.private, self.device)

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
