"""What a user says about experts and devices, checked."""

from dataclasses import dataclass
from pathlib import Path

from hybridmoe.errors import ConfigError
from hybridmoe.planning.placement_rules import PlacementRules

__all__ = ["DeviceOptions", "ExpertOptions"]

_MOST_AHEAD = 64


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


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOptions:
    """Errors: ConfigError."""

    device: str = "auto"  # auto | cpu | cuda
    vram_bytes: int | None = None  # None = what is free
    place: tuple[str, ...] = ()
    num_deferred: int = 0  # of a token's experts

    @property
    def is_card_wanted(self) -> bool:
        """Whether something was said that needs one, so that doing without would be wrong."""
        return self.device == "cuda" or self.vram_bytes is not None or bool(self.place)

    def __post_init__(self) -> None:
        if self.vram_bytes is not None and self.vram_bytes < 1:
            raise ConfigError(f"vram={self.vram_bytes}: expected a size of 1 byte or more")
        if self.num_deferred < 0:
            raise ConfigError(f"defer={self.num_deferred}: expected a number from 0 on")
        PlacementRules(self.place)
