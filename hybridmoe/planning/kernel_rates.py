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
        Q.F32: 117, Q.F16: 101, Q.BF16: 109, Q.Q4_0: 36.5, Q.Q4_1: 30.7, Q.Q5_0: 33.3,
        Q.Q5_1: 30.5, Q.Q8_0: 69.2, Q.Q2_K: 22.7, Q.Q3_K: 23.3, Q.Q4_K: 34, Q.Q5_K: 33.5,
        Q.Q6_K: 51.5, Q.IQ1_S: 11.3, Q.IQ1_M: 10.2, Q.IQ2_XXS: 19.8, Q.IQ2_XS: 18,
        Q.IQ2_S: 16.2, Q.IQ3_XXS: 12, Q.IQ3_S: 11.8, Q.IQ4_NL: 33.1, Q.IQ4_XS: 33.5,
        Q.TQ1_0: 2.3, Q.TQ2_0: 22.8, Q.MXFP4: 30.3, Q.NVFP4: 6.81, Q.Q1_0: 10.8, Q.Q2_0: 15.1,
        Q.Q6_0: 37.8, Q.IQ2_K: 19, Q.IQ2_KS: 17.5, Q.IQ2_KL: 16.6, Q.IQ3_K: 21.1,
        Q.IQ3_KS: 21.1, Q.IQ4_K: 30.9, Q.IQ4_KS: 32.6, Q.IQ4_KSS: 19.6, Q.IQ5_K: 32.7,
        Q.IQ5_KS: 35, Q.IQ6_K: 30.1,
    }),
    "avx_vnni": MappingProxyType({
        Q.F32: 220, Q.F16: 133, Q.BF16: 128, Q.Q4_0: 61.9, Q.Q4_1: 57.2, Q.Q5_0: 48.6,
        Q.Q5_1: 45.8, Q.Q8_0: 146, Q.Q2_K: 33.3, Q.Q3_K: 36.1, Q.Q4_K: 70.8, Q.Q5_K: 58.8,
        Q.Q6_K: 72.6, Q.IQ1_S: 13.7, Q.IQ1_M: 11.9, Q.IQ2_XXS: 17.5, Q.IQ2_XS: 16.9,
        Q.IQ2_S: 17.3, Q.IQ3_XXS: 17.3, Q.IQ3_S: 16.3, Q.IQ4_NL: 54.3, Q.IQ4_XS: 54.5,
        Q.TQ1_0: 5.36, Q.TQ2_0: 40.1, Q.MXFP4: 52.1, Q.NVFP4: 15, Q.Q1_0: 13.9, Q.Q2_0: 22.3,
        Q.Q6_0: 61.6, Q.IQ2_K: 26, Q.IQ2_KS: 31.5, Q.IQ2_KL: 19.4, Q.IQ3_K: 29, Q.IQ3_KS: 34.8,
        Q.IQ4_K: 42.3, Q.IQ4_KS: 52.7, Q.IQ4_KSS: 36, Q.IQ5_K: 46.7, Q.IQ5_KS: 59.4,
        Q.IQ6_K: 39.5,
    }),
    "avx2": MappingProxyType({
        Q.F32: 404, Q.F16: 255, Q.BF16: 249, Q.Q4_0: 112, Q.Q4_1: 105, Q.Q5_0: 88.1,
        Q.Q5_1: 84.9, Q.Q8_0: 223, Q.Q2_K: 61.6, Q.Q3_K: 68.7, Q.Q4_K: 127, Q.Q5_K: 106,
        Q.Q6_K: 133, Q.IQ1_S: 26.6, Q.IQ1_M: 23.3, Q.IQ2_XXS: 32.6, Q.IQ2_XS: 32.2,
        Q.IQ2_S: 33.7, Q.IQ3_XXS: 34.2, Q.IQ3_S: 32.4, Q.IQ4_NL: 82.6, Q.IQ4_XS: 81.2,
        Q.TQ1_0: 10.4, Q.TQ2_0: 71.1, Q.MXFP4: 80.6, Q.NVFP4: 28.6, Q.Q1_0: 25.7, Q.Q2_0: 40.2,
        Q.Q6_0: 113, Q.IQ2_K: 47.8, Q.IQ2_KS: 59, Q.IQ2_KL: 35.8, Q.IQ3_K: 54.2,
        Q.IQ3_KS: 64.1, Q.IQ4_K: 71.1, Q.IQ4_KS: 79.8, Q.IQ4_KSS: 56.8, Q.IQ5_K: 79.7,
        Q.IQ5_KS: 91.5, Q.IQ6_K: 67.6,
    }),
    "scalar": MappingProxyType({
        Q.F32: 5470, Q.F16: 978, Q.BF16: 3120, Q.Q4_0: 396, Q.Q4_1: 425, Q.Q5_0: 290,
        Q.Q5_1: 312, Q.Q8_0: 705, Q.Q2_K: 220, Q.Q3_K: 269, Q.Q4_K: 390, Q.Q5_K: 453,
        Q.Q6_K: 547, Q.IQ1_S: 107, Q.IQ1_M: 108, Q.IQ2_XXS: 95, Q.IQ2_XS: 103, Q.IQ2_S: 111,
        Q.IQ3_XXS: 134, Q.IQ3_S: 148, Q.IQ4_NL: 278, Q.IQ4_XS: 266, Q.TQ1_0: 148, Q.TQ2_0: 188,
        Q.MXFP4: 263, Q.NVFP4: 159, Q.Q1_0: 57.1, Q.Q2_0: 120, Q.Q6_0: 297, Q.IQ2_K: 116,
        Q.IQ2_KS: 123, Q.IQ2_KL: 142, Q.IQ3_K: 132, Q.IQ3_KS: 140, Q.IQ4_K: 222, Q.IQ4_KS: 243,
        Q.IQ4_KSS: 208, Q.IQ5_K: 208, Q.IQ5_KS: 222, Q.IQ6_K: 308,
    }),
    "avx512_without_vbmi": MappingProxyType({
        Q.IQ1_S: 5.62, Q.IQ1_M: 5.48, Q.IQ2_XXS: 9.26, Q.IQ2_XS: 10.1, Q.IQ2_S: 9.36,
    }),
})  # fmt: skip

# Many tokens of an expert, weights from memory: share of the peak once weights are
# unpacked, tokens whose products take as long as unpacking, and float32 over that peak.
PROMPT_PRODUCTS: Mapping[str, tuple[float, float, float]] = MappingProxyType({
    "avx512": (0.62, 16.7, 0.245),
    "avx_vnni": (0.811, 10.4, 0.289),
    "avx2": (0.9, 5.5, 0.574),
})  # fmt: skip
