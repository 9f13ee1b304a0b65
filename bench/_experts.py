"""One layer's routed experts at Kimi K2's shapes, and calls that find none of them in a cache."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bench.synthetic import fill_random
from hybridmoe.experts.routed_experts import ExpertWeights
from hybridmoe.gguf.quant_types import QuantType as Type
from hybridmoe.gguf.quant_types import tensor_bytes
from hybridmoe.kernels.ops import QuantMatrix

__all__ = [
    "HIDDEN", "INTER", "TOP_K", "Call", "Stack", "decode_calls", "expected_distinct",
    "expert_bytes", "prefill_calls",
]  # fmt: skip

HIDDEN, INTER, TOP_K = 7168, 2048, 8
_WEIGHTS = 3 * HIDDEN * INTER  # of an expert
_ALIGNMENT = 4096
_CALLS = 64  # prepared inputs, used in turn


def expert_bytes(type: Type) -> int:
    """Bytes of one expert: gate, up and down."""
    return 2 * tensor_bytes(type, (INTER, HIDDEN)) + tensor_bytes(type, (HIDDEN, INTER))


@dataclass(frozen=True, slots=True)
class Stack:
    """Experts with memory of their own."""

    type: Type
    weights: ExpertWeights
    num_experts: int

    @classmethod
    def random(cls, type: Type, memory_bytes: int) -> "Stack":
        """As many experts as fit, but enough for two tokens that share none."""
        num_experts = max(2 * TOP_K, memory_bytes // expert_bytes(type))
        rng = np.random.default_rng(int(type))

        def matrices(rows: int, cols: int) -> QuantMatrix:
            data = _aligned(num_experts * tensor_bytes(type, (rows, cols)))
            fill_random(data, rng, (num_experts, rows, cols), type)
            return QuantMatrix(data, type, num_experts, rows, cols)

        gate, up = matrices(INTER, HIDDEN), matrices(INTER, HIDDEN)
        return cls(type, ExpertWeights(gate, up, matrices(HIDDEN, INTER)), num_experts)


@dataclass(frozen=True, slots=True)
class Call:
    """The inputs of one forward."""

    x: torch.Tensor  # (T, H) f32
    ids: torch.Tensor  # (T, K) int32
    weights: torch.Tensor  # (T, K) f32

    @property
    def num_tokens(self) -> int:
        return len(self.x)

    @property
    def distinct(self) -> int:
        """Experts that the call reads."""
        return len(torch.unique(self.ids))

    @property
    def operations(self) -> int:
        """A multiply-add is two."""
        return 2 * _WEIGHTS * self.ids.numel()


def decode_calls(num_experts: int, num_tokens: int) -> Iterator[Call]:
    """Calls of a few tokens with experts drawn at random, without end.

    A call takes none of the experts of the calls before it, as far back as there are enough: what
    was read last is what a cache would still hold.
    """
    rng = np.random.default_rng(num_tokens)
    inputs = [_inputs(rng, num_tokens) for _ in range(_CALLS)]
    last_use = np.zeros(num_experts, np.int64)
    candidates = _num_candidates(num_experts, num_tokens)
    for i in _counter():
        age = last_use + rng.random(num_experts)  # random among equals
        longest_unused = np.argsort(age)[:candidates]
        ids = np.stack(
            [rng.choice(longest_unused, TOP_K, replace=False) for _ in range(num_tokens)]
        )
        last_use[ids] = i + 1
        yield _call(inputs[i % _CALLS], ids)


def expected_distinct(num_experts: int, num_tokens: int) -> float:
    """Experts that a call of `decode_calls` reads, in the mean."""
    candidates = _num_candidates(num_experts, num_tokens)
    return candidates * (1 - (1 - TOP_K / candidates) ** num_tokens)


def prefill_calls(num_experts: int, tokens_per_expert: int) -> Iterator[Call]:
    """Calls in which 16 experts get `tokens_per_expert` tokens each; other experts each call."""
    rng = np.random.default_rng(tokens_per_expert)
    active = 2 * TOP_K
    inputs = _inputs(rng, 2 * tokens_per_expert)
    order = rng.permutation(num_experts)
    for i in _counter():
        chosen = np.take(order, range(i * active, (i + 1) * active), mode="wrap")
        halves = [rng.permutation(chosen).reshape(2, TOP_K) for _ in range(tokens_per_expert)]
        yield _call(inputs, np.concatenate(halves))


def _num_candidates(num_experts: int, num_tokens: int) -> int:
    return max(TOP_K, min(num_experts // 2, num_tokens * TOP_K * 2))


def _counter() -> Iterator[int]:
    i = 0
    while True:
        yield i
        i += 1


def _inputs(rng: np.random.Generator, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.from_numpy(rng.standard_normal((num_tokens, HIDDEN), np.float32))
    weights = torch.from_numpy(rng.random((num_tokens, TOP_K), np.float32))
    return x, weights / weights.sum(1, keepdim=True)


def _call(inputs: tuple[torch.Tensor, torch.Tensor], ids: NDArray[np.int64]) -> Call:
    x, weights = inputs
    return Call(x, torch.from_numpy(ids.astype(np.int32)), weights)


def _aligned(num_bytes: int) -> NDArray[np.uint8]:
    memory = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + num_bytes]
