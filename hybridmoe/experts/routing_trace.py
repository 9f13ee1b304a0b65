"""Routing traces: files with the experts of each token of a run.

Format: docs/traces.md. The writer appends compressed blocks during the run. The reader checks every
count and size before use, since a trace may come from anywhere. Of a truncated file, after a crash
for example, it returns the whole blocks, as a trace that is not complete.
"""

import json
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import zstandard
from numpy.typing import ArrayLike, NDArray

from hybridmoe.errors import ConfigError
from hybridmoe.replace_file import sync_file, sync_folder

__all__ = ["PHASES", "Trace", "TraceWriter", "read_trace", "write_trace"]

PHASES = ("prefill", "decode")

_MAGIC = b"hmROUTE1"
_BLOCK = struct.Struct("<III")  # tokens, steps, bytes that follow; (0, 0, n) is the end
_MAX_JSON_BYTES = 16 << 20
_MAX_BLOCK_BYTES = 256 << 20
_FLUSH_BYTES = 4 << 20
_FLUSH_S = 5.0  # most that a killed run loses, besides its last step
_MAX_RATIO = 2000  # of compression, over the whole file; real traces reach 3
_INT16 = np.iinfo(np.int16).max


@dataclass(frozen=True)
class Trace:
    """Routing of a run: T tokens, L layers with experts, K experts each."""

    header: dict[str, Any]
    ids: NDArray[np.int16]  # (T, L, K); -1 = none
    weights: NDArray[np.float16]  # (T, L, K), of the experts' outputs
    steps: NDArray[np.int32]  # tokens of each forward pass; they add up to T
    conversations: NDArray[np.int32]  # (T,): numbers, described in the header
    phases: NDArray[np.uint8]  # (T,): index into PHASES
    is_complete: bool = True  # else the file was truncated, and the run's end is missing

    @property
    def num_layers(self) -> int:
        return int(self.header["num_layers"])

    @property
    def num_experts(self) -> int:
        return int(self.header["num_experts"])

    @property
    def top_k(self) -> int:
        return int(self.header["top_k"])

    @property
    def num_tokens(self) -> int:
        return len(self.ids)


class TraceWriter:
    """Writer of a trace, step by step; `close` reports failed writes."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """Create the file. Errors: ConfigError for an unusable header; OSError."""
        self._path = path
        self._header = {"version": 1, "phases": list(PHASES), **header}
        _check_header(self._header, "trace header")
        self._shape = (self._header["num_layers"], self._header["top_k"])
        self._conversations: dict[int, dict[str, Any]] = {}
        self._pending: list[tuple[NDArray[Any], ...]] = []
        self._pending_bytes = 0
        self._flushed_s = time.monotonic()
        self._num_tokens = self._num_steps = 0
        self._failure: OSError | None = None
        self._file: BinaryIO | None = path.open("wb")
        text = json.dumps(self._header).encode()
        self._write(_MAGIC + struct.pack("<I", len(text)) + text)

    def add_step(
        self, ids: ArrayLike, weights: ArrayLike, conversations: ArrayLike, phases: ArrayLike
    ) -> None:
        """Append a forward pass: ids and weights (T, L, K), conversations and phases (T,)."""
        step = (
            np.ascontiguousarray(conversations, np.int32),
            np.ascontiguousarray(phases, np.uint8),
            np.ascontiguousarray(ids, np.int16),
            np.ascontiguousarray(weights, np.float16),
        )
        num_tokens = len(step[0])
        assert step[2].shape == step[3].shape == (num_tokens, *self._shape), step[2].shape
        if num_tokens == 0:
            return
        self._pending.append(step)
        self._pending_bytes += sum(array.nbytes for array in step)
        self._num_tokens += num_tokens
        self._num_steps += 1
        is_due = time.monotonic() - self._flushed_s >= _FLUSH_S
        if is_due or self._pending_bytes >= _FLUSH_BYTES:
            self._flush()

    def describe(self, conversation: int, **facts: Any) -> None:
        """Add facts about a conversation, such as its sampler or category."""
        self._conversations.setdefault(conversation, {"id": conversation}).update(facts)

    def close(self) -> None:
        """Finish the file; idempotent. Errors: ConfigError if a write failed."""
        if self._file is None:
            return
        self._flush()
        footer = {
            "num_tokens": self._num_tokens,
            "num_steps": self._num_steps,
            "conversations": list(self._conversations.values()),
        }
        text = json.dumps(footer).encode()
        self._write(_BLOCK.pack(0, 0, len(text)) + text)
        file, self._file = self._file, None
        try:
            with file:
                sync_file(file)
            sync_folder(self._path)
        except OSError as error:
            self._failure = self._failure or error
        if self._failure is not None:
            reason = self._failure.strerror or self._failure
            raise ConfigError(f"{self._path}: the trace is incomplete: {reason}")

    def _flush(self) -> None:
        if not self._pending:
            return
        steps = np.array([len(step[0]) for step in self._pending], np.int32)
        columns = [np.concatenate(arrays) for arrays in zip(*self._pending, strict=True)]
        raw = b"".join(array.tobytes() for array in (steps, *columns))
        packed = zstandard.ZstdCompressor(level=3, write_checksum=True).compress(raw)
        self._write(_BLOCK.pack(len(columns[0]), len(steps), len(packed)) + packed)
        self._pending, self._pending_bytes = [], 0
        self._flushed_s = time.monotonic()

    def _write(self, data: bytes) -> None:
        if self._failure is None and self._file is not None:
            try:
                self._file.write(data)
                self._file.flush()
            except OSError as error:
                self._failure = error


def write_trace(path: Path, trace: Trace) -> None:
    """Write a whole trace. Errors: ConfigError, OSError."""
    header = {k: v for k, v in trace.header.items() if k not in ("conversations", "phases")}
    writer = TraceWriter(path, header)
    for facts in trace.header.get("conversations", ()):
        writer.describe(facts["id"], **facts)
    ends = np.cumsum(trace.steps)
    for begin, end in zip(ends - trace.steps, ends, strict=True):
        step = slice(int(begin), int(end))
        writer.add_step(
            trace.ids[step], trace.weights[step], trace.conversations[step], trace.phases[step]
        )
    writer.close()


def read_trace(path: Path) -> Trace:
    """Read and check a trace; of a truncated file, its whole blocks.

    Errors: ConfigError, one line that names the file; OSError.
    """
    with path.open("rb") as file:
        reader = _Reader(file, path)
        return reader.read()


class _TruncatedError(ConfigError):
    """Truncated file."""


class _Reader:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._name = path.name
        self._size = path.stat().st_size
        self._raw_bytes = 0

    def read(self) -> Trace:
        magic = self._file.read(len(_MAGIC))
        if magic != _MAGIC:
            raise ConfigError(f"{self._name}: expected a routing trace of version 1")
        header = self._json(struct.unpack("<I", self._take(4))[0], "header")
        _check_header(header, f"{self._name}: header")
        blocks: list[tuple[NDArray[Any], ...]] = []
        footer: dict[str, Any] | None = None
        try:
            while footer is None:
                num_tokens, num_steps, num_bytes = _BLOCK.unpack(self._take(_BLOCK.size))
                if num_tokens == 0:
                    footer = self._json(num_bytes, "end")
                else:
                    blocks.append(self._block(header, num_tokens, num_steps, num_bytes))
        except _TruncatedError:
            if not blocks:
                raise
        if footer is not None and self._file.read(1):
            raise ConfigError(f"{self._name}: found data after the end of the trace")
        return self._joined(header, footer, blocks)

    def _take(self, count: int) -> bytes:
        data = self._file.read(count) if count <= self._size else b""
        if len(data) != count:
            raise _TruncatedError(f"{self._name} is truncated: expected {count} more bytes")
        return data

    def _json(self, count: int, what: str) -> dict[str, Any]:
        if count > _MAX_JSON_BYTES:
            raise ConfigError(f"{self._name}: {what} of {count} bytes, expected at most 16 MiB")
        try:
            value = json.loads(self._take(count))
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise ConfigError(f"{self._name}: {what}: expected a JSON object")
        return value

    def _block(
        self, header: Mapping[str, Any], num_tokens: int, num_steps: int, num_bytes: int
    ) -> tuple[NDArray[Any], ...]:
        shape = (num_tokens, header["num_layers"], header["top_k"])
        kinds: list[tuple[Any, tuple[int, ...]]] = [
            (np.int32, (num_steps,)),
            (np.int32, (num_tokens,)),
            (np.uint8, (num_tokens,)),
            (np.int16, shape),
            (np.float16, shape),
        ]
        sizes = [np.dtype(kind).itemsize * int(np.prod(dims)) for kind, dims in kinds]
        expected = sum(sizes)
        self._raw_bytes += expected
        if expected > _MAX_BLOCK_BYTES or self._raw_bytes > _MAX_RATIO * self._size:
            raise ConfigError(f"{self._name}: a block claims {expected} bytes: implausible")
        packed = self._take(num_bytes)
        try:
            if zstandard.frame_content_size(packed) != expected:
                raise zstandard.ZstdError("wrong size")
            raw = zstandard.ZstdDecompressor().decompress(packed, max_output_size=expected)
        except zstandard.ZstdError:
            raise ConfigError(f"{self._name}: a block is damaged") from None
        offsets = np.cumsum([0, *sizes])
        return tuple(
            np.frombuffer(raw[begin:end], kind).reshape(dims)
            for (kind, dims), begin, end in zip(kinds, offsets[:-1], offsets[1:], strict=True)
        )

    def _joined(
        self,
        header: dict[str, Any],
        footer: Mapping[str, Any] | None,
        blocks: Iterable[tuple[NDArray[Any], ...]],
    ) -> Trace:
        empty = np.empty((0, header["num_layers"], header["top_k"]))
        first = (np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.uint8))
        none = (*first, empty.astype(np.int16), empty.astype(np.float16))
        columns = list(zip(none, *blocks, strict=True))
        steps, conversations, phases, ids, weights = (np.concatenate(c) for c in columns)
        is_complete = footer is not None
        if footer is None:
            footer = {
                "num_tokens": len(ids),
                "num_steps": len(steps),
                "conversations": [{"id": number} for number in np.unique(conversations).tolist()],
            }
        for what, found, expected in (
            ("num_tokens", footer.get("num_tokens"), len(ids)),
            ("num_steps", footer.get("num_steps"), len(steps)),
            ("tokens of all steps", int(steps.sum(dtype=np.int64)), len(ids)),
        ):
            if found != expected:
                raise ConfigError(f"{self._name}: {what} is {found!r:.40}, expected {expected}")
        top = header["num_experts"] - 1
        if ids.size and not -1 <= ids.min() <= ids.max() <= top:
            raise ConfigError(f"{self._name}: expert ids outside -1 to {top}")
        if len(ids) and (steps.min() < 1 or conversations.min() < 0 or phases.max() > 1):
            raise ConfigError(f"{self._name}: found an empty step, unknown phase or conversation")
        if not np.isfinite(weights).all():
            raise ConfigError(f"{self._name}: found a weight that is not finite")
        known = footer.get("conversations")
        if not isinstance(known, list) or not all(
            isinstance(facts, dict) and type(facts.get("id")) is int for facts in known
        ):
            raise ConfigError(f"{self._name}: conversations: expected objects with an id")
        header = {**header, "conversations": known}
        return Trace(header, ids, weights, steps, conversations, phases, is_complete)


def _check_header(header: Mapping[str, Any], what: str) -> None:
    if header.get("version") != 1:
        raise ConfigError(f"{what}: version is {header.get('version')!r:.40}, expected 1")
    for name, most in (("num_layers", 4096), ("num_experts", _INT16), ("top_k", 256)):
        value = header.get(name)
        if type(value) is not int or not 1 <= value <= most:
            raise ConfigError(f"{what}: {name} is {value!r:.40}, expected 1 to {most}")
    if header["top_k"] > header["num_experts"]:
        raise ConfigError(f"{what}: top_k={header['top_k']}, more than num_experts")
    sizes = header.get("expert_bytes")
    if (
        not isinstance(sizes, list)
        or len(sizes) != header["num_layers"]
        or not all(type(size) is int and 0 < size < 1 << 40 for size in sizes)
    ):
        raise ConfigError(f"{what}: expert_bytes: expected a size for each layer")
    if header.get("phases") != list(PHASES):
        raise ConfigError(f"{what}: phases: expected {', '.join(PHASES)}")
