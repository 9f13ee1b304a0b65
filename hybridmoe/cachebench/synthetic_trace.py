"""Synthetic routing traces with given locality: for tests, benchmarks and unrecorded shapes.

They show no model's behaviour, and their headers say so. In each layer, experts have Zipf
popularity in their own order; a token keeps each expert of the previous token with a given
probability and draws the rest by popularity; each domain has its own order. Early layers can be
more even.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hybridmoe.errors import ConfigError
from hybridmoe.experts.policy.jit import loop
from hybridmoe.experts.routing_trace import PHASES, Trace

__all__ = ["Locality", "synthetic_trace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Locality:
    """Locality of synthetic routing. Errors: ConfigError."""

    zipf: float = 0.7  # exponent of popularity in the last layer; 0 = uniform
    zipf_first: float = 0.2  # in the first layer; linear between
    reuse: float = 0.3  # probability of keeping an expert of the previous token
    num_domains: int = 1  # orders of popularity; conversations take turns
    conversation_tokens: int = 256

    def __post_init__(self) -> None:
        if not (0 <= self.zipf <= 8 and 0 <= self.zipf_first <= 8 and 0 <= self.reuse <= 1):
            raise ConfigError(f"{self}: expected exponents of 0 to 8 and reuse of 0 to 1")
        if self.num_domains < 1 or self.conversation_tokens < 1:
            raise ConfigError(f"{self}: expected at least one domain and token")


def synthetic_trace(
    num_tokens: int,
    *,
    num_layers: int = 60,
    num_experts: int = 384,
    top_k: int = 8,
    expert_bytes: int = 24_772_608,
    locality: Locality | None = None,
    prefill_tokens: int = 0,
    seed: int = 0,
) -> Trace:
    """Draw a trace, of Kimi K2's shape by default.

    prefill_tokens: of each conversation, in one step; the rest is decoded one by one.
    expert_bytes: K2's at Q4_K.
    """
    locality = locality or Locality()
    if not 1 <= top_k <= num_experts:
        raise ConfigError(f"top_k={top_k}: expected 1 to {num_experts}")
    random = np.random.default_rng(seed)
    exponents = np.linspace(locality.zipf_first, locality.zipf, num_layers)
    ranks = np.arange(1, num_experts + 1)
    chances = np.exp(-exponents[:, None] * np.log(ranks))  # (L, E)
    ladders = np.cumsum(chances / chances.sum(axis=1, keepdims=True), axis=1)
    ladders[:, -1] = 1.0
    tokens = np.arange(num_tokens)
    conversations = (tokens // locality.conversation_tokens).astype(np.int32)
    domains = conversations % locality.num_domains
    orders = np.argsort(random.random((locality.num_domains, num_layers, num_experts)), axis=2)
    ids = _choose(
        ladders, orders.astype(np.int16), domains, conversations, top_k, locality.reuse,
        int(random.integers(1, 2**31 - 1)),
    )  # fmt: skip
    is_prompt = tokens % locality.conversation_tokens < prefill_tokens
    begins = ~is_prompt | (tokens % locality.conversation_tokens == 0)
    steps = np.diff(np.append(np.flatnonzero(begins), num_tokens)).astype(np.int32)
    header: dict[str, Any] = {
        "version": 1,
        "source": "synthetic: not a model's routing",
        "model": None,
        "locality": asdict(locality),
        "seed": seed,
        "num_layers": num_layers,
        "num_experts": num_experts,
        "top_k": top_k,
        "expert_bytes": [expert_bytes] * num_layers,
        "phases": list(PHASES),
        "conversations": [
            {"id": i, "category": f"domain {i % locality.num_domains}"}
            for i in range(int(conversations[-1]) + 1 if num_tokens else 0)
        ],
    }
    weights = np.full(ids.shape, 1 / top_k, np.float16)
    return Trace(header, ids, weights, steps, conversations, (~is_prompt).astype(np.uint8))


@loop
def _choose(
    ladders: Any, orders: Any, domains: Any, conversations: Any, top_k: int, reuse: float, seed: int
) -> Any:
    num_layers, num_experts = ladders.shape
    num_tokens = len(domains)
    ids = np.empty((num_tokens, num_layers, top_k), np.int16)
    taken = np.full(num_experts, -1, np.int64)
    np.random.seed(seed)
    for token in range(num_tokens):
        goes_on = token > 0 and conversations[token] == conversations[token - 1]
        for layer in range(num_layers):
            mark = token * num_layers + layer
            count = 0
            if goes_on:
                for rank in range(top_k):
                    if np.random.random() < reuse:
                        expert = ids[token - 1, layer, rank]
                        ids[token, layer, count] = expert
                        taken[expert] = mark
                        count += 1
            while count < top_k:
                place = np.searchsorted(ladders[layer], np.random.random(), side="right")
                expert = orders[domains[token], layer, min(place, num_experts - 1)]
                if taken[expert] != mark:
                    taken[expert] = mark
                    ids[token, layer, count] = expert
                    count += 1
    return ids
