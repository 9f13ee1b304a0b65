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
        Q.F32: 167, Q.F16: 105, Q.BF16: 104, Q.Q4_0: 34.9, Q.Q4_1: 29.5, Q.Q5_0: 32,
        Q.Q5_1: 29.7, Q.Q8_0: 69.7, Q.Q2_K: 22.3, Q.Q3_K: 22.5, Q.Q4_K: 33.2, Q.Q5_K: 33.5,
        Q.Q6_K: 50.9, Q.IQ1_S: 13.7, Q.IQ1_M: 13, Q.IQ2_XXS: 27.2, Q.IQ2_XS: 20.7,
        Q.IQ2_S: 19.2, Q.IQ3_XXS: 32.8, Q.IQ3_S: 31.8, Q.IQ4_NL: 32.8, Q.IQ4_XS: 33.3,
        Q.TQ1_0: 13.1, Q.TQ2_0: 22.8, Q.MXFP4: 29.4, Q.NVFP4: 32.5, Q.Q1_0: 10.8, Q.Q2_0: 15.1,
        Q.Q6_0: 36.6, Q.IQ2_K: 18.6, Q.IQ2_KS: 17.5, Q.IQ2_KL: 15.9, Q.IQ3_K: 20.3,
        Q.IQ3_KS: 20.6, Q.IQ4_K: 29.8, Q.IQ4_KS: 32, Q.IQ4_KSS: 19, Q.IQ5_K: 31.7,
        Q.IQ5_KS: 32.9, Q.IQ6_K: 28.9,
    }),
    "avx_vnni": MappingProxyType({
        Q.F32: 259, Q.F16: 132, Q.BF16: 134, Q.Q4_0: 59.7, Q.Q4_1: 56.2, Q.Q5_0: 48.1,
        Q.Q5_1: 45.7, Q.Q8_0: 141, Q.Q2_K: 33, Q.Q3_K: 35.4, Q.Q4_K: 69.9, Q.Q5_K: 59.3,
        Q.Q6_K: 71.4, Q.IQ1_S: 14.9, Q.IQ1_M: 12, Q.IQ2_XXS: 20.2, Q.IQ2_XS: 17.5, Q.IQ2_S: 18,
        Q.IQ3_XXS: 19.1, Q.IQ3_S: 21, Q.IQ4_NL: 55.7, Q.IQ4_XS: 55.1, Q.TQ1_0: 19.2,
        Q.TQ2_0: 40.4, Q.MXFP4: 52.8, Q.NVFP4: 46.9, Q.Q1_0: 14.1, Q.Q2_0: 22.3, Q.Q6_0: 62.5,
        Q.IQ2_K: 26, Q.IQ2_KS: 30, Q.IQ2_KL: 19.9, Q.IQ3_K: 29.1, Q.IQ3_KS: 35.8,
        Q.IQ4_K: 43.2, Q.IQ4_KS: 52.7, Q.IQ4_KSS: 36.2, Q.IQ5_K: 46.6, Q.IQ5_KS: 59.6,
        Q.IQ6_K: 39.4,
    }),
    "avx2": MappingProxyType({
        Q.F32: 577, Q.F16: 266, Q.BF16: 265, Q.Q4_0: 113, Q.Q4_1: 106, Q.Q5_0: 89,
        Q.Q5_1: 84.6, Q.Q8_0: 221, Q.Q2_K: 62.1, Q.Q3_K: 68.4, Q.Q4_K: 128, Q.Q5_K: 106,
        Q.Q6_K: 132, Q.IQ1_S: 27.7, Q.IQ1_M: 23.5, Q.IQ2_XXS: 36.2, Q.IQ2_XS: 33.3,
        Q.IQ2_S: 35.5, Q.IQ3_XXS: 36.2, Q.IQ3_S: 36.9, Q.IQ4_NL: 81.7, Q.IQ4_XS: 81.8,
        Q.TQ1_0: 34.9, Q.TQ2_0: 70.2, Q.MXFP4: 80.3, Q.NVFP4: 75.8, Q.Q1_0: 26.3, Q.Q2_0: 41.2,
        Q.Q6_0: 114, Q.IQ2_K: 48.4, Q.IQ2_KS: 58.6, Q.IQ2_KL: 35.7, Q.IQ3_K: 54.6,
        Q.IQ3_KS: 63.9, Q.IQ4_K: 70.6, Q.IQ4_KS: 79.2, Q.IQ4_KSS: 58.1, Q.IQ5_K: 78.5,
        Q.IQ5_KS: 91, Q.IQ6_K: 68.2,
    }),
    "scalar": MappingProxyType({
        Q.F32: 3100, Q.F16: 557, Q.BF16: 1780, Q.Q4_0: 230, Q.Q4_1: 243, Q.Q5_0: 167,
        Q.Q5_1: 184, Q.Q8_0: 401, Q.Q2_K: 134, Q.Q3_K: 157, Q.Q4_K: 226, Q.Q5_K: 264,
        Q.Q6_K: 314, Q.IQ1_S: 61.9, Q.IQ1_M: 64.5, Q.IQ2_XXS: 53.5, Q.IQ2_XS: 60.1,
        Q.IQ2_S: 64.9, Q.IQ3_XXS: 83.5, Q.IQ3_S: 88.4, Q.IQ4_NL: 162, Q.IQ4_XS: 154,
        Q.TQ1_0: 80.9, Q.TQ2_0: 109, Q.MXFP4: 154, Q.NVFP4: 106, Q.Q1_0: 34.6, Q.Q2_0: 70.9,
        Q.Q6_0: 168, Q.IQ2_K: 68.4, Q.IQ2_KS: 72.8, Q.IQ2_KL: 84.3, Q.IQ3_K: 80.8,
        Q.IQ3_KS: 77.2, Q.IQ4_K: 130, Q.IQ4_KS: 140, Q.IQ4_KSS: 123, Q.IQ5_K: 127,
        Q.IQ5_KS: 132, Q.IQ6_K: 183,
    }),
    "avx512_without_vbmi": MappingProxyType({
        Q.IQ1_S: 5.62, Q.IQ1_M: 5.48, Q.IQ2_XXS: 9.26, Q.IQ2_XS: 10.1, Q.IQ2_S: 9.36,
        Q.IQ3_XXS: 12, Q.IQ3_S: 11.8,
    }),
})  # fmt: skip

# Many tokens of an expert, weights from memory: share of the peak once weights are
# unpacked, tokens whose products take as long as unpacking, and float32 over that peak.
PROMPT_PRODUCTS: Mapping[str, tuple[float, float, float]] = MappingProxyType({
    "avx512": (0.667, 9.62, 0.248),
    "avx_vnni": (0.828, 6.62, 0.292),
    "avx2": (0.892, 4.03, 0.573),
})  # fmt: skip
