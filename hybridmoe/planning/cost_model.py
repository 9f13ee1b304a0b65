"""Cost model: seconds of a decoded token, for a plan on a machine. Prompts: prompt_cost.py.

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

from hybridmoe.config import Expansion, IndexerConfig, kv_row_bytes
from hybridmoe.errors import ConfigError
from hybridmoe.planning.layer_cost import Hits, cost, layer_times
from hybridmoe.planning.model_sizes import Part
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.rates import (
    FUSED_LAYER_S,
    FUSED_STEP_S,
    POOLED_LAYER_S,
    POOLED_STEP_S,
    GpuRates,
    Rates,
)

__all__ = [
    "HitCurve",
    "Hits",
    "Step",
    "attention_cost",
    "between_s",
    "decode",
    "disk_rate",
    "hits_of",
    "read_s",
]

HitCurve = Callable[[int], float]  # slots -> share of the chosen experts that are found

_EXPANDED_TOKENS = 64  # of a step: from here on a GPU expands keys and values
_SHORT_PRODUCTS = 1.7  # speed of a CPU's products of 16 bits, over float32: docs/log.md
_LOADING_HEADS = 9  # whose products take as long as a latent's conversion from 16 bits, a Zen 5
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


def decode(plan: Plan, rates: Rates, hits: Hits, position: int, *, is_pooled: bool = False) -> Step:
    """Cost of one token of one conversation, `position` tokens into it.

    is_pooled: other hosts have experts, too, so that the layers are not one native call.
    """
    sizes, gpu = plan.problem.sizes, rates.gpu if plan.vram else None
    c = sizes.config
    disk = disk_rate(rates, hits)
    head, dense = (sum(_one_token_s(parts, rates, gpu)) for parts in (sizes.head, sizes.dense))
    attention, kv_bytes = attention_cost(plan, rates, gpu, 1, position)
    shared = sum(_one_token_s(sizes.shared, rates, gpu)) if gpu else 0.0  # beside the experts
    dense -= shared
    num_moe = max(1, len(sizes.experts))
    experts = waits = 0.0
    known: dict[tuple[Part, ...], tuple[float, float]] = {}
    for parts in sizes.experts:
        if parts not in known:
            times = layer_times(parts, rates, gpu, disk)._replace(shared=shared / num_moe)
            known[parts] = cost(times, c.top_k, hits)
        busy, total = known[parts]
        experts += busy
        waits += total - busy
    chosen = sum(sizes.expert_bytes) * c.top_k
    core = float(sizes.dense_bytes + kv_bytes)
    row = sizes.embedding_bytes / c.vocab_size
    handing_over = len(sizes.experts) * gpu.hand_over_s if gpu else 0.0
    between = between_s(plan, rates)
    if is_pooled:
        between = _of_layers(plan, POOLED_STEP_S, POOLED_LAYER_S)
    elif not gpu and not hits.disk:
        between = _of_layers(plan, FUSED_STEP_S, FUSED_LAYER_S)
    return Step(
        1,
        {
            "dense weights": head + dense,
            "attention": attention,
            "experts": experts,
            "waiting for disk": waits,
            "between kernels": between + handing_over,
        },
        {
            "VRAM": (core if gpu else 0.0) + chosen * hits.vram,
            "RAM": (0.0 if gpu else core) + row + chosen * hits.ram,
            "disk": chosen * hits.disk,
        },
    )


def attention_cost(
    plan: Plan, rates: Rates, gpu: GpuRates | None, num_tokens: int, start: int
) -> tuple[float, float]:
    """Seconds, and bytes of KV cache read, of all layers: tokens from `start` on."""
    c, layers = plan.problem.sizes.config, plan.problem.sizes.layers
    end = start + num_tokens
    pairs = _attended(c.indexer, num_tokens, start)
    scoring, read = 0.0, float(end * plan.kv.token_bytes)
    is_sparse = c.indexer is not None and end > c.indexer.top_k
    if c.indexer is not None and is_sparse:
        num_full = sum(c.indexer.is_full[layer] for layer in layers)
        seen = num_tokens * (start + (num_tokens + 1) / 2)
        scoring = num_full * seen * 2 * c.indexer.num_heads * c.indexer.key_dim
        unread = max(0, end - num_tokens * c.indexer.top_k)  # positions, of latents
        read -= unread * len(layers) * kv_row_bytes(plan.kv.kv_type, c.latent_dim)
    if gpu:
        num_expanded = 0 if is_sparse or num_tokens < _EXPANDED_TOKENS else num_tokens
    else:
        rule = Expansion.of(c, rates.isa, plan.kv.kv_type)
        num_expanded = rule.chunk(start, num_tokens, rule.most_positions).num_expanded
    long = _attended(None, num_expanded, start)
    products = long * (c.qk_dim + c.v_dim)
    if num_expanded:
        products += (start + num_expanded) * (c.nope_dim + c.v_dim) * c.kv_lora_rank
    if not gpu:
        products /= _SHORT_PRODUCTS
    of_latent = _LATENT_SCORES * c.kv_lora_rank + c.rope_dim
    products += (pairs - long) * of_latent
    ops = 2 * c.num_heads * products
    if not gpu and num_tokens == 1:
        ops += 2 * _LOADING_HEADS * pairs * of_latent
    return max(
        (len(layers) * ops + scoring) / (gpu.ops if gpu else rates.attention_ops),
        read / (gpu.read if gpu else rates.dram),
    ), read


def _attended(indexer: IndexerConfig | None, num_tokens: int, start: int) -> float:
    """Pairs of a token and a position that it attends to, in one layer."""
    if indexer is None:
        return num_tokens * (start + (num_tokens + 1) / 2)
    num_dense = max(0, min(num_tokens, indexer.top_k - start))  # tokens that see top_k at most
    return num_dense * (start + (num_dense + 1) / 2) + (num_tokens - num_dense) * indexer.top_k


def between_s(plan: Plan, rates: Rates) -> float:
    """Seconds between the kernels of a step, whose layers' kernels are called one by one."""
    return _of_layers(plan, rates.step_s, rates.layer_s)


def _of_layers(plan: Plan, step_s: float, layer_s: float) -> float:
    return step_s + len(plan.problem.sizes.layers) * layer_s


def read_s(parts: tuple[Part, ...], rates: Rates, gpu: GpuRates | None) -> Iterator[float]:
    """Seconds to read each matrix once, for many tokens."""
    for part in parts:
        yield part.num_bytes / gpu.read if gpu else rates.token_s(part)


def _one_token_s(parts: tuple[Part, ...], rates: Rates, gpu: GpuRates | None) -> Iterator[float]:
    return map((gpu or rates).token_s, parts)


def disk_rate(rates: Rates, hits: Hits) -> float:
    """Bytes/s of the disk; infinite where nothing is read. Errors: ConfigError if it is unknown."""
    if rates.disk is None:
        if hits.disk > 1e-12:
            raise ConfigError(
                "the plan reads experts from disk, whose rate is unknown: give --disk-gbs"
            )
        return float("inf")
    return rates.disk
