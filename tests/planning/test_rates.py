"""Rates of a machine: shares of its limits, by instruction set and by card."""

import pytest
from gguf import GGMLQuantizationType as Q

from hybridmoe.errors import ConfigError
from hybridmoe.planning.gpu_specs import GPUS, spec_named
from hybridmoe.planning.model_sizes import Part
from hybridmoe.planning.rates import PRODUCTS, WHOLE_MODEL_SHARE, GpuRates, Rates, rates_of

GPU = GpuRates(read=700e9, ops=60e12, pcie=25e9)


def test_shares_of_limits_are_shares() -> None:
    rates = rates_of("avx512", dram=1e11, peak_ops=1e13, float_ops=1e11)
    assert rates.ops < 1e13 and rates.attention_ops < 1e11
    assert 1 < token_s(rates, Q.Q4_K) < token_s(rates, Q.I8), "the latter has no kernel"
    with_gpu = rates_of("amx", dram=1e11, peak_ops=1e12, float_ops=1e11, gpu=GPU)
    assert with_gpu.layer_s < rates.layer_s


def test_a_few_tokens_are_unpacked_once() -> None:
    rates = rates_of("avx512", dram=1e11, peak_ops=2e12)
    part = Part(Q.Q4_K, 1 << 20, 9 << 16)
    seconds = [rates.multiply_s(part, n) for n in (1, 4, 8, 9, 16)]
    assert seconds[1] == pytest.approx(1.6 * seconds[0])
    assert seconds[2] == pytest.approx(2.4 * seconds[0])
    assert sorted(seconds) == seconds


def token_s(rates: Rates, type: Q, num_rows: int = 0) -> float:
    """Seconds of 1e11 bytes, of rows of 128 columns or of endless ones."""
    return rates.token_s(Part(type, 128 * num_rows or 1, 10**11, num_rows))


def test_memory_or_products_bound_one_token_by_instruction_set() -> None:
    def rates(isa: str, gops: float, *, has_vbmi: bool = True) -> Rates:
        return rates_of(isa, dram=1e11, peak_ops=1e9 * gops, has_vbmi=has_vbmi)

    many, few = 100_000, 100  # of a large machine, and of a fraction of a core
    for isa in ("avx512", "avx_vnni", "avx2"):
        by_memory, by_products = rates(isa, many), rates(isa, few)
        for type in (Q.Q4_K, Q.IQ1_S):
            assert token_s(by_memory, type) * WHOLE_MODEL_SHARE == pytest.approx(1, rel=0.01)
        assert token_s(by_products, Q.IQ1_S) > 2 * token_s(by_products, Q.Q4_K) > 2
        assert token_s(by_products, Q.Q8_0, 1 << 20) > 2 * token_s(by_products, Q.Q8_0)
    looked_up = token_s(rates("avx512", few), Q.IQ1_S)
    assert token_s(rates("avx512", few, has_vbmi=False), Q.IQ1_S) > 1.5 * looked_up
    tiles = rates("amx", few / PRODUCTS["amx"].int8_share)
    assert token_s(tiles, Q.IQ1_S) == pytest.approx(looked_up, rel=0.01)


def test_cards_are_found_by_any_spelling() -> None:
    assert spec_named("RTX 4090") is GPUS["rtx-4090"]
    with pytest.raises(ConfigError, match="'voodoo-2': known are rtx-4060"):
        spec_named("voodoo-2")
