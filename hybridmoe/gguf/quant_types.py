"""Tensor types of GGUF files: numbers, names, and how many bytes a row takes.

The `gguf` package lists those of llama.cpp at its release. Numbers from 133 on are ik_llama.cpp's
own, and so are types whose rows begin with a scale of the whole row, before the blocks.

Sources: llama.cpp, ggml/include/ggml.h (2026-10); ik_llama.cpp, ggml/include/ggml.h and the type
traits in ggml/src/ggml.c (2026-08).
"""

from enum import IntEnum
from math import prod
from typing import NamedTuple

__all__ = ["BlockLayout", "QuantType", "block_layout", "refusal", "row_bytes", "tensor_bytes"]


class BlockLayout(NamedTuple):
    """Row of a type: its scale, if it has one, then blocks."""

    weights: int  # of a block
    num_bytes: int  # of a block
    row_scale_bytes: int


class QuantType(IntEnum):
    """Type of a tensor: its number in GGUF files, then the numbers of `BlockLayout`."""

    layout: BlockLayout

    def __new__(
        cls, number: int, weights: int, num_bytes: int, row_scale_bytes: int = 0
    ) -> "QuantType":
        member = int.__new__(cls, number)
        member._value_ = number
        member.layout = BlockLayout(weights, num_bytes, row_scale_bytes)
        return member

    F32 = 0, 1, 4
    F16 = 1, 1, 2
    Q4_0 = 2, 32, 18
    Q4_1 = 3, 32, 20
    Q5_0 = 6, 32, 22
    Q5_1 = 7, 32, 24
    Q8_0 = 8, 32, 34
    Q8_1 = 9, 32, 40
    Q2_K = 10, 256, 84
    Q3_K = 11, 256, 110
    Q4_K = 12, 256, 144
    Q5_K = 13, 256, 176
    Q6_K = 14, 256, 210
    Q8_K = 15, 256, 292
    IQ2_XXS = 16, 256, 66
    IQ2_XS = 17, 256, 74
    IQ3_XXS = 18, 256, 98
    IQ1_S = 19, 256, 50
    IQ4_NL = 20, 32, 18
    IQ3_S = 21, 256, 110
    IQ2_S = 22, 256, 82
    IQ4_XS = 23, 256, 136
    I8 = 24, 1, 1
    I16 = 25, 1, 2
    I32 = 26, 1, 4
    I64 = 27, 1, 8
    F64 = 28, 1, 8
    IQ1_M = 29, 256, 56
    BF16 = 30, 1, 2
    TQ1_0 = 34, 256, 54
    TQ2_0 = 35, 256, 66
    MXFP4 = 39, 32, 17
    NVFP4 = 40, 64, 36
    Q1_0 = 41, 128, 18
    Q2_0 = 42, 64, 18
    Q6_0 = 133, 32, 26
    IQ2_K = 137, 256, 76
    IQ3_K = 138, 256, 110
    IQ4_K = 139, 256, 144
    IQ5_K = 140, 256, 176
    IQ6_K = 141, 256, 212
    IQ4_KS = 144, 256, 136, 4
    IQ2_KS = 145, 256, 70, 2
    IQ4_KSS = 146, 256, 128, 4
    IQ5_KS = 152, 256, 168, 4
    IQ3_KS = 156, 256, 102, 2
    IQ2_KL = 157, 256, 86, 2


_LAYOUTS = {int(type): type.layout for type in QuantType}

# Types that llama.cpp once wrote; ik_llama.cpp's that this cannot read. Repacked ones (_R4, _R8,
# _R16) hold several rows' blocks interleaved, made by its --run-time-repack or its quantizer.
_REMOVED = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8",
    36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
}  # fmt: skip
_UNREAD_IK = {
    134: "IQ1_BN", 135: "IQ2_BN", 142: "IQ2_TN", 143: "IQ1_TN", 151: "Q8_KV",
    153: "IQ2_KT", 154: "IQ3_KT", 155: "IQ4_KT", 158: "IQ1_KT",
    202: "Q4_0_R8", 206: "Q5_0_R4", 208: "Q8_0_R8", 210: "Q2_K_R4", 211: "Q3_K_R4",
    212: "Q4_K_R4", 213: "Q5_K_R4", 214: "Q6_K_R4", 216: "IQ2_XXS_R4", 217: "IQ2_XS_R4",
    218: "IQ3_XXS_R4", 219: "IQ1_S_R4", 220: "IQ4_NL_R4", 221: "IQ3_S_R4", 222: "IQ2_S_R4",
    223: "IQ4_XS_R8", 229: "IQ1_M_R4", 230: "BF16_R16", 233: "Q6_0_R4", 335: "IQ2_BN_R4",
    337: "IQ2_K_R4", 338: "IQ3_K_R4", 339: "IQ4_K_R4", 340: "IQ5_K_R4", 344: "IQ4_KS_R4",
    352: "IQ5_KS_R4", 353: "MXFP4_R8", 397: "Q8_K_R16", 398: "Q8_KV_R8", 399: "Q8_K_R8",
}  # fmt: skip


def block_layout(type: QuantType) -> BlockLayout:
    """Return the sizes of a type's rows."""
    return _LAYOUTS[type]


def row_bytes(type: QuantType, cols: int) -> int:
    """Count the bytes of a row of `cols` weights, which are whole blocks."""
    weights, num_bytes, row_scale_bytes = _LAYOUTS[type]
    assert cols % weights == 0, (type.name, cols)
    return row_scale_bytes + cols // weights * num_bytes


def tensor_bytes(type: QuantType, shape: tuple[int, ...]) -> int:
    """Count the bytes of a tensor; shape: row length last."""
    return prod(shape[:-1]) * row_bytes(type, shape[-1])


def refusal(number: int) -> str:
    """Describe a type that is not in `QuantType`, as the end of a sentence about `number`."""
    if removed := _REMOVED.get(number):
        return f"({removed}) was removed from GGUF: re-quantise"
    if name := _UNREAD_IK.get(number):
        is_repacked = name.rpartition("_R")[2].isdecimal()
        advice = f": quantise to {name.rpartition('_R')[0]} instead" if is_repacked else ""
        return f"({name} of ik_llama.cpp) is not supported{advice}"
    return "is unknown"
