"""Memory plan: the contents of VRAM, RAM and disk, with sentences and facts about them.

`hybridmoe plan` prints it, `load` obeys it, and both give the same facts.
"""

from dataclasses import dataclass
from typing import Any

from hybridmoe.config import EngineConfig
from hybridmoe.planning.disk_cache_plan import DiskCachePlan
from hybridmoe.planning.kv_plan import KvPlan
from hybridmoe.planning.problem import Problem, span_of
from hybridmoe.units import format_bytes

__all__ = ["Parts", "Plan", "Tier"]

Parts = tuple[tuple[str, int], ...]  # name, bytes


@dataclass(frozen=True, slots=True)
class Tier:
    """One kind of memory: its budget, the parts that take it, and the experts that it holds."""

    name: str
    budget_bytes: int
    parts: Parts  # without experts
    num_experts: int
    expert_bytes: int  # of all of them together

    @property
    def used_bytes(self) -> int:
        """Bytes that parts and experts take."""
        return sum(size for _, size in self.parts) + self.expert_bytes

    @property
    def free_bytes(self) -> int:
        """Bytes of the budget that nothing takes."""
        return self.budget_bytes - self.used_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A decision on one `Problem`; made by `plan_memory`."""

    problem: Problem
    vram: Tier | None  # None: no GPU
    ram: Tier
    disk_cache: DiskCachePlan | None  # None: experts stay in the file's memory map
    num_disk_experts: int  # neither in VRAM nor in RAM: read from the file when they are chosen
    cpu_reason: str | None = None  # why the CPU computes all routed experts, beside a GPU
    shortage: str | None = None  # why RAM is too small for any plan, so that the system pages
    notes: tuple[str, ...] = ()  # sentences on what of the request has no effect
    split: tuple["Plan", ...] = ()  # of several GPUs: each with its layers, in order

    @property
    def stages(self) -> tuple["Plan", ...]:
        """Plan of each GPU's layers, in order; one without a GPU or with one."""
        return self.split or (self,)

    @property
    def kv(self) -> KvPlan:
        """Pages of the KV cache."""
        return self.problem.kv

    @property
    def engine(self) -> EngineConfig:
        """Engine configuration with the KV cache and the steps of this plan."""
        return self.problem.engine

    @property
    def step_tokens(self) -> int:
        """Prompt tokens of one step, at most."""
        return self.engine.chunk_tokens

    @property
    def max_step_tokens(self) -> int:
        """Tokens of one step, at most: the prompt's, and those of running requests."""
        source, most, _ = self.engine.speculate
        has_drafts = source == "lookup" or self.problem.sizes.config.runs_mtp
        prompt = max(self.step_tokens, self.engine.quick_chunk_tokens)
        return prompt + self.engine.max_running * (1 + most * has_drafts)

    @property
    def num_vram_slots(self) -> int:
        """Expert slots in VRAM."""
        return self.vram.num_experts if self.vram else 0

    @property
    def num_ram_experts(self) -> int:
        """Experts in RAM: slots of the disk cache, or those that the memory map holds."""
        return self.ram.num_experts

    @property
    def num_experts(self) -> int:
        """Routed experts of all layers."""
        return self.problem.sizes.num_experts

    @property
    def needs_disk(self) -> bool:
        """True if experts are read from the file while tokens are computed."""
        return self.num_disk_experts > 0

    @property
    def fits_in_ram(self) -> bool:
        """True if the memory map of all weights fits into RAM at once."""
        return self.problem.sizes.total_bytes <= self.problem.budgets.ram_bytes

    def streams_layer(self, layer: int) -> bool:
        """Return True if the GPU computes a prompt's experts of a layer, resident or streamed.

        layer: as the model counts.
        """
        if self.vram is None or self.cpu_reason is not None:
            return False
        return layer not in self.problem.layers.cpu

    @property
    def streams_experts(self) -> bool:
        """True if the GPU computes a prompt's experts in any layer."""
        return any(map(self.streams_layer, self.problem.sizes.moe_layers))

    @property
    def num_stream_buffers(self) -> int:
        """Experts in VRAM that are on their way to be computed in a prompt."""
        parts = dict(self.vram.parts) if self.vram else {}
        return parts.get("streamed experts", 0) // max(1, self.problem.sizes.slot_bytes)

    def slots_per_layer(self, num_slots: int) -> float:
        """Mean number of slots for a layer's experts."""
        layers = len(self.problem.sizes.moe_layers)
        return num_slots / layers if layers else 0.0

    def working_set_ratio(self, num_slots: int) -> float:
        """Slots over the experts that one token uses; below 1 a plain LRU never hits."""
        working_set = self.problem.sizes.working_set
        return num_slots / working_set if working_set else float("inf")

    @property
    def gpu_line(self) -> str | None:
        """Line on the VRAM that is used; None without a GPU."""
        if self.vram is None:
            return None
        used, budget = format_bytes(self.vram.used_bytes), format_bytes(self.vram.budget_bytes)
        slots, sizes = self.num_vram_slots, self.problem.sizes
        layers = f" layers {span_of(sizes.layers)};" if sizes.only is not None else ""
        return (
            f"{self.problem.budgets.gpu_name}:{layers} {used} of {budget} VRAM;"
            f" {slots} expert slots, {self.slots_per_layer(slots):.1f} a layer,"
            f" {self.working_set_ratio(slots):.2f} x the experts that one token uses"
        )

    @property
    def lines(self) -> tuple[str, ...]:
        """Lines on the plan for people, with warnings of what will be slow."""
        cache = None if self.disk_cache is None else str(self.disk_cache)
        gpus = (stage.gpu_line for stage in self.stages)
        said = (*self.notes, *filter(None, (*gpus, cache)))
        return (*said, *(f"warning: {text}" for text in self.warnings))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on what will not work well."""
        said = []
        if self.cpu_reason is not None:
            said.append(f"VRAM: {self.cpu_reason}")
        elif self.vram is not None:
            welcome = self.num_experts - self.problem.num_cpu_pinned
            working_set = self.problem.sizes.working_set
            if self.num_vram_slots < min(working_set, welcome):
                said.append(
                    f"VRAM: {self.num_vram_slots} slots are less than the {working_set} experts"
                    " that one token uses: the CPU computes most of them."
                )
        if self.disk_cache is not None and self.disk_cache.warning is not None:
            said.append(f"RAM: {self.disk_cache.warning}.")
        if self.shortage is not None:
            said.append(f"{self.shortage}. The system pages.")
        return tuple(said)

    def facts(self) -> dict[str, Any]:
        """All numbers of the plan, ready for JSON: docs/plan.md explains them."""
        tiers = (self.vram, self.ram) if self.vram else (self.ram,)
        cache = self.disk_cache
        return {
            "num_vram_slots": self.num_vram_slots,
            "num_ram_experts": self.num_ram_experts,
            "num_disk_experts": self.num_disk_experts,
            "pinned_layers": sorted(self.problem.layers.gpu) if self.vram else [],
            "prompt_experts_on": "gpu" if self.streams_experts else "cpu",
            "slot_bytes": self.problem.sizes.slot_bytes,
            "disk_cache": None if cache is None else _cache_facts(cache),
            "working_set": self.problem.sizes.working_set,
            "kv_type": self.kv.kv_type,
            "kv_tokens": self.kv.num_tokens,
            "kv_pages": self.kv.num_pages,
            "kv_bytes": self.kv.num_bytes,
            "context_tokens": self.kv.context_tokens,
            "step_tokens": self.step_tokens,
            "total_bytes": self.problem.sizes.total_bytes,
            "tiers": {tier.name: self._tier_facts(tier) for tier in tiers},
            "gpus": [stage._gpu_facts(stage.vram) for stage in self.split if stage.vram],
            "shortage": self.shortage,
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }

    def _gpu_facts(self, vram: Tier) -> dict[str, Any]:
        layers = self.problem.sizes.layers
        return {
            "name": self.problem.budgets.gpu_name,
            "first_layer": layers.start,
            "num_layers": len(layers),
            **self._tier_facts(vram),
        }

    def _tier_facts(self, tier: Tier) -> dict[str, Any]:
        has_experts = self.num_experts > 0
        return {
            "budget_bytes": tier.budget_bytes,
            "used_bytes": tier.used_bytes,
            "parts": dict(tier.parts),
            "num_experts": tier.num_experts,
            "expert_bytes": tier.expert_bytes,
            "slots_per_layer": self.slots_per_layer(tier.num_experts),
            "working_set_ratio": self.working_set_ratio(tier.num_experts) if has_experts else None,
        }


def _cache_facts(cache: DiskCachePlan) -> dict[str, Any]:
    return {
        "num_slots": cache.num_slots,
        "num_staging": cache.num_staging,
        "num_ahead": cache.num_ahead,
        "num_leaving": cache.num_leaving,
        "buffer_bytes": cache.buffer_bytes,
        "num_bytes": cache.num_bytes,
        "pools": [
            {
                "num_layers": pool.num_layers,
                "num_slots": pool.num_slots,
                "num_staging": pool.num_staging,
                "buffer_bytes": pool.buffer_bytes,
            }
            for pool in cache.pools
        ],
    }
