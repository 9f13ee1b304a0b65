"""Decision, by their memory plans, which models can be loaded at the same time."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from hybridmoe.demo import demo_path
from hybridmoe.gguf.outline import read_outline
from hybridmoe.hardware.gpu import NoGpu, choose_gpus
from hybridmoe.placement.budgets import free_ram_bytes, plan_for
from hybridmoe.placement.options import LoadOptions
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.ram_plan import RAM_RESERVE_BYTES

__all__ = ["Coexistence"]


class Coexistence:
    """Plans of models, each as if it were alone, and the memory that they would share."""

    def __init__(self, paths: Mapping[str, Path | None], options: LoadOptions) -> None:
        """Plan each model within what is free now, so before one is loaded. paths: by name.

        Errors: GGUFError, UnsupportedModelError, ConfigError.
        """
        gpus = choose_gpus(options.device)
        self._vram_bytes = () if isinstance(gpus, NoGpu) else tuple(gpu.free_bytes for gpu in gpus)
        self._ram_bytes = free_ram_bytes()
        self.plans: dict[str, Plan] = {}
        for name, path in paths.items():
            outline = read_outline(demo_path() if path is None else path)
            self.plans[name] = plan_for(
                outline.config, outline.tensors, options, gpus, self._ram_bytes
            )

    def fit(self, names: Iterable[str]) -> bool:
        """True if the models have room beside each other as each would be placed alone.

        A model that takes all there is, as a cache of experts does by default, fits beside none.
        """
        plans = [self.plans[name] for name in names]
        ram = sum(plan.ram.used_bytes for plan in plans) - (len(plans) - 1) * RAM_RESERVE_BYTES
        if any(plan.shortage for plan in plans) or ram > self._ram_bytes:
            return False
        return all(
            sum(_vram_bytes(plan, i) for plan in plans) <= free
            for i, free in enumerate(self._vram_bytes)
        )


def _vram_bytes(plan: Plan, index: int) -> int:
    """Bytes that a plan takes of one of the GPUs."""
    stage = plan.stages[index] if index < len(plan.stages) else None
    return stage.vram.used_bytes if stage is not None and stage.vram is not None else 0
