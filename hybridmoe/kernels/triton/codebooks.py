"""Codebooks of the IQ types, of the gguf package, and tables of values, as one table on the device.

An entry is a 16-bit word for 8 weights of 2 bits each, or 4 weights of 4; byte order and values of
the codes are those of `gguf.quants`. Codes become weights by arithmetic, so the table is 9 KB and
stays in the L1 cache. Behind them are values of ik_llama.cpp's types: those of five and of six
bits, and pairs of IQ2_KL, plus 128, as two bytes. Kernels take it as an argument, since Triton has
no constant arrays.
"""

from functools import cache

import numpy as np
import torch
import triton.language as tl
from gguf import quants
from torch import Tensor

from hybridmoe.kernels import value_tables

__all__ = [
    "FIVE_BITS", "IQ1", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ3_S", "IQ3_XXS", "PAIRS", "SIX_BITS",
    "codebooks",
]  # fmt: skip

_TYPES = (
    quants.IQ1_S, quants.IQ2_XXS, quants.IQ2_XS, quants.IQ2_S, quants.IQ3_XXS, quants.IQ3_S,
)  # fmt: skip
_FIRST = np.cumsum([0, *(kind.grid_shape[0] for kind in _TYPES)]).tolist()

# Index of each codebook's first word. IQ1 is that of IQ1_S and IQ1_M.
IQ1, IQ2_XXS, IQ2_XS = (tl.constexpr(first) for first in _FIRST[:3])
IQ2_S, IQ3_XXS, IQ3_S = (tl.constexpr(first) for first in _FIRST[3:6])
FIVE_BITS = tl.constexpr(_FIRST[-1])
SIX_BITS = tl.constexpr(_FIRST[-1] + len(value_tables.THIRTY_TWO_VALUES))
PAIRS = tl.constexpr(SIX_BITS.value + len(value_tables.SIXTY_FOUR_VALUES))


@cache
def codebooks(device: torch.device) -> Tensor:
    """Return the words (4736,) int16, one tensor for each device."""
    data = b"".join(bytes.fromhex((kind.grid_hex or b"").decode()) for kind in _TYPES)
    words = np.frombuffer(data, "<i2")
    assert len(words) == _FIRST[-1], len(words)
    values = np.array(value_tables.THIRTY_TWO_VALUES + value_tables.SIXTY_FOUR_VALUES, "<i2")
    pairs = (np.array(value_tables.PAIRS) + 128).astype(np.uint8).view("<i2").reshape(-1)
    return torch.from_numpy(np.concatenate((words, values, pairs))).to(device)
