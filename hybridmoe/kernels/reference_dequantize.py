"""Reference dequantization in numpy of the types that the gguf package cannot decode.

Written from the layouts in csrc/formats: codes, scales and shifts are first unpacked for all blocks
at once. One float32 product gives a group's scale, a second its weights, as in the projects that
write these types.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from gguf import quants
from numpy.typing import NDArray

from hybridmoe.gguf.quant_types import QuantType, block_layout, row_bytes
from hybridmoe.kernels.value_tables import (
    EIGHT_VALUES,
    FOUR_VALUES,
    PAIRS,
    SIXTEEN_VALUES,
    SIXTY_FOUR_VALUES,
    THIRTY_TWO_VALUES,
)

__all__ = ["dequantize_rows"]

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class _Codes(NamedTuple):
    """Blocks, unpacked. Shapes: values (n, weights of a block) · scales, shifts (n, groups)."""

    values: Ints
    scales: Ints
    shifts: Ints | None = None  # added to the values


def dequantize_rows(rows: Bytes, type: QuantType) -> Floats:
    """Dequantize rows (n, row bytes) of any type to (n, cols)."""
    unpack = _UNPACK.get(type)
    if unpack is None:
        return np.asarray(quants.dequantize(rows, type), np.float32)
    weights, num_bytes, row_scale_bytes = block_layout(type)
    num_blocks = (rows.shape[1] - row_scale_bytes) // num_bytes
    assert rows.shape[1] == row_bytes(type, num_blocks * weights), (type.name, rows.shape)
    blocks = rows[:, row_scale_bytes:].reshape(-1, num_bytes)
    if row_scale_bytes:
        dtype = "<f2" if row_scale_bytes == 2 else "<f4"
        d = np.repeat(rows[:, :row_scale_bytes].copy().view(dtype), num_blocks, 0)
    else:
        d = blocks[:, :2].copy().view("<f2")
    codes = unpack(blocks)
    num_groups = codes.scales.shape[1]
    values = codes.values.reshape(len(blocks), num_groups, -1)
    if codes.shifts is not None:
        values = values + codes.shifts[:, :, None]
    scales = d.astype(np.float32) * codes.scales.astype(np.float32)
    weights_of_blocks = scales[:, :, None] * values.astype(np.float32)
    return weights_of_blocks.reshape(len(rows), -1)


def _fields(data: Bytes, bits: int) -> Ints:
    """Split each byte into fields, lowest first: (n, bytes, 8 / bits)."""
    places = np.arange(0, 8, bits)
    return (data[:, :, None].astype(np.int64) >> places) & ((1 << bits) - 1)


def _in_order(data: Bytes, bits: int) -> Ints:
    """Split bytes into fields, those of the first byte first."""
    return _fields(data, bits).reshape(len(data), -1)


def _by_runs(data: Bytes, bits: int, run: int) -> Ints:
    """Split runs of bytes: the lowest fields of a whole run come first, then the next ones."""
    split = _fields(data, bits).reshape(len(data), -1, run, 8 // bits)
    return split.swapaxes(2, 3).reshape(len(data), -1)


def _choose(values: Sequence[int], codes: Ints) -> Ints:
    chosen: Ints = np.array(values)[codes]
    return chosen


def _q1_0(b: Bytes) -> _Codes:
    return _Codes(2 * _in_order(b[:, 2:], 1) - 1, np.ones((len(b), 1), np.int64))


def _q2_0(b: Bytes) -> _Codes:
    return _Codes(_in_order(b[:, 2:], 2) - 1, np.ones((len(b), 1), np.int64))


def _q6_0(b: Bytes) -> _Codes:
    high = _by_runs(b[:, 2:10], 4, 8)  # of weights i and i + 16
    values = _by_runs(b[:, 10:], 4, 16) | np.concatenate((high & 3, high >> 2), 1) << 4
    return _Codes(values - 32, np.ones((len(b), 1), np.int64))


def _iq2_k(b: Bytes) -> _Codes:
    values = _choose(FOUR_VALUES, _by_runs(b[:, 12:], 2, 32))
    return _Codes(values, _in_order(b[:, 4:12], 4) - 8, 5 * _in_order(b[:, 2:4], 1))


def _iq2_ks(b: Bytes) -> _Codes:
    values = _choose(FOUR_VALUES, _by_runs(b[:, 6:], 2, 32))
    bits = _in_order(b[:, :2], 1)
    return _Codes(values, (_in_order(b[:, 2:6], 4) | bits[:, 8:] << 4) - 16, 5 * bits[:, :8])


def _iq2_kl(b: Bytes) -> _Codes:
    index = _by_runs(b[:, 6:70], 4, 16) | _by_runs(b[:, 70:], 1, 16) << 4
    scales = (_by_runs(b[:, 2:6], 4, 4) | _in_order(b[:, :2], 2) << 4) - 32
    return _Codes(np.array(PAIRS)[index].reshape(len(b), -1), scales)


def _iq3_values(two_bits: Bytes, third_bits: Bytes) -> Ints:
    codes = _by_runs(two_bits, 2, 32) | _by_runs(third_bits, 1, 32) << 2
    return _choose(EIGHT_VALUES, codes)


def _iq3_k(b: Bytes) -> _Codes:
    scales = (2 * _in_order(b[:, 6:14], 4) + 1) * (1 - 2 * _in_order(b[:, 4:6], 1))
    return _Codes(_iq3_values(b[:, 14:78], b[:, 78:]), scales, 4 * _in_order(b[:, 2:4], 1))


def _iq3_ks(b: Bytes) -> _Codes:
    bits = _in_order(b[:, :2], 1)
    scales = (_by_runs(b[:, 2:6], 4, 4) | bits[:, :8] << 4) - 16
    return _Codes(_iq3_values(b[:, 6:70], b[:, 70:]), scales, 4 * bits[:, 8:])


def _six_bit_scales(high: Bytes, low: Bytes) -> Ints:
    return (_in_order(low, 4) | _in_order(high, 2) << 4) - 32


def _iq4_k(b: Bytes) -> _Codes:
    values = _choose(SIXTEEN_VALUES, _by_runs(b[:, 16:], 4, 16))
    return _Codes(values, _six_bit_scales(b[:, 4:8], b[:, 8:16]), 4 * _in_order(b[:, 2:4], 1))


def _seven_bit_scales(data: Ints) -> tuple[Ints, Ints]:
    return (data & 254) - 127, data & 1


def _iq4_ks(b: Bytes) -> _Codes:
    scales, shifts = _seven_bit_scales(b[:, :8].astype(np.int64))
    return _Codes(_choose(SIXTEEN_VALUES, _by_runs(b[:, 8:], 4, 16)), scales, 4 * shifts)


def _iq4_kss(b: Bytes) -> _Codes:
    words = b.copy().view("<u2")
    scales, shifts = _seven_bit_scales(
        np.packbits((words & 1).astype(np.uint8), axis=1, bitorder="little").astype(np.int64)
    )
    even = words & 0xFFFE
    qs = (even ^ even >> 1).view(np.uint8)
    return _Codes(_choose(SIXTEEN_VALUES, _by_runs(qs, 4, 16)), scales, 4 * shifts)


def _iq5_values(four_bits: Bytes, fifth_bits: Bytes) -> Ints:
    codes = _by_runs(four_bits, 4, 32) | _by_runs(fifth_bits, 1, 32) << 4
    return _choose(THIRTY_TWO_VALUES, codes)


def _iq5_k(b: Bytes) -> _Codes:
    scales = _six_bit_scales(b[:, 4:8], b[:, 8:16])
    return _Codes(_iq5_values(b[:, 16:144], b[:, 144:]), scales, 2 * _in_order(b[:, 2:4], 1))


def _iq5_ks(b: Bytes) -> _Codes:
    scales, shifts = _seven_bit_scales(b[:, :8].astype(np.int64))
    return _Codes(_iq5_values(b[:, 8:136], b[:, 136:]), scales, 2 * shifts)


def _iq6_k(b: Bytes) -> _Codes:
    codes = _by_runs(b[:, 20:148], 4, 32) | _by_runs(b[:, 148:], 2, 32) << 4
    scales = b[:, 4:20].copy().view(np.int8).astype(np.int64)
    return _Codes(_choose(SIXTY_FOUR_VALUES, codes), scales, _in_order(b[:, 2:4], 1))


_UNPACK: dict[QuantType, Callable[[Bytes], _Codes]] = {
    QuantType.Q1_0: _q1_0, QuantType.Q2_0: _q2_0, QuantType.Q6_0: _q6_0,
    QuantType.IQ2_K: _iq2_k, QuantType.IQ2_KS: _iq2_ks, QuantType.IQ2_KL: _iq2_kl,
    QuantType.IQ3_K: _iq3_k, QuantType.IQ3_KS: _iq3_ks,
    QuantType.IQ4_K: _iq4_k, QuantType.IQ4_KS: _iq4_ks, QuantType.IQ4_KSS: _iq4_kss,
    QuantType.IQ5_K: _iq5_k, QuantType.IQ5_KS: _iq5_ks, QuantType.IQ6_K: _iq6_k,
}  # fmt: skip
