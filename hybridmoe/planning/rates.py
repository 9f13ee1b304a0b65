"""Rates of a machine for the cost model: its limits, and the shares that kernels reach of them.

`machine.measure` and the command line give the limits. The shares are measured (bench/results,
docs/log.md); docs/plan.md lists where each comes from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from hybridmoe.gguf.quant_types import QuantType as Q

__all__ = [
    "COPY_TRAFFIC",
    "DECODE_SHARE",
    "FUSED_LAYER_S",
    "GpuRates",
    "Products",
    "Rates",
    "rates_of",
]

# Of DRAM's read rate, one token, K2's experts, Xeon with AMX: bench/results, 2026-11-25.
DECODE_SHARE: Mapping[Q, float] = MappingProxyType({
    Q.F32: 1.0, Q.F16: 0.79, Q.BF16: 0.81, Q.Q4_0: 0.86, Q.Q4_1: 0.76, Q.Q5_0: 0.81,
    Q.Q5_1: 0.76, Q.Q8_0: 0.95, Q.Q2_K: 0.70, Q.Q3_K: 0.71, Q.Q4_K: 0.90, Q.Q5_K: 0.89,
    Q.Q6_K: 0.90, Q.IQ1_S: 0.17, Q.IQ1_M: 0.19, Q.IQ2_XXS: 0.28, Q.IQ2_XS: 0.34, Q.IQ2_S: 0.33,
    Q.IQ3_XXS: 0.35, Q.IQ3_S: 0.37, Q.IQ4_NL: 0.82, Q.IQ4_XS: 0.84, Q.TQ1_0: 0.14, Q.TQ2_0: 0.73,
    Q.MXFP4: 0.82, Q.NVFP4: 0.29,
    # Measured on a Zen 5 beside neighbours above, and scaled by them: docs/log.md, 2026-11-28.
    Q.Q1_0: 0.35, Q.Q2_0: 0.48, Q.Q6_0: 0.86, Q.IQ2_K: 0.59, Q.IQ2_KS: 0.58, Q.IQ2_KL: 0.54,
    Q.IQ3_K: 0.68, Q.IQ3_KS: 0.63, Q.IQ4_K: 0.83, Q.IQ4_KS: 0.85, Q.IQ4_KSS: 0.60,
    Q.IQ5_K: 0.85, Q.IQ5_KS: 0.86, Q.IQ6_K: 0.86,
})  # fmt: skip
_OTHER_SHARE = 0.5  # of a type without a kernel of its own

# Shares of these that kernels of narrower registers reach.
_DECODE_ISA: Mapping[str, float] = MappingProxyType(
    {"amx": 1.0, "avx512": 1.0, "avx_vnni": 0.8, "avx2": 0.8, "scalar": 0.05}
)
# A whole model's decode rate over its kernels': smaller matrices, waits between them.
WHOLE_MODEL_SHARE = 0.87


class Products(NamedTuple):
    """Products of an instruction set with many tokens: weights are unpacked for each block."""

    share: float  # of the peak of products in registers, once weights are unpacked
    block_tokens: float  # that share an unpacking
    unpack_tokens: float  # whose products take as long as an unpacking
    float_share: float  # float32 multiply-adds over that peak, where only the peak is given


# The peak is that of bfloat16 tiles for AMX, of int8 dot products elsewhere.
PRODUCTS: Mapping[str, Products] = MappingProxyType({
    "amx": Products(0.36, 96, 75, 0.065),
    "avx512": Products(0.42, 1e9, 10, 0.29),
    "avx_vnni": Products(0.7, 1e9, 8, 0.29),
    "avx2": Products(0.7, 1e9, 10, 0.8),
    "scalar": Products(0.9, 1e9, 5, 9.0),
})  # fmt: skip
_AMX_UNPACK: Mapping[Q, float] = MappingProxyType({
    Q.Q4_K: 36, Q.Q4_0: 36, Q.Q8_0: 65, Q.Q2_K: 70, Q.Q3_K: 77, Q.Q5_K: 69, Q.Q6_K: 80,
    Q.IQ2_XS: 80,
})  # fmt: skip
# Time of a prompt's dense products over the formula's: smaller ones, and those of each head.
DENSE_OVERHEAD = 1.25
# A prompt's time over that of its kernels: norms, routing, rotations, waiting for each other.
PROMPT_OVERHEAD = 1.1
ATTENTION_SHARE = 0.5  # of float32 multiply-adds, counting the pairs that are not masked
# Python and torch between the kernels, of a layer and of a step, on a 2.6 GHz Xeon.
LAYER_S, STEP_S = 250e-6, 500e-6
# Of a layer where a decode step's layers are one native call: docs/log.md, 2026-11-28.
FUSED_LAYER_S = 62e-6

# Of a step that is one CUDA graph: gaps between a layer's kernels, and Python between two steps.
# Measured on an H100 beside a Xeon: docs/log.md, 2026-11-28.
_GPU_LAYER_S, _GPU_STEP_S = 20e-6, 1.3e-3

# Assumptions, as docs/plan.md says.
_GPU_DECODE_SHARE, _GPU_PROMPT_SHARE = 0.7, 0.4
_PCIE_SHARE = 0.85
# To the CPU and back with a state of K2's size: docs/log.md, 2026-11-27, a prototype on an H100.
_HAND_OVER_S = 25e-6
_GPU_EXPERT_S = 150e-6  # launches from Python; fewer for experts in groups, and behind the link
_COPY_CPU = 0.2  # three threads of a workstation's cores
# Bytes that memory moves for each byte that is copied: read, fetched to be written, written.
COPY_TRAFFIC = 3


@dataclass(frozen=True, slots=True)
class GpuRates:
    """Rates of a GPU: measured (experts.gpu: calibrate, calibrate_decode), or assumed."""

    read: float  # bytes/s of its memory
    ops: float  # operations/s of matrix products
    pcie: float  # bytes/s, to it from pinned memory
    copy: float | None = None  # bytes/s into pinned memory; None: what DRAM allows
    copy_cpu: float = _COPY_CPU  # share of the CPU that this copy takes from its products
    expert_s: float = _GPU_EXPERT_S  # of a prompt's expert, beside its work: launches
    hand_over_s: float = 0.0  # of a decode layer, to the CPU and back
    # Bytes/s of one token's products, by type, and of experts in slots; missing: `read`.
    one_token: Mapping[Q, float] = field(default_factory=dict)
    slots: float | None = None

    def decode_bytes(self, type: Q) -> float:
        """Rate, in bytes/s, at which decoding reads a dense tensor of this type."""
        return self.one_token.get(type, self.read)

    @property
    def slot_bytes_per_s(self) -> float:
        """Rate at which decoding reads experts in slots."""
        return self.read if self.slots is None else self.slots

    @classmethod
    def assumed(cls, vram_gbs: float, tflops: float, pcie_gbs: float) -> "GpuRates":
        """Take the usual shares of a data sheet's figures."""
        return cls(
            vram_gbs * 1e9 * _GPU_DECODE_SHARE,
            tflops * 1e12 * _GPU_PROMPT_SHARE,
            pcie_gbs * 1e9 * _PCIE_SHARE,
            hand_over_s=_HAND_OVER_S,
        )


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates that programs reach on a machine, per second."""

    isa: str
    dram: float  # bytes that a plain read of memory gets
    ops: float  # operations of matrix products, weights unpacked
    attention_ops: float
    disk: float | None = None  # bytes read from the model's file; None: unknown
    gpu: GpuRates | None = None
    layer_s: float = LAYER_S
    step_s: float = STEP_S

    def decode_bytes(self, type: Q) -> float:
        """Rate, in bytes/s, at which decoding reads a tensor of this type on the CPU."""
        share = DECODE_SHARE.get(type, _OTHER_SHARE) * _DECODE_ISA[self.isa]
        return self.dram * share * WHOLE_MODEL_SHARE

    def multiply_s(self, type: Q, num_params: int, num_tokens: float) -> float:
        """CPU seconds of the products of one matrix and many tokens, its weights in the cache."""
        products = PRODUCTS[self.isa]
        unpack = products.unpack_tokens
        if self.isa == "amx":
            unpack = _AMX_UNPACK.get(type, unpack)
        worth = num_tokens + unpack * max(1.0, num_tokens / products.block_tokens)
        return 2 * num_params * worth / self.ops


def rates_of(
    isa: str,
    *,
    dram: float,
    peak_ops: float,
    float_ops: float | None = None,
    disk: float | None = None,
    gpu: GpuRates | None = None,
) -> Rates:
    """Derive rates from a machine's limits.

    isa: of the kernels. peak_ops: of products in registers, tiles of bfloat16 for "amx", int8
    dot products for the others. float_ops: of float32 multiply-adds; None: the usual share of it.
    """
    products = PRODUCTS[isa]
    if float_ops is None:
        float_ops = peak_ops * products.float_share
    return Rates(
        isa=isa,
        dram=dram,
        ops=peak_ops * products.share,
        attention_ops=float_ops * ATTENTION_SHARE,
        disk=disk,
        gpu=gpu,
        layer_s=LAYER_S if gpu is None else _GPU_LAYER_S,
        step_s=STEP_S if gpu is None else _GPU_STEP_S,
    )
