"""Weights after placement: what the decoder is built on, and what has to be closed after it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hybridmoe.device.cpu import CpuDevice
from hybridmoe.device.interface import Device
from hybridmoe.experts.backend import ExpertBackend
from hybridmoe.experts.disk.cached_experts import CachedExperts
from hybridmoe.experts.hot_profile import HotProfile
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.weights import Weights
from hybridmoe.placement.kernel_checks import KernelChecks
from hybridmoe.planning.plan import Plan

__all__ = ["HotExperts", "ProfileRecord", "Residency"]


class HotExperts(Protocol):
    """A cache of experts, whose hot ones are worth remembering."""

    uses: NDArray[np.int64]  # accesses by key

    def resident(self) -> NDArray[np.int64]:
        """List the keys that are resident, ascending."""
        ...


@dataclass(frozen=True, slots=True)
class ProfileRecord:
    """Profile of hot experts that is updated when the model is closed."""

    path: Path
    before: HotProfile
    cache: HotExperts

    def save(self) -> None:
        """Write the profile with this run's accesses, if any. Errors: ConfigError."""
        if not self.cache.uses.any():
            return
        shape = self.before.uses.shape
        is_resident = np.zeros(shape, np.bool_)
        is_resident.reshape(-1)[self.cache.resident()] = True
        self.before.plus(self.cache.uses.reshape(shape), is_resident).save(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """Weights in their places, as the plan has them; made by `placer.place`."""

    plan: Plan
    experts: ExpertBackend
    device: Device = field(default_factory=CpuDevice)
    private: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)  # tensors, by name
    disk_cache: CachedExperts | None = None  # None: no experts are read from the file
    profile: ProfileRecord | None = None
    num_deferred: int = 0  # of a token's experts, those added one layer later
    checks: KernelChecks | None = None  # of the GPU's kernels; grows until the decoder is built

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines on the plan, and on kernels of the GPU that are wrong."""
        return self.plan.lines + (() if self.checks is None else self.checks.lines)

    def weights(self, file: GGUFFile) -> Weights:
        """Tensors of the file, as they were placed."""
        return Weights(file, self.private, self.device)

    def decoder(self, file: GGUFFile) -> Decoder:
        """Build the network on the placed weights. Errors: GGUFError, DeviceError."""
        problem = self.plan.problem
        return Decoder(
            self.weights(file),
            problem.sizes.config,
            self.experts,
            num_deferred=self.num_deferred,
            vram_bytes=problem.budgets.vram_bytes or None,
        )

    def close(self) -> None:
        """End the reads and save the profile. Errors: ConfigError if it cannot be written."""
        self.experts.close()
        if self.profile is not None:
            self.profile.save()
