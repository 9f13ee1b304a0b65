"""Parser and validator of a GGUF file's header: metadata and the list of tensors.

Takes bytes (a read-only memory map); never opens a file, never touches tensor data. Any bytes give
a `Header` or a one-line `GGUFError`. Memory stays within a small multiple of the header's length:
each count is checked against the bytes that are left before memory is allocated for it.

Strings: keys and tensor names must be UTF-8. In values an invalid sequence becomes U+FFFD, so that
every string can be printed and encoded again; supported vocabularies are byte-level BPE, whose
tokens are valid UTF-8.

Source: the GGUF specification, ggml/docs/gguf.md, versions 2 and 3 (the layouts are the same);
constants come from the `gguf` package, whose own reader checks no bounds and is many times slower
for a vocabulary as large as Kimi K2's (docs/formats.md).
"""

import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGUFValueType

from hybridmoe.gguf.cursor import Cursor, MetadataScalar, printable
from hybridmoe.gguf.quant_types import QuantType, block_layout, refusal, tensor_bytes
from hybridmoe.units import format_bytes

__all__ = ["Header", "MetadataValue", "TensorInfo", "parse_header"]

MetadataValue = MetadataScalar | list[MetadataScalar]

# Limits, far above any real file (K2: 1100 tensors).
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 18
MAX_ALIGNMENT = 1 << 20

_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MIN_KEY_BYTES = 8 + 1 + 4 + 1  # length, one character, value type, smallest value
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8  # length, one character, rank, one dim, type, offset

_STRING = GGUFValueType.STRING
_ARRAY = GGUFValueType.ARRAY
_BOOL = GGUFValueType.BOOL
_DTYPES: dict[GGUFValueType, np.dtype[Any]] = {
    GGUFValueType.UINT8: np.dtype("<u1"),
    GGUFValueType.INT8: np.dtype("<i1"),
    GGUFValueType.UINT16: np.dtype("<u2"),
    GGUFValueType.INT16: np.dtype("<i2"),
    GGUFValueType.UINT32: np.dtype("<u4"),
    GGUFValueType.INT32: np.dtype("<i4"),
    GGUFValueType.FLOAT32: np.dtype("<f4"),
    GGUFValueType.BOOL: np.dtype("<u1"),
    GGUFValueType.UINT64: np.dtype("<u8"),
    GGUFValueType.INT64: np.dtype("<i8"),
    GGUFValueType.FLOAT64: np.dtype("<f8"),
}
_VALUE_TYPES = {int(value_type): value_type for value_type in GGUFValueType}
_TENSOR_TYPES = {int(tensor_type): tensor_type for tensor_type in QuantType}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Entry of the tensor list; `offset` counts from the start of the file."""

    name: str
    type: QuantType
    shape: tuple[int, ...]  # C order: outermost first, row length last
    num_bytes: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """Sound header: every tensor is aligned and overlaps no other."""

    version: int
    metadata: dict[str, MetadataValue]
    tensors: list[TensorInfo]


def parse_header(data: mmap.mmap, file: str, *, needs_data: bool = True) -> Header:
    """Parse the header in `data`. Errors: GGUFError; `file` begins its message.

    needs_data: every tensor must also be inside the file, as before its use.
    """
    cursor = Cursor(data, file)
    version = _read_version(cursor)
    num_tensors = cursor.count("tensor count", MAX_TENSORS, _MIN_TENSOR_BYTES)
    num_keys = cursor.count("metadata key count", MAX_KEYS, _MIN_KEY_BYTES)
    metadata: dict[str, MetadataValue] = {}
    for i in range(num_keys):
        key = cursor.name(f"metadata key {i + 1} of {num_keys}")
        if key in metadata:
            cursor.fail(printable(key), "duplicate metadata key")
        value_type = _read_value_type(cursor, key)
        if key == "general.alignment" and value_type != GGUFValueType.UINT32:
            cursor.fail(key, f"value type {value_type.name}, expected UINT32")
        metadata[key] = _read_value(cursor, key, value_type)
    alignment = _alignment(cursor, metadata)
    tensors: dict[str, TensorInfo] = {}
    for i in range(num_tensors):
        tensor = _read_tensor(cursor, f"tensor {i + 1} of {num_tensors}", alignment)
        if tensor.name in tensors:
            cursor.fail(f"tensor {printable(tensor.name)}", "duplicate name")
        tensors[tensor.name] = tensor
    start = -(-cursor.pos // alignment) * alignment
    return Header(version, metadata, _place(cursor, list(tensors.values()), start, needs_data))


def _read_version(cursor: Cursor) -> int:
    if len(cursor.data) < 4 or cursor.data[:4] != b"GGUF":
        cursor.fail("magic", f"found {cursor.data[:4]!r}, expected b'GGUF': not a GGUF file")
    cursor.pos = 4
    version = cursor.u32("version")
    if version and version & 0xFFFF == 0:
        cursor.fail("version", "the file is big-endian; only little-endian GGUF can be read")
    if version not in _VERSIONS:
        cursor.fail("version", f"found {version}, expected 2 or 3")
    return version


def _read_value_type(cursor: Cursor, key: str) -> GGUFValueType:
    number = cursor.u32(printable(key))
    value_type = _VALUE_TYPES.get(number)
    if value_type is None:
        cursor.fail(printable(key), f"value type {number}, expected 0 to {max(_VALUE_TYPES)}")
    return value_type


def _read_value(cursor: Cursor, key: str, value_type: GGUFValueType) -> MetadataValue:
    field = printable(key)
    if value_type == _STRING:
        return cursor.bytes(field).decode("utf-8", "replace")
    if value_type != _ARRAY:
        return _read_numbers(cursor, field, value_type, 1)[0]
    element_type = _read_value_type(cursor, key)
    if element_type == _ARRAY:
        cursor.fail(field, "array of arrays, expected an array of numbers or strings")
    element_bytes = 8 if element_type == _STRING else _DTYPES[element_type].itemsize
    count = cursor.count(f"{field}: length", cursor.elements_left, element_bytes)
    cursor.elements_left -= count
    if element_type == _STRING:
        return cursor.strings(count, field)
    return _read_numbers(cursor, field, element_type, count)


def _read_numbers(
    cursor: Cursor, field: str, value_type: GGUFValueType, count: int
) -> list[MetadataScalar]:
    dtype = _DTYPES[value_type]
    cursor.need(count * dtype.itemsize, field)
    array = np.frombuffer(cursor.data, dtype, count, cursor.pos)
    cursor.pos += array.nbytes
    if value_type == _BOOL:
        if count and array.max() > 1:
            cursor.fail(field, f"found a BOOL of {array.max()}, expected 0 or 1")
        array = array.astype(np.bool_)
    numbers: list[MetadataScalar] = array.tolist()
    return numbers


def _alignment(cursor: Cursor, metadata: dict[str, MetadataValue]) -> int:
    key = "general.alignment"
    alignment = metadata.get(key, _DEFAULT_ALIGNMENT)
    assert isinstance(alignment, int), alignment
    if not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        cursor.fail(key, f"found {alignment}, expected a power of two from 8 to {MAX_ALIGNMENT}")
    return alignment


def _read_tensor(cursor: Cursor, which: str, alignment: int) -> TensorInfo:
    """Read a tensor's entry, with an offset relative to the data section."""
    name = cursor.name(which)
    field = f"tensor {printable(name)}"
    num_dims = cursor.u32(field)
    if not 1 <= num_dims <= 4:
        cursor.fail(field, f"{num_dims} dimensions, expected 1 to 4")
    dims = [cursor.u64(field) for _ in range(num_dims)]
    if 0 in dims:
        cursor.fail(field, f"dimensions {dims}, expected all above 0")
    type_number = cursor.u32(field)
    tensor_type = _TENSOR_TYPES.get(type_number)
    if tensor_type is None:
        cursor.fail(field, f"type {type_number} {refusal(type_number)}")
    shape, block = tuple(reversed(dims)), block_layout(tensor_type).weights
    if dims[0] % block:
        cursor.fail(
            field, f"row length {dims[0]}, expected a multiple of {tensor_type.name}'s {block}"
        )
    num_bytes = tensor_bytes(tensor_type, shape)
    if num_bytes >= 1 << 63:
        cursor.fail(field, f"dimensions {dims} make 2^63 bytes or more")
    offset = cursor.u64(field)
    if offset % alignment:
        cursor.fail(field, f"offset {offset}, expected a multiple of the alignment {alignment}")
    return TensorInfo(name, tensor_type, shape, num_bytes, offset)


def _place(
    cursor: Cursor, tensors: list[TensorInfo], start: int, needs_data: bool
) -> list[TensorInfo]:
    """Make offsets absolute; refuse overlaps and missing data. start: of the data section."""
    placed = [TensorInfo(t.name, t.type, t.shape, t.num_bytes, start + t.offset) for t in tensors]
    size = len(cursor.data)
    before: TensorInfo | None = None
    for tensor in sorted(placed, key=lambda t: t.offset):
        field = f"tensor {printable(tensor.name)}"
        if before and tensor.offset < before.offset + before.num_bytes:
            cursor.fail(
                field,
                f"data at byte {tensor.offset} overlaps tensor {printable(before.name)}, "
                f"which ends at byte {before.offset + before.num_bytes}",
            )
        before = tensor
    end = before.offset + before.num_bytes if before else 0
    if before and end > size and needs_data:
        cursor.fail(
            f"tensor {printable(before.name)}",
            f"data ends at byte {end}, the file at {size}: the download is incomplete,"
            f" {end - size} bytes are missing ({format_bytes(end - size)}); hybridmoe plan works"
            " with it",
        )
    return placed
