"""Rows of the expert benchmark: each with its measurement, the machine's limit, and its bar."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import mean

from bench._experts import Call, decode_calls, expert_bytes, prefill_calls
from bench._harness import Times, bar, repeat
from hybridmoe import _C
from hybridmoe.gguf.quant_types import QuantType as Type
from hybridmoe.hardware import isa
from hybridmoe.hardware.limits import Limits

__all__ = ["TYPES", "Case", "all_cases", "promised_cases"]

TYPES = tuple(Type(number) for number in _C.TYPES)
PREFILL = (16, 64, 256, 512)  # tokens of each expert

# Least shares of the limit.
DECODE_BARS = {
    **dict.fromkeys(("Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0"), 0.8),
    **dict.fromkeys(("Q2_K", "Q3_K", "IQ4_XS", "IQ4_NL", "MXFP4"), 0.6),
    **dict.fromkeys(("IQ4_K", "IQ4_KS", "IQ5_K", "IQ5_KS", "IQ6_K", "Q6_0"), 0.6),
    **dict.fromkeys(
        ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), 0.3
    ),
}  # fmt: skip
DECODE_4_BARS = {"Q4_K": 0.7}
PREFILL_TYPES = ("Q4_K", "Q8_0")
PREFILL_BARS = {"amx": {64: 0.4, 256: 0.6, 512: 0.6}, "avx512": {64: 0.6, 256: 0.6, 512: 0.6}}


@dataclass(frozen=True, slots=True)
class Case:
    """One row: `tokens` are of the call in decode, of each expert in prefill."""

    isa: str
    type: Type
    is_prefill: bool
    tokens: int

    @property
    def name(self) -> str:
        what = (
            f"prefill, {self.tokens} tokens an expert"
            if self.is_prefill
            else f"decode, {self.tokens} token{'s' if self.tokens > 1 else ''}"
        )
        return f"{self.isa} {self.type.name} {what}"

    @property
    def unit(self) -> str:
        return "TOPS" if self.is_prefill else "GB/s"

    def calls(self, num_experts: int) -> Iterator[Call]:
        return (prefill_calls if self.is_prefill else decode_calls)(num_experts, self.tokens)

    def measure(
        self,
        forward: Callable[[Call], object],
        *,
        num_experts: int,
        bytes_of_expert: int,
        budget_s: float,
        at_least: int,
    ) -> tuple[float, Times]:
        """The figure of a row, TOPS or GB/s, computed by `forward`."""
        amounts = []

        def calls() -> Iterator[Call]:
            for call in self.calls(num_experts):
                amounts.append(
                    call.operations if self.is_prefill else call.distinct * bytes_of_expert
                )
                yield call

        times = repeat(forward, calls(), budget_s=budget_s, at_least=at_least)
        return mean(amounts) / times.median / (1e12 if self.is_prefill else 1e9), times

    def limit(self, limits: Limits) -> float:
        """The machine's limit in the same unit; for prefill, arithmetic alone."""
        if not self.is_prefill:
            return limits.read.all / 1e9
        is_quantized = _C.TYPES[self.type][2]
        rate = limits.int8 if is_quantized else limits.float32
        if self.isa == "amx" and is_quantized:
            rate = getattr(limits, "amx_int8", None) or rate
        elif self.isa == "amx" and self.type == Type.BF16:
            rate = getattr(limits, "amx_bf16", None) or rate
        return rate.all / 1e12

    def memory_limit(self, limits: Limits) -> float:
        """TOPS that reading each expert once allows."""
        weights = expert_bytes(Type.F32) // 4
        return 2 * weights * self.tokens / expert_bytes(self.type) * limits.read.all / 1e12

    def bar(self, limit: float, peer: float | None) -> float | None:
        """The least value that passes, where the project promises one."""
        name = self.type.name
        if self.is_prefill:
            shares = PREFILL_BARS.get(self.isa, {}) if name in PREFILL_TYPES else {}
            return bar(limit=limit, share=shares.get(self.tokens, 0.0))
        if self.isa != isa.supported()[0]:
            return None
        share = (DECODE_BARS if self.tokens == 1 else DECODE_4_BARS).get(name, 0.0)
        must_lead = name.startswith(("IQ1", "IQ2", "IQ3")) and self.tokens == 1
        return bar(limit=limit, share=share, peer=peer, times=1.0 if must_lead else 0.0)


def promised_cases(active: str) -> list[Case]:
    """One token of every type, and what has a bar."""
    cases = [Case(active, type, False, 1) for type in TYPES]
    cases.append(Case(active, Type.Q4_K, False, 4))
    names = dict.fromkeys((active, "amx", "avx512"))  # in this order, each once
    for name in PREFILL_TYPES:
        for isa_name in names:
            tokens = PREFILL if isa_name == active else PREFILL_BARS[isa_name]
            cases += [Case(isa_name, Type[name], True, n) for n in tokens]
    return cases


def all_cases(names: list[str], types: list[Type], with_longest: bool) -> list[Case]:
    """Types x regimes x instruction sets; the longest prefill tells little that is new."""
    prefill = PREFILL if with_longest else PREFILL[:-1]
    regimes = [(False, 1), (False, 4), *((True, n) for n in prefill)]
    return [Case(name, type, *regime) for type in types for name in names for regime in regimes]
