"""Parts of the hybrid benchmark: each measures, and returns what JSON can hold."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import torch

from bench._hybrid_run import decode, opened, plan_for, prefill, profiled_decode
from bench.synthetic import K2_SLICE
from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.planning.cost_model import Hits
from hybridmoe.planning.cost_model import decode as predict
from hybridmoe.planning.layer_cost import upload_s
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.prefill_split import MIN_BUFFERS, stream_buffers

__all__ = ["default_slots", "measure_decode", "measure_gemv", "measure_prompts"]

SLOT_SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)  # of all experts: caches of several hit rates
_WARM_UP, _PROFILED = 16, 8  # tokens; of a run whose profile is the next one's: times as many
_PROMPT_S, _MOST_PROMPTS = 2.0, 5  # timed prompts of one length: seconds in all, and number
_MOST_PLANS = 4  # until a budget fits
_MOST_CPU_TOKENS = 2048  # of a prompt by the CPU alone: longer ones take too long
GEMVS = (  # type, rows, columns: feed-forward, attention and shared expert of Kimi K2
    ("Q8_0", 18432, 7168), ("Q8_0", 7168, 8192), ("Q8_0", 2048, 7168), ("Q4_0", 18432, 7168),
    ("Q4_K", 18432, 7168), ("Q5_K", 18432, 7168), ("Q6_K", 7168, 18432), ("BF16", 7168, 8192),
)  # fmt: skip
FEW_TOKENS = (2, 4, 16)
SLOTS = (  # types of gate and up, and of down
    ("Q4_K", "Q4_K"), ("Q4_K", "Q6_K"), ("Q8_0", "Q8_0"), ("Q5_K", "Q5_K"), ("Q4_0", "Q4_0"),
    ("IQ2_XXS", "IQ3_XXS"),
)  # fmt: skip


def measure_gemv() -> dict[str, Any]:
    """Rates of the GPU by itself, GB/s."""
    from bench._gpu import copy_rate, gemv_rates, link_rate, slot_rate  # needs triton
    from hybridmoe.kernels.triton.expert_ffn import SlotLayout

    products, few_tokens, slots = {}, {}, {}
    for name, rows, cols in GEMVS:
        rates = gemv_rates(QuantType[name], rows, cols, (1, *FEW_TOKENS))
        products[f"{name} {rows}x{cols}"] = rates.pop(1) / 1e9
        for tokens, rate in rates.items():
            few_tokens[f"{tokens} tokens {name} {rows}x{cols}"] = rate / 1e9
    for gate, down in SLOTS:
        kinds = (QuantType[name] for name in (gate, gate, down))
        layout = SlotLayout(*kinds, K2_SLICE.hidden, K2_SLICE.expert_inter).packed
        slots[f"{gate}, {down}"] = slot_rate(layout, K2_SLICE.top_k) / 1e9
    return {
        "copy": copy_rate() / 1e9,
        "link": link_rate() / 1e9,
        "products": products,
        "few_tokens": few_tokens,
        "slots": slots,
    }


def default_slots(path: Path, num_decode: int) -> list[int]:
    """Numbers of VRAM slots to decode with: none, and some shares of all experts."""
    plan = plan_for(path, 4096 + num_decode, int(0.95 * _gpu_bytes()))
    shares = {min(plan.num_vram_slots, int(share * plan.num_experts)) for share in SLOT_SHARES}
    return [0, *sorted(shares - {0})]


def measure_decode(path: Path, num_decode: int, slots: Sequence[int]) -> list[dict[str, Any]]:
    """Decode on the CPU alone, with each number of VRAM slots, and from a profile.

    Predictions are those of the rates that were measured when the model was loaded.
    """
    found = [_decode_way(path, num_decode, num_slots) for num_slots in (None, *slots)]
    with TemporaryDirectory() as folder:
        profile = Path(folder) / "profile.json"
        for num_slots in [n for n in slots if n][:-1][-1:]:  # the most that are not all
            for length in (_PROFILED * num_decode, num_decode):
                way = _decode_way(path, length, num_slots, profile)
            found.append(way)
    return found


def _decode_way(
    path: Path, num_decode: int, num_slots: int | None, profile: Path | None = None
) -> dict[str, Any]:
    context = 2 * (_WARM_UP + num_decode + 64)
    plan = plan_for(path, context, 0 if num_slots is None else _gpu_bytes())
    options: dict[str, Any] = {"device": "cpu"}
    name = "CPU only"
    if num_slots is not None:
        options = {"device": "cuda", "vram": vram_bytes(path, context, num_slots)}
        name = f"{num_slots} slots"
        if profile is not None:
            name, options["expert_profile"] = f"{name}, from a profile", profile
    way: dict[str, Any] = {"name": name, "num_slots": num_slots}
    with opened(path, context, **options) as llm:
        found = decode(llm, _WARM_UP, num_decode)
        if num_slots is not None:
            shares = profiled_decode(llm, 4)
            way["overlap"], way["inside"] = shares.overlap, shares.inside
            way["gpu_idle"], way["cpu_idle"] = shares.gpu_idle, shares.cpu_idle
            hits = Hits(found.hit_rate or 0.0, 1 - (found.hit_rate or 0.0))
            step = predict(plan, llm.gpu_rates[0], hits, context // 2)
            way["predicted"] = 1 / (step.total_s + found.uploads * _upload_s(plan, llm))
    return way | {
        "tokens_per_s": found.tokens_per_s,
        "p90_s": float(np.quantile(found.seconds, 0.9)),
        "hit_rate": found.hit_rate,
        "uploads": found.uploads,
    }


def _upload_s(plan: Plan, llm: Any) -> float:
    """Predicted time that decoding loses to an upload."""
    is_direct = llm.experts.prefill.registered_bytes > plan.problem.sizes.all_expert_bytes / 2
    return upload_s(plan.problem.sizes.experts[0], llm.gpu_rates[0], is_direct=is_direct)


def measure_prompts(path: Path, prompts: Sequence[int]) -> list[dict[str, Any]]:
    """Prompts whose experts cross the link, the first after loading apart; and on the CPU.

    With one VRAM slot: on a large GPU, all of a small model's experts would be there already. That
    leaves steps of 512 tokens, as a GPU of a few GB has them.
    """
    context = max(prompts) + 64
    vram = vram_bytes(path, context, 1)
    with opened(path, context, device="cuda", vram=vram) as llm:
        first = prefill(llm, prompts[0])
        with_gpu = [_median_prefill(llm, n) for n in prompts]
    with opened(path, context, device="cpu") as llm:
        prefill(llm, 64)
        alone = [prefill(llm, n) if n <= _MOST_CPU_TOKENS else None for n in prompts]
    return [
        {
            "num_tokens": n,
            "tokens_per_s": speed,
            "cpu_tokens_per_s": cpu,
            "first": None if i else first,
        }
        for i, (n, speed, cpu) in enumerate(zip(prompts, with_gpu, alone, strict=True))
    ]


def _median_prefill(llm: Any, num_tokens: int) -> float:
    speeds: list[float] = []
    while len(speeds) < _MOST_PROMPTS and sum(num_tokens / s for s in speeds) < _PROMPT_S:
        speeds.append(prefill(llm, num_tokens))
    return median(speeds)


def vram_bytes(path: Path, context_tokens: int, num_slots: int) -> int:
    """VRAM budget that the planner turns into `num_slots` slots, or into all that the model has.

    A smaller budget makes the planner shorten a prompt's steps, which leaves room for more slots:
    so the budget is planned again until it fits.
    """
    budget = _gpu_bytes()
    for _ in range(_MOST_PLANS):
        plan = plan_for(path, context_tokens, budget)
        if plan.num_vram_slots <= num_slots:
            return budget
        budget = _budget(plan, num_slots)
    raise click.ClickException(f"no VRAM budget leaves {num_slots} expert slots")


def _budget(plan: Plan, num_slots: int) -> int:
    """VRAM of the parts of this plan, and of `num_slots` slots."""
    assert plan.vram is not None
    c, one = plan.problem.sizes.config, plan.problem.sizes.slot_bytes
    room = num_slots  # for these, and for what the plan gives up for streamed experts
    while room - stream_buffers(c.hidden, c.expert_inter, room) < num_slots - MIN_BUFFERS:
        room += 1
    parts = sum(size for name, size in plan.vram.parts if name != "streamed experts")
    return parts + (MIN_BUFFERS + room) * one


def _gpu_bytes() -> int:
    return int(torch.cuda.get_device_properties(0).total_memory)
