"""SwiGLU of one expert in VRAM, for any number of tokens: prefill.

Its matrices are dequantized and multiplied one after the other; `expert_ffn` is for decoding.
"""

from gguf import GGMLQuantizationType
from torch import Tensor

from hybridmoe.errors import ShapeError
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.triton.elementwise import silu_mul
from hybridmoe.kernels.triton.expert_ffn import SlotLayout
from hybridmoe.kernels.triton.matmul import linear
from hybridmoe.kernels.triton.matrix import DeviceMatrix, row_bytes

__all__ = ["add_expert", "layout_of"]


def layout_of(gate: QuantMatrix, up: QuantMatrix, down: QuantMatrix) -> SlotLayout | None:
    """Make the slot layout of experts gate, up (E, I, H), down (E, H, I).

    Returns None if a type has no GPU kernel.
    """
    try:
        return SlotLayout(gate.type, up.type, down.type, hidden=gate.cols, inter=gate.rows)
    except ShapeError:
        return None


def add_expert(
    out: Tensor, x: Tensor, rows: Tensor, factor: Tensor, slot: Tensor, layout: SlotLayout
) -> None:
    """Add factor (n, 1) times the expert's SwiGLU of rows (n) of x to those rows of `out`.

    Shapes:  x, out (T, H) f32 · rows int64, each once · slot (layout.slot_bytes or more,) uint8.
    Numeric: products as `linear`, the rest in f32.
    Errors:  ShapeError. Rows lie in VRAM and are not checked.
    """
    hidden, inter = layout.hidden, layout.inter
    gate = _matrix(slot, 0, layout.gate, inter, hidden)
    up = _matrix(slot, layout.up_offset, layout.up, inter, hidden)
    down = _matrix(slot, layout.down_offset, layout.down, hidden, inter)
    states = x.index_select(0, rows)  # (n, H)
    act = silu_mul(linear(states, gate), linear(states, up))  # (n, I)
    out.index_add_(0, rows, linear(act, down).mul_(factor))


def _matrix(
    slot: Tensor, offset: int, kind: GGMLQuantizationType, rows: int, cols: int
) -> DeviceMatrix:
    end = offset + rows * row_bytes(kind, cols)
    return DeviceMatrix(slot[offset:end], kind, 1, rows, cols)
