"""Weights after placement: what the decoder is built on, and what has to be closed after it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hybridmoe.config import ModelConfig
from hybridmoe.device.interface import Device
from hybridmoe.experts.backend import ExpertBackend
from hybridmoe.experts.disk.cached_experts import CachedExperts
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.weights import Weights
from hybridmoe.placement.kernel_checks import KernelChecks
from hybridmoe.placement.profile import ProfileRecord
from hybridmoe.planning.plan import Plan

if TYPE_CHECKING:
    from hybridmoe.placement.calibration import Calibration  # needs Triton

__all__ = ["Residency"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """Weights in their places, as the plan has them; made by `placer.place`."""

    plan: Plan
    config: ModelConfig  # of the network
    experts: ExpertBackend
    devices: tuple[Device, ...] = ()  # of each layer; empty = the CPU
    private: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)  # tensors, by name
    disk_cache: CachedExperts | None = None  # None: no experts are read from the file
    prefetch_note: str | None = None  # on whether experts are read ahead, if load decided that
    share_note: str | None = None  # on the hosts that have experts, if several have
    profile: ProfileRecord | None = None
    checks: KernelChecks | None = None  # of the GPU's kernels; grows until the decoder is built
    calibration: "Calibration | None" = None  # of the GPUs, measured once the decoder is built

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines on hosts, plan, prefetch, expected speed, and kernels of the GPU that are wrong."""
        speed = () if self.calibration is None else self.calibration.lines
        checks = () if self.checks is None else self.checks.lines
        prefetch = () if self.prefetch_note is None else (self.prefetch_note,)
        shares = () if self.share_note is None else (self.share_note,)
        return (*shares, *self.plan.lines, *prefetch, *speed, *checks)

    def weights(self, file: GGUFFile) -> Weights:
        """Tensors of the file, as they were placed."""
        return Weights(file, self.private, self.devices[-1] if self.devices else None)

    def decoder(self, file: GGUFFile) -> Decoder:
        """Build the network on the placed weights. Errors: GGUFError, DeviceError."""
        return Decoder(
            self.weights(file),
            self.config,
            self.experts,
            devices=self.devices,
            vram_bytes=self.plan.problem.budgets.vram_bytes or None,
        )

    def calibrate(self) -> None:
        """Measure the GPUs' rates of decoding, after the decoder. Errors: DeviceError."""
        if self.calibration is not None:
            self.calibration.measure()

    def ready(self, wait_s: float) -> None:
        """Learn that the experts are in memory; wait up to `wait_s` for what that allows."""
        self.experts.ready(wait_s)
        if self.calibration is not None:
            self.calibration.price_uploads()

    def close(self) -> None:
        """End the reads and save the profile. Errors: ConfigError if it cannot be written."""
        self.experts.close()
        if self.profile is not None:
            self.profile.close()
