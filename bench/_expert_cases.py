"""Rows of the expert benchmark: each with its measurement, the machine's limit, and its bar."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import mean

from bench._experts import (
    TOP_K,
    Call,
    decode_calls,
    expected_distinct,
    expert_bytes,
    prefill_calls,
)
from bench._harness import Times, bar, repeat
from hybridmoe import _C
from hybridmoe.gguf.quant_types import QuantType as Type
from hybridmoe.hardware import isa
from hybridmoe.hardware.limits import Limits

__all__ = ["TYPES", "Case", "all_cases", "promised_cases"]

TYPES = tuple(Type(number) for number in _C.TYPES)
PREFILL = (16, 64, 256)  # tokens of each expert
LONGEST_PREFILL = 512
SETS = ("amx", "avx512", "avx_vnni", "avx2")  # with bars of their own in prefill

WIDE = ("Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0")
CODEBOOKS = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
IK = (
    "IQ2_K", "IQ2_KS", "IQ2_KL", "IQ3_K", "IQ3_KS", "IQ4_K", "IQ4_KS", "IQ4_KSS", "IQ5_K",
    "IQ5_KS", "IQ6_K", "Q6_0",
)  # fmt: skip
LOW_BITS = frozenset({*CODEBOOKS, *IK})  # their bar is lower where registers are narrow

# Least shares of DRAM's rate, one token.
DECODE_BARS = {
    **dict.fromkeys(WIDE, 0.85),
    **dict.fromkeys(("Q2_K", "Q3_K", "IQ4_XS", "IQ4_NL", "MXFP4", *LOW_BITS), 0.6),
}
NARROW, NARROW_LOW_BITS_BAR = ("avx_vnni", "avx2"), 0.4

# The same for a few tokens, by one read of the weights for all.
FEW_TOKENS, FEW_TOKENS_BAR = (2, 8), 0.8

# Least shares of the arithmetic's limit.
PREFILL_TYPES = ("Q4_K", "Q6_K", "Q8_0", "Q4_0")
AMX_PREFILL_TYPES = (*PREFILL_TYPES, "Q2_K", "IQ1_S", "IQ2_XS", "IQ3_XXS", "IQ4_XS")
PREFILL_BARS = {name: {64: 0.45 if name == "amx" else 0.6, 256: 0.6} for name in SETS}
NARROW_PREFILL_TIMES = 1.3  # the peer, on machines whose best set it is


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
    def has_peer(self) -> bool:
        """False where no bar asks for one, and a run would take minutes more."""
        return self.is_prefill or self.tokens == 1

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
        """The machine's limit in the same unit: for prefill arithmetic alone, else memory alone."""
        return self._peak(limits) / 1e12 if self.is_prefill else limits.read.all / 1e9

    def memory_limit(self, limits: Limits) -> float:
        """TOPS that reading each expert once allows."""
        return self.tokens * self._operations_per_byte * limits.read.all / 1e12

    def tokens_of_expert(self, num_experts: int) -> float:
        """Tokens of each distinct expert, in the mean."""
        if self.is_prefill:
            return self.tokens
        return self.tokens * TOP_K / expected_distinct(num_experts, self.tokens)

    def arithmetic_limit(self, limits: Limits, num_experts: int) -> float:
        """GB/s of weights that the products with a call's tokens allow."""
        operations = self.tokens_of_expert(num_experts) * self._operations_per_byte
        return self._peak(limits) / operations / 1e9

    @property
    def _operations_per_byte(self) -> float:
        """Of one token; a multiply-add is two."""
        return 2 * (expert_bytes(Type.F32) // 4) / expert_bytes(self.type)

    def _peak(self, limits: Limits) -> float:
        """Operations a second of the fastest unit that the set has for the type."""
        is_quantized = _C.TYPES[self.type][2]
        rate = limits.int8 if is_quantized else limits.float32
        if self.isa == "amx" and (is_quantized or self.type == Type.BF16):
            rate = limits.amx_bf16 or rate
        return rate.all

    def bar(self, limit: float, peer: float | None) -> float | None:
        """The least value that passes, where the project promises one."""
        name = self.type.name
        is_best = self.isa == isa.supported()[0]
        if self.is_prefill:
            types = AMX_PREFILL_TYPES if self.isa == "amx" else PREFILL_TYPES
            shares = PREFILL_BARS.get(self.isa, {}) if name in types else {}
            times = NARROW_PREFILL_TIMES if is_best and self.isa in NARROW and shares else 0.0
            return bar(limit=limit, share=shares.get(self.tokens, 0.0), peer=peer, times=times)
        if self.tokens > 1:
            is_promised = is_best and self.tokens in FEW_TOKENS
            return bar(limit=limit, share=FEW_TOKENS_BAR if is_promised else 0.0)
        is_narrow = self.isa in NARROW and name in LOW_BITS
        if not is_best and not is_narrow:
            return None
        share = NARROW_LOW_BITS_BAR if is_narrow else DECODE_BARS.get(name, 0.0)
        must_lead = is_best and name in CODEBOOKS
        return bar(limit=limit, share=share, peer=peer, times=1.0 if must_lead else 0.0)


def promised_cases(active: str) -> list[Case]:
    """One token of every type, and what has a bar; rows of sets that are not there, too."""
    cases = [Case(active, type, False, 1) for type in TYPES]
    narrowest = NARROW[-1]
    if active != narrowest:
        cases += [Case(narrowest, type, False, 1) for type in TYPES if type.name in LOW_BITS]
    cases += [Case(active, type, False, n) for type in TYPES for n in FEW_TOKENS]
    for name in SETS:
        types = AMX_PREFILL_TYPES if name == "amx" else PREFILL_TYPES
        tokens = PREFILL if name == active else PREFILL_BARS[name]
        cases += [Case(name, Type[type], True, n) for type in types for n in tokens]
    return cases


def all_cases(names: list[str], types: list[Type], with_longest: bool) -> list[Case]:
    """Types x regimes x instruction sets; the longest prefill tells little that is new."""
    prefill = (*PREFILL, LONGEST_PREFILL) if with_longest else PREFILL
    regimes = [*((False, n) for n in (1, *FEW_TOKENS)), *((True, n) for n in prefill)]
    return [Case(name, type, *regime) for type in types for name in names for regime in regimes]
