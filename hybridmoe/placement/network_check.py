"""Computations of the kernels that hold no weights, at a model's sizes, run on two devices.

Tolerances are shares of a row's root mean square. Attention rounds queries, keys, values, softmax
weights and results to bfloat16, each by 2^-8 at most, at random. Scores are about one, so that this
moves results by a percent or two: a fifth of the tolerance at K2's sizes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor

from hybridmoe.config import IndexerConfig, ModelConfig
from hybridmoe.device.interface import Device, Pages, Tables
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.paged_mla import PAGE_TOKENS, Span, row_bytes

__all__ = ["NetworkCase", "network_cases"]

_CLOSE, _ROUNDED = 2.0**-6, 2.0**-3
_HEADS = 16  # at most: those of a program
_FEW_POSITIONS, _MOST_TOKENS = 24, 128  # that are selected; of all steps
_FIRST, _SECOND = (2, 0), (1,)  # pages of two sequences
# So long that keys and values are expanded; torch's attention differs after earlier positions.
_PROMPT = ((Span(64, 0, _FIRST),), (Span(64, 64, _FIRST),))
_DECODING = (  # steps
    (Span(40, 0, _FIRST), Span(3, 0, _SECOND)),
    (Span(40, 40, _FIRST),),
    (Span(1, 80, _FIRST), Span(1, 3, _SECOND)),
)

Random = Callable[..., Tensor]  # sizes -> normal numbers, on the CPU


@dataclass(frozen=True, slots=True)
class NetworkCase:
    """A computation on random numbers, whose result is on the CPU."""

    name: str
    given: str
    tolerance: float
    run: Callable[[Device, Random], Tensor]

    def error(self, cpu: Device, gpu: Device) -> float:
        """Return the largest difference of two devices, as a share of what is tolerated.

        Experts of nearly equal scores may change places; hardly so with both of two inputs.
        """
        first = self._error_with(1, cpu, gpu)
        return first if first <= 1 else min(first, self._error_with(2, cpu, gpu))

    def _error_with(self, seed: int, cpu: Device, gpu: Device) -> float:
        want, got = (self.run(device, _random(seed)).double() for device in (cpu, gpu))
        bound = self.tolerance * want.square().mean(-1, keepdim=True).sqrt() + 2.0**-100
        return float(((got - want).abs() / bound).nan_to_num(inf, inf).max())


def network_cases(c: ModelConfig, kv_type: str) -> list[NetworkCase]:
    """List the cases of a model."""

    def attention(
        steps: Sequence[Sequence[Span]], indexer: IndexerConfig | None = None
    ) -> Callable[[Device, Random], Tensor]:
        return lambda device, random: _attend(device, random, c, kv_type, steps, indexer)

    cache = f"{kv_type} KV cache of {c.kv_lora_rank} + {c.rope_dim}"
    cases = [
        NetworkCase("norms, rotation, gates", f"{c.hidden}", _CLOSE, lambda d, r: _rows(d, r, c)),
        NetworkCase("attention of a prompt", cache, _ROUNDED, attention(_PROMPT)),
        NetworkCase("attention of decoding", cache, _ROUNDED, attention(_DECODING)),
    ]
    if c.indexer is not None:
        given = f"{cache}, {c.indexer.num_heads} index heads of {c.indexer.key_dim}"
        run = attention(_DECODING, replace(c.indexer, top_k=_FEW_POSITIONS))
        cases.append(NetworkCase("sparse attention", given, _ROUNDED, run))
    if c.num_experts:
        given = f"{c.top_k} of {c.num_experts} experts"
        cases.append(NetworkCase("routing", given, _CLOSE, lambda d, r: _route(d, r, c)))
    return cases


def _random(seed: int) -> Random:
    generator = torch.Generator().manual_seed(seed)
    return lambda *sizes: torch.randn(sizes, generator=generator)


def _matrices(random: Random, batch: int, rows: int, cols: int) -> QuantMatrix:
    return QuantMatrix.from_array((random(batch, rows, cols) / cols**0.5).numpy())


def _rows(device: Device, random: Random, c: ModelConfig) -> Tensor:
    """Norms, one with a residual, rotation, and a feed-forward of float32 weights."""
    tokens, inter = 3, 64
    x, residual = (device.upload(random(tokens, c.hidden)) for _ in range(2))
    weight = device.upload(random(c.hidden))
    normed = device.rms_norm(x, weight, c.rms_eps, residual=residual)
    turned = device.rotate_(
        device.upload(random(tokens, 5, c.rope_dim)), device.upload(random(tokens, c.rope_dim))
    )
    gate, up, down = (
        device.matrix(_matrices(random, 1, *size), "self-check")
        for size in ((inter, c.hidden), (inter, c.hidden), (c.hidden, inter))
    )
    mixed = device.dense_ffn(normed, gate, up, down)
    latents = [
        device.rms_norm(device.upload(random(tokens, n)), device.upload(random(n)), c.rms_eps)
        for n in (c.q_lora_rank, c.kv_lora_rank)
        if n
    ]
    results = (x, normed, turned, mixed, *latents)
    parts = [device.to_host(t).reshape(tokens, -1) for t in results]
    return torch.cat([part / part.square().mean(1, keepdim=True).sqrt() for part in parts], 1)


def _attend(
    device: Device,
    random: Random,
    c: ModelConfig,
    kv_type: str,
    steps: Sequence[Sequence[Span]],
    indexer: IndexerConfig | None,
) -> Tensor:
    """Results of steps, (tokens of all, heads, V). indexer: None = attention to all positions."""
    heads = min(c.num_heads, _HEADS)
    size = 1 / (c.softmax_scale * c.latent_dim**0.5)  # of queries: scores are about one
    k_b = device.matrix(_matrices(random, heads, c.kv_lora_rank, c.nope_dim), "self-check")
    v_b = device.matrix(_matrices(random, heads, c.v_dim, c.kv_lora_rank), "self-check")
    num_pages = len(_FIRST) + len(_SECOND)

    def pages_of(dim: int) -> Pages:
        data = device.empty_bytes(num_pages, PAGE_TOKENS, row_bytes(kv_type, dim))
        return device.pages(data.fill_(0xFF), kv_type, dim)

    pages, selected = pages_of(c.latent_dim), None
    keys = None if indexer is None else _IndexKeys(device, random, indexer, pages_of)
    results = []
    for spans in steps:
        tables = device.tables(spans)
        device.store_kv(device.upload(random(tables.num_tokens, c.latent_dim)), pages, tables)
        queries = device.upload(size * random(tables.num_tokens, heads, c.qk_dim))
        q_nope, q_rope = queries[..., : c.nope_dim], queries[..., c.nope_dim :]
        if keys is not None:
            selected = keys.select(tables)
        out = device.attend(q_nope, q_rope, k_b, v_b, pages, tables, c.softmax_scale, selected)
        results.append(device.to_host(out))
    return torch.cat(results)


class _IndexKeys:
    """Index keys of one direction, in sizes so far apart that rounding changes no selection."""

    def __init__(
        self,
        device: Device,
        random: Random,
        indexer: IndexerConfig,
        pages_of: Callable[[int], Pages],
    ) -> None:
        self._device, self._random, self._config = device, random, indexer
        self._pages = pages_of(indexer.key_dim)
        self._sizes = 1.05 ** random(_MOST_TOKENS).argsort()
        self._direction = random(indexer.key_dim)
        self._num_stored = 0

    def select(self, tables: Tables) -> Tensor:
        """Store the keys of a step's tokens, and select for them."""
        device, random, c, tokens = self._device, self._random, self._config, tables.num_tokens
        sizes = self._sizes[self._num_stored : self._num_stored + tokens]
        self._num_stored += tokens
        device.store_kv(device.upload(sizes[:, None] * self._direction), self._pages, tables)
        queries = device.upload(random(tokens, c.num_heads, c.key_dim))
        weights = device.upload(random(tokens, c.num_heads).abs())
        return device.select_positions(queries, weights, self._pages, tables, c.top_k)


def _route(device: Device, random: Random, c: ModelConfig) -> Tensor:
    """Weights (T, E) of the chosen experts, zero for others."""
    tokens = 4
    bias = device.upload(0.1 * random(c.num_experts)) if c.routing.is_sigmoid else None
    logits = device.upload(random(tokens, c.num_experts))
    ids, weights = (device.to_host(t) for t in device.route(logits, bias, c.routing))
    assert ids.ge(0).all() and ids.lt(c.num_experts).all(), "experts that do not exist"
    return torch.zeros(tokens, c.num_experts).scatter_(1, ids.long(), weights)
