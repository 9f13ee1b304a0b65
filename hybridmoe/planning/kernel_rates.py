"""Rates of the CPU's kernels over the machine's int8 peak, by instruction set.

Written by bench/derive_rates.py from these files of bench/results:

    2026-11-28_kernel_rates.json: AMD EPYC
    2026-11-28_kernel_rates_without_vbmi.json: AMD EPYC
    2026-11-28_expert_forward.json: AMD EPYC
"""

from collections.abc import Mapping
from types import MappingProxyType

from hybridmoe.gguf.quant_types import QuantType as Q

__all__ = ["MEASURED_ON", "PRODUCT_BYTES", "PROMPT_PRODUCTS"]

MEASURED_ON = "AMD EPYC, 2026-11-28"

# One token, weights in the cache: bytes of them for a thousand operations of the peak.
PRODUCT_BYTES: Mapping[str, Mapping[Q, float]] = MappingProxyType({
    "avx512": MappingProxyType({
        Q.F32: 107, Q.F16: 93.6, Q.BF16: 84.1, Q.Q4_0: 35.3, Q.Q4_1: 30.4, Q.Q5_0: 32.7,
        Q.Q5_1: 29.7, Q.Q8_0: 68.5, Q.Q2_K: 22.5, Q.Q3_K: 23.1, Q.Q4_K: 33.7, Q.Q5_K: 33.7,
        Q.Q6_K: 51.7, Q.IQ1_S: 10.8, Q.IQ1_M: 10.3, Q.IQ2_XXS: 20.7, Q.IQ2_XS: 17.8,
        Q.IQ2_S: 15.9, Q.IQ3_XXS: 33, Q.IQ3_S: 29.7, Q.IQ4_NL: 32.6, Q.IQ4_XS: 33.6,
        Q.TQ1_0: 2.33, Q.TQ2_0: 22.9, Q.MXFP4: 29, Q.NVFP4: 6.75, Q.Q1_0: 10.8, Q.Q2_0: 15.2,
        Q.Q6_0: 37, Q.IQ2_K: 19.2, Q.IQ2_KS: 18.1, Q.IQ2_KL: 16.7, Q.IQ3_K: 21.1,
        Q.IQ3_KS: 21.7, Q.IQ4_K: 31.1, Q.IQ4_KS: 33.5, Q.IQ4_KSS: 19.3, Q.IQ5_K: 32.4,
        Q.IQ5_KS: 34.7, Q.IQ6_K: 30.1,
    }),
    "avx_vnni": MappingProxyType({
        Q.F32: 214, Q.F16: 138, Q.BF16: 131, Q.Q4_0: 61.4, Q.Q4_1: 57.2, Q.Q5_0: 49,
        Q.Q5_1: 47.1, Q.Q8_0: 146, Q.Q2_K: 33.4, Q.Q3_K: 36.2, Q.Q4_K: 72, Q.Q5_K: 59.5,
        Q.Q6_K: 73.8, Q.IQ1_S: 14, Q.IQ1_M: 11.9, Q.IQ2_XXS: 17.8, Q.IQ2_XS: 17.3,
        Q.IQ2_S: 17.4, Q.IQ3_XXS: 17.6, Q.IQ3_S: 16.5, Q.IQ4_NL: 54.3, Q.IQ4_XS: 55.2,
        Q.TQ1_0: 5.41, Q.TQ2_0: 41.3, Q.MXFP4: 53.4, Q.NVFP4: 15, Q.Q1_0: 14, Q.Q2_0: 22.3,
        Q.Q6_0: 62.3, Q.IQ2_K: 25.8, Q.IQ2_KS: 31.9, Q.IQ2_KL: 19.7, Q.IQ3_K: 29.5,
        Q.IQ3_KS: 35.6, Q.IQ4_K: 43, Q.IQ4_KS: 54, Q.IQ4_KSS: 36.8, Q.IQ5_K: 47.7,
        Q.IQ5_KS: 59.8, Q.IQ6_K: 39.6,
    }),
    "avx2": MappingProxyType({
        Q.F32: 522, Q.F16: 264, Q.BF16: 249, Q.Q4_0: 112, Q.Q4_1: 104, Q.Q5_0: 88.2,
        Q.Q5_1: 84.2, Q.Q8_0: 220, Q.Q2_K: 61.3, Q.Q3_K: 67.9, Q.Q4_K: 127, Q.Q5_K: 107,
        Q.Q6_K: 132, Q.IQ1_S: 26.4, Q.IQ1_M: 23.3, Q.IQ2_XXS: 32.5, Q.IQ2_XS: 32.1,
        Q.IQ2_S: 33.1, Q.IQ3_XXS: 34.1, Q.IQ3_S: 32, Q.IQ4_NL: 82.7, Q.IQ4_XS: 81.8,
        Q.TQ1_0: 10.4, Q.TQ2_0: 70.9, Q.MXFP4: 81.3, Q.NVFP4: 28.3, Q.Q1_0: 25.7, Q.Q2_0: 40.7,
        Q.Q6_0: 112, Q.IQ2_K: 47.4, Q.IQ2_KS: 57.4, Q.IQ2_KL: 35.7, Q.IQ3_K: 54.4,
        Q.IQ3_KS: 63.8, Q.IQ4_K: 70.2, Q.IQ4_KS: 79.8, Q.IQ4_KSS: 57, Q.IQ5_K: 78.7,
        Q.IQ5_KS: 91.1, Q.IQ6_K: 68.9,
    }),
    "scalar": MappingProxyType({
        Q.F32: 3130, Q.F16: 552, Q.BF16: 1760, Q.Q4_0: 219, Q.Q4_1: 232, Q.Q5_0: 169,
        Q.Q5_1: 177, Q.Q8_0: 427, Q.Q2_K: 123, Q.Q3_K: 154, Q.Q4_K: 222, Q.Q5_K: 262,
        Q.Q6_K: 309, Q.IQ1_S: 58.8, Q.IQ1_M: 61, Q.IQ2_XXS: 50.8, Q.IQ2_XS: 58, Q.IQ2_S: 61.3,
        Q.IQ3_XXS: 74.6, Q.IQ3_S: 83.6, Q.IQ4_NL: 158, Q.IQ4_XS: 148, Q.TQ1_0: 79.3,
        Q.TQ2_0: 109, Q.MXFP4: 149, Q.NVFP4: 98.8, Q.Q1_0: 9.29, Q.Q2_0: 68, Q.Q6_0: 165,
        Q.IQ2_K: 67.9, Q.IQ2_KS: 70.5, Q.IQ2_KL: 79.1, Q.IQ3_K: 75.4, Q.IQ3_KS: 82.1,
        Q.IQ4_K: 126, Q.IQ4_KS: 136, Q.IQ4_KSS: 120, Q.IQ5_K: 116, Q.IQ5_KS: 129, Q.IQ6_K: 172,
    }),
    "avx512_without_vbmi": MappingProxyType({
        Q.IQ1_S: 5.62, Q.IQ1_M: 5.48, Q.IQ2_XXS: 9.26, Q.IQ2_XS: 10.1, Q.IQ2_S: 9.36,
        Q.IQ3_XXS: 12, Q.IQ3_S: 11.8,
    }),
})  # fmt: skip

# Many tokens of an expert, weights from memory: share of the peak once weights are
# unpacked, tokens whose products take as long as unpacking, and float32 over that peak.
PROMPT_PRODUCTS: Mapping[str, tuple[float, float, float]] = MappingProxyType({
    "avx512": (0.608, 16.7, 0.245),
    "avx_vnni": (0.796, 10.4, 0.289),
    "avx2": (0.883, 5.5, 0.574),
})  # fmt: skip
