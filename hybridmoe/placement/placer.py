"""Where a model's weights and latents go, over a card or the CPU alone: decided, and done."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import psutil

from hybridmoe.config import EngineConfig, ModelConfig, check_gpu_kv_type
from hybridmoe.errors import ConfigError
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.hardware.gpu import CudaGpu, NoGpu
from hybridmoe.hardware.topology import available_bytes
from hybridmoe.kernels.paged_mla import PAGE_TOKENS
from hybridmoe.placement.options import DeviceOptions, ExpertOptions
from hybridmoe.placement.ram import place_weights
from hybridmoe.placement.residency import Latents, Residency
from hybridmoe.planning.kv_plan import plan_kv
from hybridmoe.planning.memory_plan import Plan, Problem, plan_experts
from hybridmoe.planning.model_sizes import sizes_of
from hybridmoe.planning.placement_rules import PlacementRules
from hybridmoe.planning.prefill_split import step_tokens

__all__ = ["Placer"]


@dataclass(frozen=True, slots=True)
class Placer:
    """One model and what its user says."""

    file: GGUFFile
    config: ModelConfig
    engine: EngineConfig
    options: ExpertOptions
    devices: DeviceOptions
    tell: Callable[[int, int], None]  # bytes done, bytes in all, of what is read here

    def place(self, card: CudaGpu | NoGpu) -> tuple[Residency, EngineConfig]:
        """Where weights lie, and the engine's configuration with the latents that were planned.

        Errors: ConfigError, DeviceError, DiskError, GGUFError. A card that nobody asked for and
        that is too small is left alone.
        """
        if self.devices.num_deferred > self.config.top_k:
            raise ConfigError(
                f"defer={self.devices.num_deferred}: a token has {self.config.top_k} experts"
            )
        unused = self._placing.unused(self.file.tensors)
        notes = tuple(f"place: {text!r} matches no tensor" for text in unused)
        if isinstance(card, CudaGpu):
            check_gpu_kv_type(self.engine.kv_type)  # before minutes of reading
            try:
                engine, latents, plan = self._plan_card(card)
            except ConfigError as error:
                if self.devices.is_card_wanted:
                    raise
                card = NoGpu(str(error))  # which says how it would fit
            else:
                residency, said = self._fill_card(card, engine, latents, plan)
                residency.notes = (*notes, *said)
                return residency, engine
        engine, latents = self._with_latents(self.engine, psutil.virtual_memory().available)
        residency = self._fill_ram(latents)
        residency.num_deferred = self.devices.num_deferred
        residency.notes = (*notes, *self._on_no_card(card))
        return residency, engine

    @property
    def _placing(self) -> PlacementRules:
        return PlacementRules(self.devices.place)

    def _on_no_card(self, card: NoGpu) -> tuple[str, ...]:
        """What to say about there being none."""
        devices = self.devices
        if devices.vram_bytes is not None or (devices.place and devices.device != "cpu"):
            return (f"no card, so that vram and place mean nothing: {card.reason}",)
        return () if card.is_silent else (f"on the CPU alone: {card.reason}",)

    def _with_latents(self, engine: EngineConfig, room_bytes: int) -> tuple[EngineConfig, Latents]:
        """The configuration with the latents that are planned for such memory."""
        kv = plan_kv(self.config, engine, room_bytes)
        latents = Latents(kv.num_tokens, kv.page_bytes // PAGE_TOKENS)
        return replace(engine, kv_tokens=kv.num_tokens), latents

    def _fill_ram(self, latents: Latents) -> Residency:
        return place_weights(self.file, self.config, self.options, latents, self.tell)

    def _vram_bytes(self, card: CudaGpu) -> int:
        """What of the card may be taken. Errors: ConfigError."""
        wanted = self.devices.vram_bytes
        if wanted is None:
            return card.free_bytes
        if wanted > card.free_bytes:
            asked, free = wanted / 2**30, card.free_bytes / 2**30
            raise ConfigError(f"vram={asked:.2f} GiB: {card.name} has {free:.2f} GiB free")
        return wanted

    def _plan_card(self, card: CudaGpu) -> tuple[EngineConfig, Latents, Plan]:
        """The engine's configuration on the card, and who lives where. Errors: ConfigError."""
        config, vram_bytes = self.config, self._vram_bytes(card)
        chunk_tokens = step_tokens(config, vram_bytes, self.engine.context_tokens)
        engine = replace(self.engine, chunk_tokens=chunk_tokens)
        engine, latents = self._with_latents(engine, vram_bytes)
        placing = self._placing
        experts = placing.expert_layers(self.file.tensors, config.num_layers)
        problem = Problem(
            sizes=sizes_of(self.file.tensors.values(), config, placing.is_on_cpu),
            ram_bytes=available_bytes() or psutil.virtual_memory().available,
            vram_bytes=vram_bytes,
            kv_tokens=latents.num_tokens,
            kv_token_bytes=latents.token_bytes,
            step_tokens=chunk_tokens,
            num_pinned=config.num_experts * len(experts.pinned),
            num_left=config.num_experts * len(experts.left),
        )
        return engine, latents, plan_experts(problem)

    def _fill_card(
        self, card: CudaGpu, engine: EngineConfig, latents: Latents, plan: Plan
    ) -> tuple[Residency, tuple[str, ...]]:
        """Weights where the plan has them, and sentences about it."""
        on_cpu = None
        if plan.needs_disk or self.options.ram_bytes is not None:
            on_cpu = self._fill_ram(latents)
            if on_cpu.tier is None and not plan.needs_disk:
                on_cpu = None
        # Triton is an extra, needed where there is a card only.
        on_card = importlib.import_module("hybridmoe.placement.gpu")
        residency = on_card.place_on_gpu(
            self.file,
            self.config,
            card,
            plan,
            self._placing,
            step_tokens=engine.chunk_tokens + engine.max_running * (1 + engine.speculate),
            num_deferred=self.devices.num_deferred,
            on_cpu=on_cpu,
            profile_path=self.options.profile,
        )
        residency.vram_bytes = plan.problem.vram_bytes
        assert plan.vram is not None
        num_slots = 0 if on_cpu is not None else plan.num_vram_slots
        said = (
            f"{card.name}: {plan.vram.used_bytes / 2**30:.1f} of"
            f" {card.total_bytes / 2**30:.1f} GiB; {num_slots} experts' slots,"
            f" {plan.slots_per_layer(num_slots):.1f} a layer,"
            f" {plan.cycle_ratio(num_slots):.2f} of what one token uses"
        )
        return residency, (said, *plan.warnings)
