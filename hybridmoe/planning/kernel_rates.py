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
        Q.F32: 120, Q.F16: 102, Q.BF16: 104, Q.Q4_0: 35.6, Q.Q4_1: 30.6, Q.Q5_0: 32.6,
        Q.Q5_1: 30, Q.Q8_0: 70.9, Q.Q2_K: 22.9, Q.Q3_K: 23.1, Q.Q4_K: 34.5, Q.Q5_K: 34.3,
        Q.Q6_K: 51.8, Q.IQ1_S: 12.9, Q.IQ1_M: 11.6, Q.IQ2_XXS: 20.7, Q.IQ2_XS: 18.4,
        Q.IQ2_S: 17.7, Q.IQ3_XXS: 33.7, Q.IQ3_S: 32.7, Q.IQ4_NL: 32.2, Q.IQ4_XS: 33.3,
        Q.TQ1_0: 2.35, Q.TQ2_0: 22.8, Q.MXFP4: 29.6, Q.NVFP4: 6.78, Q.Q1_0: 10.9, Q.Q2_0: 15.2,
        Q.Q6_0: 37, Q.IQ2_K: 19.2, Q.IQ2_KS: 18.1, Q.IQ2_KL: 16.5, Q.IQ3_K: 21.3,
        Q.IQ3_KS: 21.4, Q.IQ4_K: 31.5, Q.IQ4_KS: 32.9, Q.IQ4_KSS: 19.1, Q.IQ5_K: 32.3,
        Q.IQ5_KS: 33.8, Q.IQ6_K: 29.9,
    }),
    "avx_vnni": MappingProxyType({
        Q.F32: 242, Q.F16: 132, Q.BF16: 125, Q.Q4_0: 60.1, Q.Q4_1: 55.9, Q.Q5_0: 48.6,
        Q.Q5_1: 46.3, Q.Q8_0: 145, Q.Q2_K: 33.3, Q.Q3_K: 36, Q.Q4_K: 70.6, Q.Q5_K: 59.5,
        Q.Q6_K: 73.3, Q.IQ1_S: 13.9, Q.IQ1_M: 12, Q.IQ2_XXS: 17.8, Q.IQ2_XS: 16.9,
        Q.IQ2_S: 17.3, Q.IQ3_XXS: 17.4, Q.IQ3_S: 16.2, Q.IQ4_NL: 55.1, Q.IQ4_XS: 54.9,
        Q.TQ1_0: 5.45, Q.TQ2_0: 41.1, Q.MXFP4: 54.5, Q.NVFP4: 15.4, Q.Q1_0: 14.2, Q.Q2_0: 22.4,
        Q.Q6_0: 62.6, Q.IQ2_K: 26.5, Q.IQ2_KS: 32.2, Q.IQ2_KL: 19.9, Q.IQ3_K: 29.3,
        Q.IQ3_KS: 35.3, Q.IQ4_K: 43, Q.IQ4_KS: 53.4, Q.IQ4_KSS: 36.5, Q.IQ5_K: 47.7,
        Q.IQ5_KS: 59.6, Q.IQ6_K: 40.4,
    }),
    "avx2": MappingProxyType({
        Q.F32: 494, Q.F16: 267, Q.BF16: 249, Q.Q4_0: 112, Q.Q4_1: 104, Q.Q5_0: 88.9,
        Q.Q5_1: 85.4, Q.Q8_0: 223, Q.Q2_K: 62, Q.Q3_K: 68.3, Q.Q4_K: 127, Q.Q5_K: 107,
        Q.Q6_K: 132, Q.IQ1_S: 26.4, Q.IQ1_M: 23.1, Q.IQ2_XXS: 32.4, Q.IQ2_XS: 32,
        Q.IQ2_S: 33.5, Q.IQ3_XXS: 33.6, Q.IQ3_S: 31.8, Q.IQ4_NL: 82.2, Q.IQ4_XS: 81,
        Q.TQ1_0: 10.4, Q.TQ2_0: 70.9, Q.MXFP4: 81.6, Q.NVFP4: 28.6, Q.Q1_0: 25.9, Q.Q2_0: 41.3,
        Q.Q6_0: 113, Q.IQ2_K: 47.4, Q.IQ2_KS: 58.3, Q.IQ2_KL: 36, Q.IQ3_K: 54.7,
        Q.IQ3_KS: 64.3, Q.IQ4_K: 71.1, Q.IQ4_KS: 80.2, Q.IQ4_KSS: 57.1, Q.IQ5_K: 79.7,
        Q.IQ5_KS: 91.3, Q.IQ6_K: 69,
    }),
    "scalar": MappingProxyType({
        Q.F32: 3140, Q.F16: 552, Q.BF16: 1760, Q.Q4_0: 239, Q.Q4_1: 241, Q.Q5_0: 165,
        Q.Q5_1: 176, Q.Q8_0: 396, Q.Q2_K: 131, Q.Q3_K: 156, Q.Q4_K: 223, Q.Q5_K: 261,
        Q.Q6_K: 310, Q.IQ1_S: 61.5, Q.IQ1_M: 64.2, Q.IQ2_XXS: 53.9, Q.IQ2_XS: 60.1,
        Q.IQ2_S: 64.7, Q.IQ3_XXS: 82.5, Q.IQ3_S: 86.2, Q.IQ4_NL: 161, Q.IQ4_XS: 153,
        Q.TQ1_0: 80.2, Q.TQ2_0: 109, Q.MXFP4: 153, Q.NVFP4: 97.7, Q.Q1_0: 33.8, Q.Q2_0: 69.7,
        Q.Q6_0: 171, Q.IQ2_K: 68.7, Q.IQ2_KS: 72.1, Q.IQ2_KL: 84.8, Q.IQ3_K: 77.7,
        Q.IQ3_KS: 80, Q.IQ4_K: 128, Q.IQ4_KS: 139, Q.IQ4_KSS: 121, Q.IQ5_K: 116, Q.IQ5_KS: 132,
        Q.IQ6_K: 178,
    }),
    "avx512_without_vbmi": MappingProxyType({
        Q.IQ1_S: 5.62, Q.IQ1_M: 5.48, Q.IQ2_XXS: 9.26, Q.IQ2_XS: 10.1, Q.IQ2_S: 9.36,
        Q.IQ3_XXS: 12, Q.IQ3_S: 11.8,
    }),
})  # fmt: skip

# Many tokens of an expert, weights from memory: share of the peak once weights are
# unpacked, tokens whose products take as long as unpacking, and float32 over that peak.
PROMPT_PRODUCTS: Mapping[str, tuple[float, float, float]] = MappingProxyType({
    "avx512": (0.612, 8.6, 0.247),
    "avx_vnni": (0.797, 4.48, 0.288),
    "avx2": (0.893, 2.57, 0.575),
})  # fmt: skip
