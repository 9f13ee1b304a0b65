"""Limits of the expert benchmark's rows."""

from dataclasses import replace

import pytest

from bench._expert_cases import FEW_TOKENS_BAR, Case
from bench._experts import TOP_K, decode_calls, expert_bytes
from hybridmoe.gguf.quant_types import QuantType as Type
from hybridmoe.hardware import isa
from hybridmoe.hardware.limits import Limits, Rate

LIMITS = Limits(
    read=Rate(40e9, 48e9), int8=Rate(1e12, 2e12), float32=Rate(2e11, 4e11),
    amx_int8=None, amx_bf16=None,
)  # fmt: skip


@pytest.mark.parametrize("tokens", [2, 8])
def test_arithmetic_allows_what_the_calls_multiply(tokens: int) -> None:
    case, num_experts = Case("avx512", Type.IQ1_S, False, tokens), 187
    calls = [call for call, _ in zip(decode_calls(num_experts, tokens), range(200), strict=False)]
    seconds = sum(call.operations for call in calls) / LIMITS.int8.all
    read = sum(call.distinct for call in calls) * expert_bytes(Type.IQ1_S)
    expected = read / seconds / 1e9
    assert case.arithmetic_limit(LIMITS, num_experts) == pytest.approx(expected, rel=0.03)


def test_tokens_of_an_expert_grow_as_there_are_fewer_of_them() -> None:
    case = Case("avx512", Type.Q8_0, False, 8)
    assert case.tokens_of_expert(2 * TOP_K) == 8
    assert 3.5 < case.tokens_of_expert(34) < 4.1
    assert case.tokens_of_expert(384) == pytest.approx(1.24, abs=0.01)


def test_the_bar_of_few_tokens_is_memory_s_whatever_arithmetic_allows() -> None:
    case = Case(isa.supported()[0], Type.IQ1_S, False, 8)
    slow = replace(LIMITS, int8=Rate(1e11, 2e11), amx_bf16=Rate(1e11, 2e11))
    assert case.arithmetic_limit(slow, 187) < FEW_TOKENS_BAR * case.limit(slow)
    assert case.bar(case.limit(slow), None) == pytest.approx(FEW_TOKENS_BAR * 48)
