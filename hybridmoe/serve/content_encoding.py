"""Decompression of request bodies, piece by piece.

A few bytes can stand for gigabytes: a decoder makes its output in steps of bounded size, so that
the reader can stop at its limit.
"""

import zlib
from collections.abc import Iterator
from typing import Protocol

import zstandard

from hybridmoe.serve.errors import ApiError

__all__ = ["BodyDecoder", "body_decoder"]

_STEP_BYTES = 1 << 18
_ZSTD_INPUT_BYTES = 256  # a block of 4 bytes makes 128 KiB: at most 8 MiB a step
_ZSTD_WINDOW_BYTES = 8 << 20  # what every decoder must support, and need not exceed: RFC 9659
_CODINGS = ("gzip", "deflate", "zstd")


class BodyDecoder(Protocol):
    """Decoder of one body."""

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Decode the next piece. Yields parts of at most a few MiB. Raises ApiError (400)."""

    def finish(self) -> None:
        """Check that the body is complete. Raises ApiError (400)."""


def body_decoder(coding: str) -> BodyDecoder | None:
    """Make the decoder of a Content-Encoding; None if the body is not encoded.

    Raises ApiError (415) for codings that are not supported.
    """
    name = coding.strip().lower()
    if name in ("", "identity"):
        return None
    if name in ("gzip", "x-gzip", "deflate"):
        return _Zlib(name.removeprefix("x-"))
    if name == "zstd":
        return _Zstd()
    raise ApiError(
        415,
        f"Content-Encoding {coding!r:.60} is not supported; expected one of {', '.join(_CODINGS)}",
        headers={"Accept-Encoding": ", ".join(_CODINGS)},
    )


class _Zlib:
    """Decoder of gzip, also of several members, and of deflate with or without zlib's header."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._start = b""  # of a deflate body, until its form is known
        self._stream = zlib.decompressobj(31) if coding == "gzip" else None

    def feed(self, piece: bytes) -> Iterator[bytes]:
        if self._stream is None:
            self._start += piece
            if len(self._start) < 2:
                return
            piece, self._start = self._start, b""
            self._stream = zlib.decompressobj(15 if _has_zlib_header(piece) else -15)
        while piece:
            if self._stream.eof:
                if self._coding != "gzip":
                    raise _damaged(self._coding, "it goes on after its end")
                self._stream = zlib.decompressobj(31)
            try:
                part = self._stream.decompress(piece, _STEP_BYTES)
            except zlib.error as error:
                raise _damaged(self._coding, str(error)) from None
            piece = self._stream.unconsumed_tail or self._stream.unused_data
            if part:
                yield part

    def finish(self) -> None:
        if self._start or (self._stream is not None and not self._stream.eof):
            raise _damaged(self._coding, "it is cut off")


class _Zstd:
    """Decoder of zstd, also of several frames."""

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        self._stream = self._decompressor.decompressobj()

    def feed(self, piece: bytes) -> Iterator[bytes]:
        for start in range(0, len(piece), _ZSTD_INPUT_BYTES):
            rest = piece[start : start + _ZSTD_INPUT_BYTES]
            while rest:
                if self._stream.eof:
                    self._stream = self._decompressor.decompressobj()
                try:
                    part = self._stream.decompress(rest)
                except zstandard.ZstdError as error:
                    raise _damaged("zstd", str(error)) from None
                rest = self._stream.unused_data
                if part:
                    yield part

    def finish(self) -> None:
        if not self._stream.eof:
            raise _damaged("zstd", "it is cut off")


def _has_zlib_header(start: bytes) -> bool:
    """Tell zlib's header (RFC 1950) from raw deflate, which some clients send as `deflate`."""
    return start[0] & 0x0F == 8 and int.from_bytes(start[:2], "big") % 31 == 0


def _damaged(coding: str, reason: str) -> ApiError:
    return ApiError(400, f"the body is not valid {coding}: {reason}"[:200])
