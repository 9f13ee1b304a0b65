"""Cost model of prompts: seconds of a prompt's steps, for a plan on a machine.

    step = dense products + attention + experts + time between kernels + waiting for the disk

The CPU, or CPU and GPU at once (prefill_split.py), compute the experts that any token of the step
chose. Those on disk are read once a step. In a long step the reads go on from layer to layer,
in file order (experts.disk.prompt_pass), so that only the longer of both counts: all of the reading
or all of the rest. Reading pauses in a layer where computing before its experts takes longer than
the streaming buffers take to fill.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hybridmoe.config import PREFILL_TOKENS, ModelConfig
from hybridmoe.errors import ConfigError
from hybridmoe.planning.cost_model import (
    Step,
    attention_cost,
    between_s,
    disk_rate,
    hits_of,
    read_s,
)
from hybridmoe.planning.layer_cost import Hits
from hybridmoe.planning.model_sizes import Part
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.prefill_split import costs_of, cpu_products_s, split
from hybridmoe.planning.rates import DENSE_OVERHEAD, PROMPT_OVERHEAD, GpuRates, Rates

__all__ = ["dense_products_s", "distinct_experts", "prompt"]

_CAUSES = ("dense weights", "attention", "experts", "waiting for disk", "between kernels")
Distinct = Callable[[int], float]  # tokens -> number of a layer's experts that they choose


class _Layer(NamedTuple):
    """Experts that a step touches in a layer."""

    num_bytes: float
    experts: float  # seconds to compute them
    reading: float  # seconds to read those on disk


def prompt(
    plan: Plan, rates: Rates, hits: Hits, num_tokens: int, distinct: Distinct | None = None
) -> Step:
    """Cost of a prompt of `num_tokens`, in steps as long as the plan has them.

    hits: of decoded tokens. The more of a layer's experts a step touches, the nearer what it finds
    is to the share that is resident. distinct: None = by uniform routing.
    """
    if num_tokens < 1:
        raise ConfigError(f"a prompt of {num_tokens} tokens: expected at least 1")
    gpu = rates.gpu if plan.vram else None
    seconds, read = dict.fromkeys(_CAUSES, 0.0), dict.fromkeys(("VRAM", "RAM", "disk"), 0.0)
    for start in range(0, num_tokens, plan.step_tokens):
        tokens = min(plan.step_tokens, num_tokens - start)
        step = _step(plan, rates, hits, start, tokens, distinct)
        for sums, found in ((seconds, step.seconds), (read, step.read_bytes)):
            for name, value in found.items():
                sums[name] += value
    head = sum(read_s(plan.problem.sizes.head, rates, gpu))
    seconds["dense weights"] += PROMPT_OVERHEAD * head
    return Step(num_tokens, seconds, read)


def _step(
    plan: Plan, rates: Rates, hits: Hits, start: int, tokens: int, distinct: Distinct | None
) -> Step:
    """Cost of one step: `tokens` of them, after `start` others."""
    sizes, gpu = plan.problem.sizes, rates.gpu if plan.vram else None
    c = sizes.config
    touched = distinct(tokens) if distinct else distinct_experts(c.num_experts, c.top_k, tokens)
    hits = _found(plan, hits, touched / max(1, c.num_experts))
    disk = disk_rate(rates, hits)
    attention, kv_bytes = attention_cost(plan, rates, gpu, tokens, start)
    dense = dense_products_s(sizes.dense, rates, gpu, tokens)
    layers = []
    known: dict[tuple[tuple[Part, ...], bool], _Layer] = {}
    for number, parts in zip(sizes.moe_layers, sizes.experts, strict=True):
        key = (parts, plan.streams_layer(number))
        if key not in known:
            busy = _experts_s(parts, rates, gpu if key[1] else None, hits, touched, tokens, c)
            size = touched * sum(part.num_bytes for part in parts)
            known[key] = _Layer(size, PROMPT_OVERHEAD * busy, size * hits.disk / disk)
        layers.append(known[key])
    seconds = {
        "dense weights": PROMPT_OVERHEAD * dense,
        "attention": PROMPT_OVERHEAD * attention,
        "experts": sum(layer.experts for layer in layers),
        "between kernels": between_s(plan, rates),
    }
    chosen = sum(layer.num_bytes for layer in layers)
    core = kv_bytes + sum(part.num_bytes for part in sizes.dense)
    before = (sum(seconds.values()) - seconds["experts"]) / len(sizes.layers)
    seconds["waiting for disk"] = _waiting_s(plan, disk, layers, before, tokens)
    return Step(
        tokens,
        seconds,
        {
            "VRAM": (core if gpu else 0.0) + chosen * hits.vram,
            "RAM": (0.0 if gpu else core) + chosen * hits.ram,
            "disk": chosen * hits.disk,
        },
    )


def _found(plan: Plan, hits: Hits, share: float) -> Hits:
    """Shares of the touched experts by tier, where a step touches a share of a layer's."""
    held = hits_of(plan)  # where all are touched, what is found is what is resident
    vram, ram = (
        (1 - share) * of_token + share * resident
        for of_token, resident in ((hits.vram, held.vram), (hits.ram, held.ram))
    )
    return Hits(vram, ram)


def _waiting_s(
    plan: Plan, disk: float, layers: Sequence[_Layer], before: float, num_tokens: int
) -> float:
    """Seconds that a step waits for its reads, beside computing.

    disk: bytes/s. before: seconds of a layer before its experts.
    """
    if num_tokens <= PREFILL_TOKENS or plan.disk_cache is None:
        return sum(max(0.0, layer.reading - layer.experts) for layer in layers)
    buffers = plan.disk_cache.streaming_bytes / disk
    pauses = sum(max(0.0, before - min(layer.reading, buffers)) for layer in layers)
    computing = sum(before + layer.experts for layer in layers)
    return max(0.0, sum(layer.reading for layer in layers) + pauses - computing)


def _experts_s(
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


def distinct_experts(num_experts: int, top_k: int, num_tokens: int) -> float:
    """Expected number of a layer's experts that the tokens choose, by uniform routing."""
    return num_experts * (1 - (1 - top_k / max(1, num_experts)) ** num_tokens)


def dense_products_s(
    parts: tuple[Part, ...], rates: Rates, gpu: GpuRates | None, num_tokens: float
) -> float:
    """Seconds of products with many tokens; reading and computing overlap."""
    if gpu is None:
        return DENSE_OVERHEAD * cpu_products_s(parts, rates, num_tokens)
    return sum(
        max(reading, 2 * part.num_params * num_tokens / gpu.ops)
        for part, reading in zip(parts, read_s(parts, rates, gpu), strict=True)
    )
