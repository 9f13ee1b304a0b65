"""Cost model: seconds of a token and of a prompt, for a plan on a machine.

A token's time is a sum over layers, since each needs the one before; inside a layer the GPU,
the CPU and the disk work at once, so that the slowest counts:

    layer    dense + attention + hand-over to the CPU and back
             + max(experts in VRAM + shared expert, experts on the CPU, reads from disk)
    token    sum of layers + output head + launches and Python's time

A layer's experts are in layer_cost.py. The formulas are derived in docs/plan.md; what they assume
of routing is `Hits`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hybridmoe.config import ModelConfig
from hybridmoe.errors import ConfigError
from hybridmoe.planning.layer_cost import Hits, cost, layer_times
from hybridmoe.planning.model_sizes import Part
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.prefill_split import costs_of, cpu_products_s, split
from hybridmoe.planning.rates import DENSE_OVERHEAD, LAYER_S, PROMPT_OVERHEAD, GpuRates, Rates

__all__ = ["Hits", "Step", "decode", "hits_of", "prompt"]

HitCurve = Callable[[int], float]  # slots -> share of the chosen experts that are found

_EXPANDED_TOKENS = 64  # of a step: from here on a GPU expands keys and values
_LATENT_SCORES = 2  # multiplications with a latent: one for its score, one for its value


@dataclass(frozen=True, slots=True)
class Step:
    """Cost of tokens that are computed together."""

    num_tokens: int
    seconds: dict[str, float]  # by cause; their sum is the time
    read_bytes: dict[str, float]  # by tier

    @property
    def total_s(self) -> float:
        """Time of all tokens."""
        return sum(self.seconds.values())

    @property
    def tokens_per_s(self) -> float:
        """Rate; infinite for no time."""
        return self.num_tokens / self.total_s if self.total_s else float("inf")


def hits_of(
    plan: Plan,
    curve: HitCurve | None = None,
    *,
    vram_rate: float | None = None,
    hit_rate: float | None = None,
) -> Hits:
    """Predict the hits of a plan's slots.

    curve: hit rate over slots; without it, routing is taken to be uniform: any cache then finds as
    large a share as it holds, the floor. vram_rate: share of the chosen experts found in VRAM.
    hit_rate: share found in VRAM or RAM. A cache that holds all experts finds all.
    """
    total = plan.num_experts
    if not total:
        return Hits(0.0, 1.0)
    if curve is None:

        def curve(slots: int) -> float:
            return slots / total

    in_vram = plan.num_vram_slots
    held = in_vram + plan.num_ram_experts
    vram = vram_rate if vram_rate is not None and in_vram else curve(in_vram) if in_vram else 0.0
    if held >= total:
        return Hits(vram, 1.0 - vram)
    found = curve(held) if hit_rate is None else hit_rate
    if not 0 <= found <= 1:
        raise ConfigError(f"hit rate {found:g}: expected a number from 0 to 1")
    return Hits(min(vram, found), max(0.0, found - vram))


def decode(plan: Plan, rates: Rates, hits: Hits, position: int, *, num_deferred: int = 0) -> Step:
    """Cost of one token of one conversation, `position` tokens into it.

    num_deferred: of a token's experts, those added one layer later (`--defer`).
    """
    sizes, gpu = plan.problem.sizes, rates.gpu if plan.vram else None
    c = sizes.config
    disk = _disk(rates, hits)
    head, dense = (sum(_one_token_s(parts, rates, gpu)) for parts in (sizes.head, sizes.dense))
    attention, kv_bytes = _attention(plan, rates, gpu, 1, position)
    shared = sum(_one_token_s(sizes.shared, rates, gpu)) if gpu else 0.0  # beside the experts
    dense -= shared
    num_layers, num_moe = len(sizes.layers), max(1, len(sizes.experts))
    experts = waits = 0.0
    known: dict[tuple[Part, ...], tuple[float, float]] = {}
    for parts in sizes.experts:
        if parts not in known:
            times = layer_times(parts, rates, gpu, disk)._replace(
                shared=shared / num_moe, before=(dense + attention) / num_layers if gpu else 0.0
            )
            known[parts] = cost(times, c.top_k, hits, num_deferred if gpu else 0)
        busy, total = known[parts]
        experts += busy
        waits += total - busy
    chosen = sum(sizes.expert_bytes) * c.top_k
    core = float(sizes.dense_bytes + kv_bytes)
    row = sizes.embedding_bytes / c.vocab_size
    handing_over = len(sizes.experts) * gpu.hand_over_s if gpu else 0.0
    return Step(
        1,
        {
            "dense weights": head + dense,
            "attention": attention,
            "experts": experts,
            "waiting for disk": waits,
            "between kernels": _between_s(plan, rates) + handing_over,
        },
        {
            "VRAM": (core if gpu else 0.0) + chosen * hits.vram,
            "RAM": (0.0 if gpu else core) + row + chosen * hits.ram,
            "disk": chosen * hits.disk,
        },
    )


def prompt(
    plan: Plan,
    rates: Rates,
    hits: Hits,
    num_tokens: int,
    distinct: Callable[[int], float] | None = None,
) -> Step:
    """Cost of a prompt of `num_tokens`, in steps as long as the plan has them.

    distinct: number of a layer's experts that a number of tokens choose; None: by uniform routing.
    """
    if num_tokens < 1:
        raise ConfigError(f"a prompt of {num_tokens} tokens: expected at least 1")
    sizes, gpu = plan.problem.sizes, rates.gpu if plan.vram else None
    c = sizes.config
    seconds = dict.fromkeys(
        ("dense weights", "attention", "experts", "waiting for disk", "between kernels"), 0.0
    )
    read = dict.fromkeys(("VRAM", "RAM", "disk"), 0.0)
    disk = _disk(rates, hits)
    known: dict[tuple[tuple[Part, ...], bool, int], float] = {}
    for start in range(0, num_tokens, plan.step_tokens):
        tokens = min(plan.step_tokens, num_tokens - start)
        core = sizes.dense
        seconds["dense weights"] += _dense_products_s(core, rates, gpu, tokens)
        attention, kv_bytes = _attention(plan, rates, gpu, tokens, start)
        seconds["attention"] += attention
        seconds["between kernels"] += _between_s(plan, rates)
        read["VRAM" if gpu else "RAM"] += kv_bytes + sum(part.num_bytes for part in core)
        touched = distinct(tokens) if distinct else _distinct(c.num_experts, c.top_k, tokens)
        for layer, parts in zip(sizes.moe_layers, sizes.experts, strict=True):
            size = touched * sum(part.num_bytes for part in parts)
            key = (parts, plan.streams_layer(layer), tokens)
            if key not in known:
                by = gpu if plan.streams_layer(layer) else None
                known[key] = _experts_of_step(parts, rates, by, hits, touched, tokens, c)
            busy = known[key]
            reading = size * hits.disk / disk if hits.disk else 0.0
            seconds["experts"] += busy
            seconds["waiting for disk"] += max(0.0, reading - busy)
            read["VRAM"] += size * hits.vram
            read["RAM"] += size * hits.ram
            read["disk"] += size * hits.disk
    seconds["dense weights"] += sum(_read_s(sizes.head, rates, gpu))
    for what in ("dense weights", "attention", "experts"):
        seconds[what] *= PROMPT_OVERHEAD
    return Step(num_tokens, seconds, read)


def _experts_of_step(
    parts: tuple[Part, ...],
    rates: Rates,
    gpu: GpuRates | None,
    hits: Hits,
    touched: float,
    num_tokens: int,
    c: ModelConfig,
) -> float:
    """Seconds of one layer's experts for many tokens, as many of each expert.

    gpu: None where the CPU computes all. Else split as experts.gpu does: prefill_split.py.
    """
    num_pairs = num_tokens * c.top_k
    if gpu is None:
        return touched * cpu_products_s(parts, rates, num_pairs / touched)
    num_experts = max(1, round(touched))
    counts = [num_pairs / num_experts] * num_experts
    costs = costs_of(parts, rates, gpu, counts, 4 * c.hidden * num_tokens)
    return split(costs, np.arange(num_experts) < round(hits.vram * num_experts)).seconds


def _attention(
    plan: Plan, rates: Rates, gpu: GpuRates | None, num_tokens: int, start: int
) -> tuple[float, float]:
    """Seconds, and bytes of KV cache read, of all layers: tokens from `start` on."""
    c, num_layers = plan.problem.sizes.config, len(plan.problem.sizes.layers)
    pairs = num_tokens * (start + (num_tokens + 1) / 2)
    if gpu and num_tokens >= _EXPANDED_TOKENS:
        expanding = 2 * c.kv_lora_rank * (c.nope_dim + c.v_dim) * (start + num_tokens)
        ops = c.num_heads * (pairs * 2 * (c.qk_dim + c.v_dim) + expanding)
    else:
        ops = c.num_heads * pairs * 2 * (_LATENT_SCORES * c.kv_lora_rank + c.rope_dim)
    read = (start + num_tokens) * plan.kv.token_bytes
    return max(
        num_layers * ops / (gpu.ops if gpu else rates.attention_ops),
        read / (gpu.read if gpu else rates.dram),
    ), read


def _between_s(plan: Plan, rates: Rates) -> float:
    """Seconds between the kernels of a step. Beside a RAM cache, a GPU runs layer by layer."""
    is_by_layer = plan.vram is not None and plan.disk_cache is not None
    layer_s = max(LAYER_S, rates.layer_s) if is_by_layer else rates.layer_s
    return rates.step_s + len(plan.problem.sizes.layers) * layer_s


def _distinct(num_experts: int, top_k: int, num_tokens: int) -> float:
    """Expected number of a layer's experts that the tokens choose, by uniform routing."""
    return num_experts * (1 - (1 - top_k / max(1, num_experts)) ** num_tokens)


def _read_s(parts: tuple[Part, ...], rates: Rates, gpu: GpuRates | None) -> Iterator[float]:
    for part in parts:
        yield part.num_bytes / (gpu.read if gpu else rates.decode_bytes(part.type))


def _one_token_s(parts: tuple[Part, ...], rates: Rates, gpu: GpuRates | None) -> Iterator[float]:
    for part in parts:
        yield part.num_bytes / (gpu if gpu else rates).decode_bytes(part.type)


def _dense_products_s(
    parts: tuple[Part, ...], rates: Rates, gpu: GpuRates | None, num_tokens: float
) -> float:
    """Seconds of products with many tokens; reading and computing overlap."""
    if gpu is None:
        return DENSE_OVERHEAD * cpu_products_s(parts, rates, num_tokens)
    return sum(
        max(reading, 2 * part.num_params * num_tokens / gpu.ops)
        for part, reading in zip(parts, _read_s(parts, rates, gpu), strict=True)
    )


def _disk(rates: Rates, hits: Hits) -> float:
    if rates.disk is None:
        if hits.disk > 1e-12:
            raise ConfigError(
                "the plan reads experts from disk, whose rate is unknown: give --disk-gbs"
            )
        return float("inf")
    return rates.disk
