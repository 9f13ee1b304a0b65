"""Rates of a machine for the cost model: its limits, and the shares that kernels reach of them.

`hardware.limits` and the command line give the limits. The shares are measured (bench/results,
docs/log.md); docs/plan.md lists where each comes from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isinf
from types import MappingProxyType
from typing import NamedTuple

from hybridmoe.gguf.quant_types import QuantType as Q
from hybridmoe.planning.kernel_rates import PRODUCT_BYTES, PROMPT_PRODUCTS
from hybridmoe.planning.model_sizes import Part

__all__ = [
    "COPY_TRAFFIC",
    "FUSED_LAYER_S",
    "FUSED_STEP_S",
    "POOLED_LAYER_S",
    "POOLED_STEP_S",
    "PRODUCTS",
    "ROW_COLS",
    "GpuRates",
    "Products",
    "Rates",
    "rates_of",
]

# One token's products read memory and multiply at once: the slower of both counts, and some of the
# other where they are about equal, 1 / rate^4 = the sum of 1 / limit^4. The 59 rows of one token in
# bench/results/2026-11-28_expert_forward.json differ by 10 % in the mean square.
_SHARPNESS = 4
# What each row takes besides, as columns: one token's sum; many tokens' rounding, sums, activation.
# Of 128 columns, a Zen 5: 5.3 ns; prompts of the embedded model and of thin layers.
_TOKEN_ROW_COLS, ROW_COLS = 130, 320
_FEW_TOKENS = (
    8  # are multiplied together, unpacked once: Q4_K 2.4 times as long as one (docs/log.md)
)
_OTHER_SHARE = 0.5  # of DRAM's rate, of a type without a kernel of its own
# A whole model's decode rate over its kernels': smaller matrices, waits between them.
WHOLE_MODEL_SHARE = 0.87


class Products(NamedTuple):
    """Products of an instruction set with many tokens: weights are unpacked for each block."""

    share: float  # of the peak of products in registers, once weights are unpacked
    unpack_tokens: float  # whose products take as long as an unpacking
    float_share: float  # float32 multiply-adds over that peak, where only the peak is given
    block_tokens: float = inf  # that share an unpacking
    int8_share: float = 1.0  # int8 dot products, which decode with, over that peak
    read_share: float = 1.0  # of DRAM's rate, that one token's products reach at most
    next_token: float = 0.2  # of one token's products, for each further one of a few


# The peak is that of bfloat16 tiles for AMX, of int8 dot products elsewhere. AMX: whole prompts on
# a Xeon, 2026-11-25 (docs/plan.md); tiles are faster since, not measured yet.
PRODUCTS: Mapping[str, Products] = MappingProxyType({
    "amx": Products(0.345, 75, 0.065, 96, 0.22, 0.9),
    **{isa: Products(*found) for isa, found in PROMPT_PRODUCTS.items()},
    "scalar": Products(0.9, 5, 9.0),
})  # fmt: skip
_AMX_UNPACK: Mapping[Q, float] = MappingProxyType({
    Q.Q4_K: 36, Q.Q4_0: 36, Q.Q8_0: 65, Q.Q2_K: 70, Q.Q3_K: 77, Q.Q5_K: 69, Q.Q6_K: 80,
    Q.IQ2_XS: 80,
})  # fmt: skip
# Time of a prompt's dense products over the formula's: smaller ones, and those of each head.
DENSE_OVERHEAD = 1.1
# A prompt's time over that of its kernels: norms, routing, rotations, waiting for each other.
PROMPT_OVERHEAD = 1.03
ATTENTION_SHARE = 0.5  # of float32 multiply-adds, counting the pairs that are not masked
# Python and torch between the kernels, of a layer and of a step, on a 2.6 GHz Xeon.
LAYER_S, STEP_S = 250e-6, 500e-6
# The same of one token where all its layers are one native call, and where a layer's experts are
# pooled: of the embedded model's steps, docs/log.md, 2026-11-28.
FUSED_LAYER_S, FUSED_STEP_S = 10e-6, 30e-6
POOLED_LAYER_S, POOLED_STEP_S = 80e-6, 150e-6

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

    def token_s(self, part: Part) -> float:
        """Seconds of one token's products with dense matrices."""
        return part.num_bytes / self.one_token.get(part.type, self.read)

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
    int8_ops: float = inf  # peak of int8 dot products in registers
    has_vbmi: bool = True  # of AVX-512's kernels

    def token_s(self, part: Part) -> float:
        """Seconds of one token's products with matrices on the CPU."""
        reading = part.num_bytes / (self.dram * PRODUCTS[self.isa].read_share)
        per_s = self.product_bytes(part.type)
        if per_s is None:
            return reading / _OTHER_SHARE / WHOLE_MODEL_SHARE
        multiplying = _with_rows(part) / per_s
        together: float = (reading**_SHARPNESS + multiplying**_SHARPNESS) ** (1 / _SHARPNESS)
        return together / WHOLE_MODEL_SHARE

    def product_bytes(self, type: Q) -> float | None:
        """Bytes a second of one token's products from the cache; None without a kernel."""
        kernels = PRODUCT_BYTES["avx512" if self.isa == "amx" else self.isa]
        if type not in kernels:
            return None
        per_kop = kernels[type]
        if kernels is PRODUCT_BYTES["avx512"] and not self.has_vbmi:
            per_kop = PRODUCT_BYTES["avx512_without_vbmi"].get(type, per_kop)
        return 1e-3 * per_kop * self.int8_ops

    def multiply_s(self, part: Part, num_tokens: float) -> float:
        """CPU seconds of the products of matrices and many tokens, weights in the cache."""
        products = PRODUCTS[self.isa]
        unpack = products.unpack_tokens
        if self.isa == "amx":
            unpack = _AMX_UNPACK.get(part.type, unpack)
        worth = num_tokens + unpack * max(1.0, num_tokens / products.block_tokens)
        seconds = 2 * (part.num_params + ROW_COLS * part.num_rows) * worth / self.ops
        per_s = self.product_bytes(part.type)
        if num_tokens > _FEW_TOKENS or per_s is None or isinf(per_s):
            return seconds
        few = 1 + products.next_token * max(0.0, num_tokens - 1)
        return min(seconds, few * _with_rows(part) / per_s)


def _with_rows(part: Part) -> float:
    """Bytes of one token's products, with those that the rows are worth."""
    return part.num_bytes * (1 + _TOKEN_ROW_COLS * part.num_rows / part.num_params)


def rates_of(
    isa: str,
    *,
    dram: float,
    peak_ops: float,
    float_ops: float | None = None,
    disk: float | None = None,
    gpu: GpuRates | None = None,
    has_vbmi: bool = True,
) -> Rates:
    """Derive rates from a machine's limits.

    isa: of the kernels. peak_ops: of products in registers, tiles of bfloat16 for "amx", int8
    dot products for the others. float_ops: of float32 multiply-adds; None: the usual share of it.
    has_vbmi: as of `hardware.isa`.
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
        int8_ops=peak_ops * products.int8_share,
        has_vbmi=has_vbmi,
    )
