"""The best of the peers that are installed, on the same weights and calls."""

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from bench._expert_cases import Case
from bench._experts import Call, Stack, expert_bytes
from bench._ggml_experts import GgmlExperts
from hybridmoe.gguf.quant_types import QuantType as Type
from hybridmoe.kernels.ops import expert_ffn, num_threads

__all__ = ["Best", "best_of_peers", "installed_peers"]

_MAX_PREFILL = 256  # tokens of an expert; a peer's rate hardly changes beyond, its time does
_SETTLE_S = 0.2  # until a peer's threads have stopped spinning
_SAME = 0.05  # relative error that two roundings of the activations may make


@dataclass(frozen=True, slots=True)
class Best:
    """The fastest peer, and its figure in the unit of the case."""

    name: str
    rate: float


class _DifferentResultError(RuntimeError):
    """A peer computed something else: llama.cpp's Q1_0 has errors of 6 %, ours of 1 %."""


def installed_peers() -> tuple[str, ...]:
    """llama.cpp is a dependency; kt-kernel where it is installed (bench/README.md)."""
    found = importlib.util.find_spec("kt_kernel") is not None
    return ("llama.cpp", "kt-kernel") if found else ("llama.cpp",)


def best_of_peers(names: tuple[str, ...], stack: Stack, case: Case, budget_s: float) -> Best | None:
    """Measure each of them; None where none can run this case."""
    if case.is_prefill and case.tokens > _MAX_PREFILL:
        return None
    results = []
    if "llama.cpp" in names and stack.type <= Type.Q2_0:  # further numbers are ik_llama.cpp's
        try:
            results.append(_llama_cpp(stack, case, budget_s))
        except _DifferentResultError as error:
            print(f"{case.name}: not compared: {error}", file=sys.stderr)
    if "kt-kernel" in names:
        results += _kt_kernel(stack, case, budget_s)
    time.sleep(_SETTLE_S)
    return max(results, key=lambda best: best.rate, default=None)


def _llama_cpp(stack: Stack, case: Case, budget_s: float) -> Best:
    calls = case.calls(stack.num_experts)
    call = next(calls)
    peer = GgmlExperts(stack, call.num_tokens, num_threads())
    try:
        peer.forward(call)
        _check("llama.cpp", call, stack, peer.result(call.num_tokens))
        rate = _rate(peer.forward, case, stack.num_experts, expert_bytes(stack.type), budget_s)
        return Best("llama.cpp", rate)
    finally:
        peer.close()


def _kt_kernel(stack: Stack, case: Case, budget_s: float) -> Iterator[Best]:
    from bench._kt_experts import GGUF_TYPES, OWN_FORMATS, KtExperts

    max_tokens = next(case.calls(stack.num_experts)).num_tokens
    if stack.type.name in GGUF_TYPES:
        peer = KtExperts(stack, max_tokens, num_threads())
        call = next(case.calls(stack.num_experts))
        _check("kt-kernel", call, stack, peer.forward(call).float())
        rate = _rate(peer.forward, case, peer.num_experts, peer.expert_bytes, budget_s)
        yield Best(f"kt-kernel ({peer.how})", rate)
    if (own := OWN_FORMATS.get(stack.type.name)) is not None:
        peer = KtExperts(stack, max_tokens, num_threads(), own)
        rate = _rate(peer.forward, case, peer.num_experts, peer.expert_bytes, budget_s)
        yield Best(f"kt-kernel {own} ({peer.how})", rate)


def _rate(
    forward: Callable[[Call], object],
    case: Case,
    num_experts: int,
    bytes_of_expert: int,
    budget_s: float,
) -> float:
    time.sleep(_SETTLE_S)
    rate, _ = case.measure(
        forward,
        num_experts=num_experts,
        bytes_of_expert=bytes_of_expert,
        budget_s=budget_s,
        at_least=3,
    )
    return rate


def _check(name: str, call: Call, stack: Stack, got: torch.Tensor) -> None:
    """A peer that computed something else would be compared with nothing."""
    want = expert_ffn(call.x, call.ids, call.weights, *stack.weights)
    error = float((got - want).norm() / want.norm())
    if not error < _SAME:
        raise _DifferentResultError(
            f"{name} and ours differ by {error:.3f} on {stack.type.name} weights"
        )
