"""Build GGUF bytes by hand, so that every number in them can be wrong on purpose."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gguf import GGUFValueType

from hybridmoe.gguf.quant_types import QuantType, tensor_bytes

V = GGUFValueType
PACKING = {
    V.UINT8: "B", V.INT8: "b", V.UINT16: "H", V.INT16: "h", V.UINT32: "I", V.INT32: "i",
    V.FLOAT32: "f", V.BOOL: "?", V.UINT64: "Q", V.INT64: "q", V.FLOAT64: "d",
}  # fmt: skip


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return u64(len(raw)) + raw


def scalar(value_type: GGUFValueType, value: object) -> bytes:
    if value_type == V.STRING:
        assert isinstance(value, str | bytes)
        return string(value)
    return struct.pack("<" + PACKING[value_type], value)


def array(element_type: GGUFValueType, values: Sequence[object]) -> bytes:
    payload = b"".join(scalar(element_type, value) for value in values)
    return u32(element_type) + u64(len(values)) + payload


def key(name: str | bytes, value_type: int, payload: bytes) -> bytes:
    return string(name) + u32(value_type) + payload


def text_key(name: str, text: str | bytes) -> bytes:
    return key(name, V.STRING, string(text))


def u32_key(name: str, value: int) -> bytes:
    return key(name, V.UINT32, u32(value))


@dataclass(frozen=True)
class RawTensor:
    """A tensor entry; `dims` in GGUF's order, row length first."""

    name: str | bytes
    dims: Sequence[int]
    type: int = QuantType.F32
    offset: int = 0
    num_dims: int | None = None  # what the file says, if not len(dims)

    def entry(self) -> bytes:
        count = len(self.dims) if self.num_dims is None else self.num_dims
        dims = b"".join(u64(dim) for dim in self.dims)
        return string(self.name) + u32(count) + dims + u32(self.type) + u64(self.offset)

    @property
    def num_bytes(self) -> int:
        return tensor_bytes(QuantType(self.type), tuple(reversed(self.dims)))


@dataclass(frozen=True)
class RawFile:
    """A whole file; a count of None is the true one."""

    keys: Sequence[bytes] = ()
    tensors: Sequence[RawTensor] = ()
    data: bytes = b""
    magic: bytes = b"GGUF"
    version: int = 3
    num_tensors: int | None = None
    num_keys: int | None = None
    alignment: int = 32
    extra: bytes = field(default=b"")  # after the tensor entries

    def header(self) -> bytes:
        num_tensors = len(self.tensors) if self.num_tensors is None else self.num_tensors
        num_keys = len(self.keys) if self.num_keys is None else self.num_keys
        counts = u64(num_tensors) + u64(num_keys)
        entries = b"".join(tensor.entry() for tensor in self.tensors)
        return self.magic + u32(self.version) + counts + b"".join(self.keys) + entries + self.extra

    def to_bytes(self) -> bytes:
        header = self.header()
        return header + bytes(-len(header) % self.alignment) + self.data

    def write(self, path: Path) -> Path:
        path.write_bytes(self.to_bytes())
        return path

    def but(self, **changes: object) -> "RawFile":
        return replace(self, **changes)  # type: ignore[arg-type]


def packed(tensors: Sequence[RawTensor], alignment: int = 32) -> tuple[list[RawTensor], bytes]:
    """The tensors one after another, aligned, and data for them that differs byte by byte."""
    placed, num_bytes = laid_out(tensors, alignment)
    data = bytearray(num_bytes)
    for tensor in placed:
        places = range(tensor.offset, tensor.offset + tensor.num_bytes)
        data[tensor.offset : places.stop] = bytes(place * 7 % 251 for place in places)
    return placed, bytes(data)


def laid_out(tensors: Sequence[RawTensor], alignment: int = 32) -> tuple[list[RawTensor], int]:
    """The tensors one after another, aligned, and the bytes of their data."""
    placed, end = [], 0
    for tensor in tensors:
        placed.append(replace(tensor, offset=-(-end // alignment) * alignment))
        end = placed[-1].offset + tensor.num_bytes
    return placed, end
