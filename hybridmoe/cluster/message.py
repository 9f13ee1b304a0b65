"""Messages between rank 0 and a worker: a binary header, arrays, and a seal, in memory kept for it.

    request   ids (T, K) int32, -1 = not this worker's · weights (T, K) f32 · states (T, H) f32
    sum       (T, H) f32, of the worker's experts for each token
    failure   one line of UTF-8
    abandoned, farewell   nothing

All numbers are little-endian. The seal behind the arrays is the message's number again: memory is
used for one message after the other, so that a shorter one would show an earlier one's bytes.
"""

import struct
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridmoe.errors import ClusterError

__all__ = ["PROTOCOL", "Frame", "FrameShape", "Header", "Kind", "RequestArrays", "printable"]

PROTOCOL = 1  # raised with every change of a message or of the handshake

_MAGIC = b"hmXPERT1"
_HEADER = struct.Struct("<8sIIIIQQQ")
_SEAL = struct.Struct("<Q")
_BEGIN = 64  # of the arrays, aligned for all of them
_MAX_LINE_BYTES = 2048
assert _HEADER.size <= _BEGIN


class Kind(IntEnum):
    """Contents of a message."""

    REQUEST = 1
    SUM = 2
    FAILURE = 3
    ABANDONED = 4  # the request, since its step is wanted no more
    FAREWELL = 5


_KINDS = {int(kind): kind for kind in Kind}


class Header(NamedTuple):
    """Fields of a message. Steps and messages count from 1 on a connection."""

    kind: Kind
    layer: int = 0
    num_tokens: int = 0
    step_tokens: int = 0  # of the whole step, this worker's or not
    step: int = 0
    number: int = 0  # of the message; a sum has its request's


class FrameShape(NamedTuple):
    """Sizes that both ends of a connection have agreed on."""

    max_tokens: int  # of one message
    top_k: int
    hidden: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the longest message."""
        body = max(_MAX_LINE_BYTES, self.max_tokens * self.request_token_bytes)
        return _BEGIN + body + _SEAL.size

    @property
    def request_token_bytes(self) -> int:
        return 8 * self.top_k + 4 * self.hidden


class RequestArrays(NamedTuple):
    """Arrays of a request, in the memory of a message."""

    ids: NDArray[np.int32]  # (T, K), -1 = not this worker's
    weights: NDArray[np.float32]  # (T, K)
    states: NDArray[np.float32]  # (T, H)


class Frame:
    """Memory of one message at a time, in one direction."""

    def __init__(self, shape: FrameShape) -> None:
        self.shape = shape
        self.memory = torch.empty(shape.num_bytes, dtype=torch.uint8)  # touched as far as used
        self._bytes = self.memory.numpy()
        self._view = self._bytes.data
        self._requests: dict[int, RequestArrays] = {}  # views, by tokens
        self._sums: dict[int, NDArray[np.float32]] = {}

    def request(self, tokens: int) -> "RequestArrays":
        """View the arrays of a request."""
        if (found := self._requests.get(tokens)) is None:
            top_k, chosen = self.shape.top_k, 4 * tokens * self.shape.top_k
            found = self._requests[tokens] = RequestArrays(
                self._array(_BEGIN, tokens, top_k).view(np.int32),
                self._array(_BEGIN + chosen, tokens, top_k),
                self._array(_BEGIN + 2 * chosen, tokens, self.shape.hidden),
            )
        return found

    def sums(self, tokens: int) -> NDArray[np.float32]:
        """View (T, H) sums of a reply."""
        if (found := self._sums.get(tokens)) is None:
            found = self._sums[tokens] = self._array(_BEGIN, tokens, self.shape.hidden)
        return found

    @property
    def line(self) -> str:
        """Text of a failure that was read."""
        end = _BEGIN + min(self._body_bytes, _MAX_LINE_BYTES)
        return printable(bytes(self._view[_BEGIN:end]))

    def seal(self, header: Header, line: str = "") -> Tensor:
        """Write header and seal around the arrays. Returns the bytes to send.

        line: of a failure.
        """
        if header.kind is Kind.FAILURE:
            text = line.encode()[:_MAX_LINE_BYTES]
            self._view[_BEGIN : _BEGIN + len(text)] = text
            num_bytes = len(text)
        else:
            num_bytes = self._expected_bytes(header.kind, header.num_tokens)
        _HEADER.pack_into(self._view, 0, _MAGIC, *header, num_bytes)
        _SEAL.pack_into(self._view, _BEGIN + num_bytes, header.number)
        return self.memory[: _BEGIN + num_bytes + _SEAL.size]

    def read(self) -> Header:
        """Check a message that has arrived. Errors: ClusterError naming the field."""
        magic, number_of_kind, layer, tokens, step_tokens, step, number, num_bytes = (
            _HEADER.unpack_from(self._view)
        )
        if magic != _MAGIC:
            raise ClusterError(f"malformed message: begins with {magic!r}, expected {_MAGIC!r}")
        if (kind := _KINDS.get(number_of_kind)) is None:
            raise ClusterError(
                f"malformed message: kind is {number_of_kind}, expected 1 to {len(Kind)}"
            )
        if tokens > self.shape.max_tokens:
            raise ClusterError(
                f"malformed message: {tokens} tokens, expected {self.shape.max_tokens} at most"
            )
        if kind is Kind.FAILURE:
            is_right = num_bytes <= _MAX_LINE_BYTES
        else:
            is_right = num_bytes == self._expected_bytes(kind, tokens)
        if not is_right:
            raise ClusterError(
                f"malformed message: {num_bytes} bytes of a {kind.name.lower()} of {tokens} tokens"
            )
        (end,) = _SEAL.unpack_from(self._view, _BEGIN + num_bytes)
        if end != number:
            raise ClusterError(f"malformed message: number {number} at the begin, {end} at the end")
        self._body_bytes = num_bytes
        return Header(kind, layer, tokens, step_tokens, step, number)

    def _expected_bytes(self, kind: Kind, tokens: int) -> int:
        if kind is Kind.REQUEST:
            return tokens * self.shape.request_token_bytes
        return tokens * 4 * self.shape.hidden if kind is Kind.SUM else 0

    def _array(self, start: int, rows: int, cols: int) -> NDArray[np.float32]:
        flat = self._bytes[start : start + 4 * rows * cols]
        return flat.view(np.float32).reshape(rows, cols)


def printable(text: bytes) -> str:
    """Decode another host's line for a terminal."""
    found = text[:_MAX_LINE_BYTES].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else " " for c in found)
