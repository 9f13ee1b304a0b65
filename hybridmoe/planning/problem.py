"""Input of the memory planner: budgets, and all that has to fit into them."""

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

from hybridmoe.config import PAGE_TOKENS, EngineConfig
from hybridmoe.errors import ConfigError
from hybridmoe.planning.kv_plan import KvPlan
from hybridmoe.planning.model_sizes import ModelSizes
from hybridmoe.planning.placement_rules import ExpertLayers, PlacementRules

__all__ = ["NO_RULES", "Budgets", "GpuBudget", "Problem", "span_of"]

NO_RULES = PlacementRules()


class GpuBudget(NamedTuple):
    """VRAM of one of several GPUs that a model may fill."""

    name: str
    vram_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """Memory that a model may fill, in bytes. Errors: ConfigError."""

    ram_bytes: int  # that this program may fill
    vram_bytes: int = 0  # of the GPU, or of all; 0 = no GPU
    gpu_name: str = "GPU"
    gpus: tuple[GpuBudget, ...] = ()  # of several, in the order of their layers
    expert_ram_bytes: int | None = None  # for routed experts; None = what the plan leaves
    num_ahead: int = 0  # experts of the next layer that may be read ahead
    is_gpu_optional: bool = False  # a GPU that is too small is left out, with a note
    no_gpu_note: str = ""  # a sentence on why there is no GPU, for people

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 0:
                raise ConfigError(f"{field.name}={value}: expected a number from 0 on")

    def with_gpus(self, *gpus: GpuBudget) -> "Budgets":
        """Copy for one GPU or several."""
        return replace(
            self,
            vram_bytes=sum(gpu.vram_bytes for gpu in gpus),
            gpu_name=" + ".join(gpu.name for gpu in gpus),
            gpus=gpus if len(gpus) > 1 else (),
        )

    def without_gpu(self, reason: str) -> "Budgets":
        """Copy for the CPU alone. reason: why."""
        return replace(self, vram_bytes=0, gpus=(), no_gpu_note=f"on the CPU alone: {reason}")

    @property
    def least_vram_bytes(self) -> int:
        """VRAM of the smallest GPU."""
        return min((gpu.vram_bytes for gpu in self.gpus), default=self.vram_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Budgets, and what has to fit into them; made by `plan_memory`."""

    budgets: Budgets
    sizes: ModelSizes
    engine: EngineConfig  # with the KV cache and the steps that were planned
    kv: KvPlan
    layers: ExpertLayers  # whose experts the rules pin to the GPU or to the CPU
    rules: PlacementRules = NO_RULES

    def of_stage(self, gpu: GpuBudget, layers: range) -> "Problem":
        """Reduce the problem to the layers of one of several GPUs."""
        page_bytes = PAGE_TOKENS * self.sizes.config.kv_token_bytes(self.kv.kv_type, layers)
        return replace(
            self,
            budgets=self.budgets.with_gpus(gpu),
            sizes=self.sizes.of_layers(layers),
            kv=replace(self.kv, page_bytes=page_bytes),
            layers=ExpertLayers(*(pinned & frozenset(layers) for pinned in self.layers)),
        )

    @property
    def num_gpu_pinned(self) -> int:
        """Experts that are to be in VRAM for good."""
        return self.sizes.config.num_experts * len(self.layers.gpu)

    @property
    def num_cpu_pinned(self) -> int:
        """Experts that are not to be in VRAM."""
        return self.sizes.config.num_experts * len(self.layers.cpu)


def span_of(layers: range) -> str:
    """Format a range of layers: `0-30`."""
    return f"{layers.start}-{layers.stop - 1}" if len(layers) > 1 else str(layers.start)
