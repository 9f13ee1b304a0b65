"""A model over a card and the CPU: what every token uses, latents and some experts on the card.

Needs Triton, so that it is imported only where there is a card. Has run in Triton's interpreter
only.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from hybridmoe.config import ModelConfig
from hybridmoe.experts.backends import CpuExperts, ExpertWeights
from hybridmoe.experts.card_slots import CardSlots, slot_layouts
from hybridmoe.experts.hosted import HostedExperts
from hybridmoe.experts.hybrid import HybridExperts
from hybridmoe.experts.link_rates import measure_card, with_cpu
from hybridmoe.experts.placed_layers import PlacedLayers
from hybridmoe.experts.placement import Plan
from hybridmoe.experts.placing import ExpertLayers, Placing
from hybridmoe.experts.policy import CacheShape
from hybridmoe.experts.prefill import HeldExperts, StreamedExperts, Streams
from hybridmoe.experts.profile import ExpertProfile
from hybridmoe.experts.rates import GpuRates, Rates, rates_of
from hybridmoe.experts.vram_cache import DEFAULT_VRAM_POLICY
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.kernels import isa
from hybridmoe.kernels.card import CudaCard
from hybridmoe.kernels.guard import loading_onto_card
from hybridmoe.kernels.streams import CudaStream, FakeStream, Stream
from hybridmoe.kernels.triton.device import CudaDevice
from hybridmoe.kernels.triton.experts import SlotLayout
from hybridmoe.kernels.triton.one_expert import add_expert
from hybridmoe.kernels.triton.runtime import IS_INTERPRETED
from hybridmoe.model.residency import Residency
from hybridmoe.model.weights import Weights, expert_weights

__all__ = ["place_on_card"]


class _Streams(NamedTuple):
    """What a card does in turn, and at once."""

    main: Stream
    host: Stream  # the CPU's experts
    uploads: Stream  # experts that come to stay
    link: Stream  # those of a prompt

    @classmethod
    def of(cls, device: torch.device) -> "_Streams":
        if device.type != "cuda":  # the interpreter
            return cls(
                FakeStream(is_lazy=False, is_current=True),
                *(FakeStream(is_lazy=False) for _ in range(3)),
            )
        return cls(CudaStream(), *(CudaStream(_new_stream(device)) for _ in range(3)))


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def place_on_card(
    file: GGUFFile,
    config: ModelConfig,
    card: CudaCard,
    plan: Plan,
    placing: Placing,
    *,
    step_tokens: int,
    num_deferred: int = 0,
    on_cpu: Residency | None = None,
    profile_path: Path | None = None,
) -> Residency:
    """Make what the decoder runs on; dense weights go to the card as the decoder binds them.

    plan: says how many experts the card holds. step_tokens: of a step, at most. on_cpu: who
    computes experts where they do not all fit into RAM, which leaves none to the card; it becomes
    the result. profile_path: hot experts, for the card's slots.
    Errors: GGUFError; ConfigError, DeviceError where the card has less room than it said, or fails.
    """
    device = torch.device("cpu" if IS_INTERPRETED else f"cuda:{card.number}")
    dense = CudaDevice(device, placing.is_on_cpu)
    layers = expert_weights(Weights(file), config)
    if on_cpu is not None:
        on_cpu.experts = HostedExperts(on_cpu.experts, dense)
        on_cpu.device, on_cpu.num_deferred = dense, num_deferred
        return on_cpu
    if not layers:
        return Residency(CpuExperts(layers), device=dense)
    profile = None
    if profile_path is not None:
        profile = ExpertProfile.load(profile_path, len(layers), config.num_experts)
    placed = placing.expert_layers(file.tensors, config.num_layers)
    with dense.active(), loading_onto_card("expert slots", plan.problem.vram_bytes):
        streams = _Streams.of(device)
        slots = None
        if plan.num_vram_slots:
            slots = _slots(layers, config.top_k, plan.num_vram_slots, placed, streams, device)
            if profile is not None:
                slots.cache.warm(profile.hot_keys())
            slots.cache.fill()
        prefill = None
        may_stream = len(placed.left) < len(layers)
        if may_stream and not plan.problem.sizes.types_without_slots:  # as the plan says
            prefill = _prefill(layers, config.top_k, placed, slots, step_tokens, streams, device)
        experts = HybridExperts(
            layers,
            config.top_k,
            streams.main,
            streams.host,
            device,
            slots=slots,
            prefill=prefill,
        )
    return Residency(
        experts,
        cache=None if slots is None else slots.cache,
        profile=profile,
        profile_path=profile_path,
        device=dense,
        num_deferred=num_deferred,
    )


def _prefill(
    layers: Mapping[int, ExpertWeights],
    top_k: int,
    placed: ExpertLayers,
    slots: CardSlots | None,
    step_tokens: int,
    streams: _Streams,
    device: torch.device,
) -> StreamedExperts:
    layouts = slot_layouts(layers)
    by_prompt = Streams(streams.main, streams.host, streams.link)
    return StreamedExperts(
        layers,
        [None if n in placed.left else layout for n, layout in zip(layers, layouts, strict=True)],
        add_expert,
        _rates(next(iter(layers.values())), layouts[0], by_prompt, device),
        by_prompt,
        device,
        max_tokens=step_tokens,
        top_k=top_k,
        held=None if slots is None else HeldExperts(slots.slots, slots.cache.table.numpy()),
    )


def _slots(
    layers: Mapping[int, ExpertWeights],
    top_k: int,
    num_slots: int,
    placed: ExpertLayers,
    streams: _Streams,
    device: torch.device,
) -> CardSlots:
    num_experts = next(iter(layers.values())).gate.batch
    shape = CacheShape(len(layers), num_experts, num_slots, top_k)
    pinned, left = (
        frozenset(i for i, number in enumerate(layers) if number in numbers) for numbers in placed
    )
    policy = PlacedLayers(shape, ExpertLayers(pinned, left), DEFAULT_VRAM_POLICY)
    slots = CardSlots(
        layers, top_k, num_slots, streams.main, streams.uploads, device,
        policy=policy if pinned or left else None,
    )  # fmt: skip
    slots.cache.warm(policy.pinned)
    return slots


def _rates(
    experts: ExpertWeights, layout: SlotLayout, streams: Streams, device: torch.device
) -> Rates:
    """This machine's, measured in about a second; under the interpreter made up."""
    if device.type != "cuda":
        gpu = GpuRates(read=1e9, ops=1e12, pcie=1e9)
        return rates_of(isa.active(), dram=1e10, peak_ops=1e12, gpu=gpu)
    return with_cpu(measure_card(experts, layout, add_expert, streams, device))
