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
        Q.F32: 146, Q.F16: 96.4, Q.BF16: 94.5, Q.Q4_0: 35.5, Q.Q4_1: 30.4, Q.Q5_0: 32.7,
        Q.Q5_1: 30.4, Q.Q8_0: 70.7, Q.Q2_K: 22.5, Q.Q3_K: 23.2, Q.Q4_K: 34, Q.Q5_K: 34.1,
        Q.Q6_K: 52, Q.IQ1_S: 11, Q.IQ1_M: 10.3, Q.IQ2_XXS: 20.5, Q.IQ2_XS: 17.8, Q.IQ2_S: 15.9,
        Q.IQ3_XXS: 32.9, Q.IQ3_S: 29.4, Q.IQ4_NL: 32.7, Q.IQ4_XS: 33.8, Q.TQ1_0: 2.32,
        Q.TQ2_0: 22.8, Q.MXFP4: 29.2, Q.NVFP4: 6.78, Q.Q1_0: 10.7, Q.Q2_0: 15.2, Q.Q6_0: 36.5,
        Q.IQ2_K: 19, Q.IQ2_KS: 17.9, Q.IQ2_KL: 16.4, Q.IQ3_K: 21, Q.IQ3_KS: 21.5,
        Q.IQ4_K: 31.2, Q.IQ4_KS: 32.7, Q.IQ4_KSS: 19.3, Q.IQ5_K: 32.4, Q.IQ5_KS: 34.3,
        Q.IQ6_K: 29.9,
    }),
    "avx_vnni": MappingProxyType({
        Q.F32: 217, Q.F16: 135, Q.BF16: 127, Q.Q4_0: 59.3, Q.Q4_1: 55.8, Q.Q5_0: 48.3,
        Q.Q5_1: 46.1, Q.Q8_0: 145, Q.Q2_K: 33, Q.Q3_K: 36.3, Q.Q4_K: 70.3, Q.Q5_K: 58.5,
        Q.Q6_K: 71.7, Q.IQ1_S: 13.8, Q.IQ1_M: 11.8, Q.IQ2_XXS: 17.8, Q.IQ2_XS: 17,
        Q.IQ2_S: 17.4, Q.IQ3_XXS: 17.4, Q.IQ3_S: 16.5, Q.IQ4_NL: 54.9, Q.IQ4_XS: 54.6,
        Q.TQ1_0: 5.43, Q.TQ2_0: 41.1, Q.MXFP4: 54.4, Q.NVFP4: 15.5, Q.Q1_0: 14.3, Q.Q2_0: 22.7,
        Q.Q6_0: 62.5, Q.IQ2_K: 26.4, Q.IQ2_KS: 32.3, Q.IQ2_KL: 19.6, Q.IQ3_K: 29.3,
        Q.IQ3_KS: 35.3, Q.IQ4_K: 42.5, Q.IQ4_KS: 52.6, Q.IQ4_KSS: 36.6, Q.IQ5_K: 47.7,
        Q.IQ5_KS: 59.6, Q.IQ6_K: 39.9,
    }),
    "avx2": MappingProxyType({
        Q.F32: 418, Q.F16: 274, Q.BF16: 256, Q.Q4_0: 109, Q.Q4_1: 104, Q.Q5_0: 88.1,
        Q.Q5_1: 83.8, Q.Q8_0: 224, Q.Q2_K: 60.6, Q.Q3_K: 67.9, Q.Q4_K: 124, Q.Q5_K: 105,
        Q.Q6_K: 132, Q.IQ1_S: 26.6, Q.IQ1_M: 22.9, Q.IQ2_XXS: 32.3, Q.IQ2_XS: 32.1,
        Q.IQ2_S: 33.4, Q.IQ3_XXS: 34, Q.IQ3_S: 32.1, Q.IQ4_NL: 81.9, Q.IQ4_XS: 81.2,
        Q.TQ1_0: 10.3, Q.TQ2_0: 70.2, Q.MXFP4: 81, Q.NVFP4: 28.9, Q.Q1_0: 26.1, Q.Q2_0: 41.2,
        Q.Q6_0: 113, Q.IQ2_K: 47.6, Q.IQ2_KS: 58, Q.IQ2_KL: 35.7, Q.IQ3_K: 54.6,
        Q.IQ3_KS: 64.2, Q.IQ4_K: 71.9, Q.IQ4_KS: 79.5, Q.IQ4_KSS: 56.5, Q.IQ5_K: 79,
        Q.IQ5_KS: 90.4, Q.IQ6_K: 67.4,
    }),
    "scalar": MappingProxyType({
        Q.F32: 3110, Q.F16: 547, Q.BF16: 1770, Q.Q4_0: 221, Q.Q4_1: 234, Q.Q5_0: 170,
        Q.Q5_1: 179, Q.Q8_0: 425, Q.Q2_K: 132, Q.Q3_K: 156, Q.Q4_K: 225, Q.Q5_K: 261,
        Q.Q6_K: 312, Q.IQ1_S: 59.8, Q.IQ1_M: 61, Q.IQ2_XXS: 48.7, Q.IQ2_XS: 56.9, Q.IQ2_S: 62,
        Q.IQ3_XXS: 76.3, Q.IQ3_S: 84.1, Q.IQ4_NL: 158, Q.IQ4_XS: 150, Q.TQ1_0: 80.6,
        Q.TQ2_0: 108, Q.MXFP4: 151, Q.NVFP4: 97.8, Q.Q1_0: 12.3, Q.Q2_0: 68.3, Q.Q6_0: 169,
        Q.IQ2_K: 66.8, Q.IQ2_KS: 70.5, Q.IQ2_KL: 82.6, Q.IQ3_K: 72.6, Q.IQ3_KS: 75.5,
        Q.IQ4_K: 125, Q.IQ4_KS: 137, Q.IQ4_KSS: 118, Q.IQ5_K: 120, Q.IQ5_KS: 126, Q.IQ6_K: 171,
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
