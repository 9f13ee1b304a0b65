"""Decode of given routing over a simulated card, RAM and a disk: the experts of each layer in turn.

What the card has of every token takes the time of its bytes. The routing is synthetic, with the
repetition that `LOCALITY` says; the first half of it is only counted, for a profile of hot experts.
"""

import gc
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bench._harness import Row, bar
from bench._rates import RateSampler, Sample
from bench._simulated_card import CardRates, SimulatedCard
from hybridmoe.cachebench.policies.registry import make_policy
from hybridmoe.cachebench.ram_policy import RamPolicy
from hybridmoe.cachebench.simulator import hottest_keys, requests_of
from hybridmoe.cachebench.synthetic_trace import Locality, synthetic_trace
from hybridmoe.cachebench.tiers import Rates, TierOutcome, simulate_tiers
from hybridmoe.config import ModelConfig
from hybridmoe.experts.disk.cached_experts import CachedExperts
from hybridmoe.experts.disk.expert_layout import ExpertLayout
from hybridmoe.experts.disk.file_reader import FileReader
from hybridmoe.experts.gpu.expert_cache import DEFAULT_VRAM_POLICY
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.experts.routing_trace import Trace
from hybridmoe.experts.stats import ExpertCounters
from hybridmoe.gguf.outline import read_outline
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.hardware import isa
from hybridmoe.model.weights import Weights, routed_experts
from hybridmoe.planning.disk_cache_plan import plan_disk_cache
from hybridmoe.planning.layer_cost import layer_times
from hybridmoe.planning.model_sizes import Part, sizes_of
from hybridmoe.planning.rates import rates_of

__all__ = ["LOCALITY", "Decoded", "card_rows", "decode_splits", "decode_with_card"]

# Of the experts of a token, three of ten are kept by the next one, as many as published traces of
# models with many small experts have at least; popularity differs more in later layers.
LOCALITY = Locality(zipf=0.9, zipf_first=0.3, reuse=0.3, conversation_tokens=1 << 30)
_PROFILE_TOKENS, _RUN_IN_TOKENS = 600, 12
_SAMPLED_TOKENS = 4  # between two samples of rates
_UPLOADS_PER_STEP = 1
_VRAM_SHARE, _VRAM_TIMES = 0.1, 1.25  # slots that are compared with none, and what they must bring


class Decoded(NamedTuple):
    """Tokens of one split."""

    vram_slots: int
    ram_slots: int
    seconds: list[float]  # of each token
    predicted: list[float]
    found: list[float]  # shares of the experts used: in VRAM, in RAM, on disk
    equals_simulated: bool  # all counters


def decode_with_card(
    path: Path, budget: int, vram_share: float, card: CardRates, num_tokens: int
) -> Decoded:
    """Decode with a share of all experts in VRAM, and `budget` bytes of RAM for others."""
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_metadata(file.metadata)
        experts = routed_experts(Weights(file), config)
        layout = ExpertLayout(file, experts)
        shape = experts.cache_shape(round(vram_share * experts.num_layers * experts.num_experts))
        plan = plan_disk_cache(
            budget,
            sizes_of(file.tensors.values(), config).buffer_parts,
            shape.num_experts,
            shape.top_k,
            num_leaving=2 * _UPLOADS_PER_STEP if shape.num_slots else 0,
        )
        trace = synthetic_trace(
            _PROFILE_TOKENS + _RUN_IN_TOKENS + num_tokens,
            num_layers=shape.num_layers,
            num_experts=shape.num_experts,
            top_k=shape.top_k,
            locality=LOCALITY,
            seed=1,
        )
        hot = hottest_keys(requests_of(_tokens(trace, 0, _PROFILE_TOKENS)))
        run = _tokens(trace, _PROFILE_TOKENS, trace.num_tokens)
        ram = CachedExperts(experts, layout, FileReader(file.parts, file.states), plan)
        tiers = SimulatedCard(
            ram, experts, shape.num_slots, card, uploads_per_step=_UPLOADS_PER_STEP
        )
        tiers.cache.warm(hot)
        rest = hot[~np.isin(hot, tiers.cache.kept())]
        ram.load_hot(rest, lambda num_bytes: None)
        tiers.cache.fill()
        seconds, samples = _run(tiers, experts, run, RateSampler(path))

        sizes = [weights.expert_bytes for weights in experts.by_index]

        def simulated(rates: Rates) -> TierOutcome:
            vram = make_policy(DEFAULT_VRAM_POLICY, shape)
            slots = [pool.num_slots for pool in plan.pools]
            below = RamPolicy(shape, slots, plan.pool_of_layer)
            vram.warm(hot)
            below.warm(rest)
            return simulate_tiers(vram, below, requests_of(run), rates, sizes)

        predicted = np.zeros(len(seconds))
        for i, (before, after) in enumerate(pairwise(samples)):
            block = slice(i * _SAMPLED_TOKENS, (i + 1) * _SAMPLED_TOKENS)
            rates = _rates(before.mean(after), experts.by_index[0].parts, card)
            predicted[block] = simulated(rates).seconds[block]
        predicted += card.dense_s * shape.num_layers
        counters = tiers.stats().counters, ram.stats().counters
        expected = simulated(Rates(1.0, 1.0, 1.0, 1.0)).counters()
        tiers.close()
        used = counters[0].hits + counters[0].misses
        return Decoded(
            shape.num_slots,
            plan.num_slots,
            seconds[_RUN_IN_TOKENS:],
            predicted[_RUN_IN_TOKENS:].tolist(),
            [c / used for c in (counters[0].hits, counters[1].hits, counters[1].misses)],
            all(_same(ours, theirs) for ours, theirs in zip(counters, expected, strict=True)),
        )


def decode_splits(
    path: Path, budget: int, num_tokens: int, vram: float, link: float
) -> dict[str, list[dict[str, Any]]]:
    """Decode without slots, with them twice, and without them again: the disk may change."""
    outline = read_outline(path)
    sizes = sizes_of(outline.tensors, outline.config)
    dense_s = sizes.dense_bytes / len(sizes.layers) / vram
    rates = CardRates(vram=vram, link=link, dense_s=dense_s)
    shares = (0.0, _VRAM_SHARE, _VRAM_SHARE, 0.0)
    runs = []
    for share in shares:
        runs.append(decode_with_card(path, budget, share, rates, num_tokens))
        gc.collect()  # its buffers, before the next one's
    return {"runs": [run._asdict() for run in runs]}


def card_rows(card: dict[str, Any], predicted_share: float) -> list[Row]:
    """Rows on what `decode_splits` returned. predicted_share: of the model's speed to be held."""
    runs = [Decoded(**run) for run in card["runs"]]
    rows: list[Row] = []
    without: float | None = None
    for has_slots in (False, True):
        own = [run for run in runs if (run.vram_slots > 0) == has_slots]
        speed, predicted = (
            1 / float(np.mean([s for run in own for s in seconds(run)]))
            for seconds in (lambda run: run.seconds, lambda run: run.predicted)
        )
        least = bar(limit=predicted, share=predicted_share, peer=without, times=_VRAM_TIMES)
        found = ", ".join(f"{100 * share:.0f}" for share in own[0].found)
        name = f"simulated card, {own[0].vram_slots} slots in VRAM"
        note = f"found in VRAM, RAM, on disk: {found} %"
        rows.append(Row(name, speed, "tok/s", predicted, without, least, note=note))
        without = speed
    same = float(all(run.equals_simulated for run in runs))
    return [*rows, Row("counters equal to the simulator's", same, "", bar=1.0)]


def _run(
    tiers: SimulatedCard, experts: RoutedExperts, trace: Trace, sampler: RateSampler
) -> tuple[list[float], list[Sample]]:
    """Decode a trace token by token. Returns seconds of each, and rates around every few."""
    seconds, samples = [], [sampler.sample()]
    x = torch.randn(1, experts.hidden)
    weights = torch.full((1, experts.top_k), 1 / experts.top_k)
    for i, rows in enumerate(trace.ids.astype(np.int32)):  # (L, K)
        ids = torch.from_numpy(np.ascontiguousarray(rows))
        started = time.perf_counter()
        tiers.begin_step(1)
        for layer, chosen in zip(experts.numbers, ids, strict=True):
            tiers.submit(layer, x, chosen[None], weights).result()
        tiers.end_step()
        seconds.append(time.perf_counter() - started)
        if (i + 1) % _SAMPLED_TOKENS == 0 or i + 1 == trace.num_tokens:
            samples.append(sampler.sample())
    return seconds, samples


def _tokens(trace: Trace, first: int, end: int) -> Trace:
    """Cut a trace of single tokens."""
    part = slice(first, end)
    return Trace(
        trace.header, trace.ids[part], trace.weights[part], trace.steps[part],
        trace.conversations[part], trace.phases[part],
    )  # fmt: skip


def _rates(sample: Sample, parts: Sequence[Part], card: CardRates) -> Rates:
    """Rates of experts, from those of memory and disk."""
    limits = rates_of(isa.active(), dram=sample.dram, peak_ops=1.0)  # products are not asked for
    times = layer_times(tuple(parts), limits, None, sample.disk)
    num_bytes = sum(part.num_bytes for part in parts)
    return Rates(vram=card.vram, ram=num_bytes / times.on_cpu, disk=sample.disk, link=card.link)


def _same(ours: ExpertCounters, theirs: ExpertCounters) -> bool:
    names = ("hits", "misses", "uploads", "evictions", "promoted", "returned")
    return all(getattr(ours, name) == getattr(theirs, name) for name in names)
