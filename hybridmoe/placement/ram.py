"""Weights in RAM over the file, where not all experts fit: an expert cache, and private tensors.

Routed experts go to a cache of the planned size. Every other tensor that stays in RAM is read once
into memory of its own: mapped pages would be dropped under pressure again and again, and a file
that is shortened later would end the process.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hybridmoe.experts.disk.arena import Arena
from hybridmoe.experts.disk.cached_experts import STALL_S, CachedExperts
from hybridmoe.experts.disk.expert_layout import ExpertLayout
from hybridmoe.experts.disk.file_reader import FileReader
from hybridmoe.experts.disk.read_request import FileRange, ReadRequest
from hybridmoe.experts.hot_profile import HotProfile
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.gguf.names import is_expert_tensor, parse_name, unused_names
from hybridmoe.gguf.reader import GGUFFile, Tensor
from hybridmoe.hardware.disk import BLOCK_BYTES, direct_buffer_bytes
from hybridmoe.kernels.ops import claim_rows
from hybridmoe.planning.disk_cache_plan import DiskCachePlan

__all__ = ["Progress", "RamWeights", "load_hot", "read_weights"]

_READ_BYTES = 32 << 20  # one progress step

Progress = Callable[[int, int], None]  # bytes done, bytes in all


class RamWeights(NamedTuple):
    """Weights that are read from the file instead of mapped."""

    experts: CachedExperts
    private: dict[str, NDArray[np.uint8]]  # other tensors, by name


def read_weights(
    file: GGUFFile,
    experts: RoutedExperts,
    plan: DiskCachePlan,
    profile: HotProfile | None,
    progress: Progress,
    *,
    is_kept: Callable[[str], bool] = lambda name: True,
    num_ahead: int = 0,
) -> RamWeights:
    """Make the cache, and read what has to be in memory before the first token.

    profile: its hot experts are read first. is_kept: false for tensors that do not stay in RAM, by
    name. num_ahead: as `CachedExperts` takes it.
    Errors: ConfigError where there is no memory; DiskError.
    """
    layout = ExpertLayout(file, experts)
    end = experts.numbers[-1] + 1  # layers behind it (multi-token prediction) are not run
    unused = unused_names(file.tensors)
    dense = [
        t
        for t in file.tensors.values()
        if t.name not in unused
        and not is_expert_tensor(t.name)
        and (parse_name(t.name).layer or 0) < end
        and is_kept(t.name)
    ]
    expert_bytes = layout.num_bytes // (experts.num_layers * experts.num_experts)
    reader = FileReader(file.parts, file.states, piece_bytes=expert_bytes // 3)
    try:
        cache = CachedExperts(experts, layout, reader, plan, num_ahead)
        hot = np.empty(0, np.int64) if profile is None else profile.hot_keys()
        num_hot = min(len(hot), plan.num_slots)
        bar = _Bar(progress, sum(t.num_bytes for t in dense) + num_hot * expert_bytes)
        private = _read_tensors(reader, dense, bar.add)
        cache.load_hot(hot, bar.add)
        bar.end()
    except BaseException:
        reader.close()
        raise
    return RamWeights(cache, private)


def load_hot(cache: CachedExperts, keys: NDArray[np.int64], progress: Progress) -> None:
    """Fill the slots with the first of these experts, hottest first. Errors: DiskError."""
    bar = _Bar(progress, min(len(keys), cache.plan.num_slots) * cache.plan.buffer_bytes)
    cache.load_hot(keys, bar.add)
    bar.end()


class _Bar:
    """Sum of what has been read, for progress."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._done, self._total = 0, max(1, total)
        progress(0, self._total)

    def add(self, num_bytes: int) -> None:
        self._done = min(self._total, self._done + num_bytes)
        self._progress(self._done, self._total)

    def end(self) -> None:
        self.add(self._total)


def _read_tensors(
    reader: FileReader, tensors: list[Tensor], progress: Callable[[int], None]
) -> dict[str, NDArray[np.uint8]]:
    """Read tensors into memory of their own; calls progress(bytes) as they come.

    Errors: ConfigError, DiskError.
    """
    arena = Arena(sum(direct_buffer_bytes(t.num_bytes) for t in tensors))
    found: dict[str, NDArray[np.uint8]] = {}
    start = num_requests = 0
    for tensor in tensors:
        skew = tensor.offset % BLOCK_BYTES
        first = start + skew
        data = found[tensor.name] = arena.bytes[first : first + tensor.num_bytes]
        if tensor.num_bytes:
            claim_rows(data, tensor.num_matrices, tensor.num_rows)
        for done in range(0, skew + tensor.num_bytes, _READ_BYTES):
            begin = max(skew, done)
            size = min(_READ_BYTES + done, skew + tensor.num_bytes) - begin
            part = FileRange(tensor.part, tensor.offset - skew + begin, size, tensor.name)
            memory = arena.view[start + done : start + done + direct_buffer_bytes(size + skew)]
            reader.submit(ReadRequest(num_requests, [part], [memory]))
            num_requests += 1
        start += direct_buffer_bytes(tensor.num_bytes)
    while num_requests:
        request = reader.take_completed(wait=True, timeout_s=STALL_S)
        if request is None:  # a disk that hangs
            progress(0)  # may raise, to end this
            continue
        if request.error is not None:
            raise request.error
        num_requests -= 1
        progress(request.ranges[0].num_bytes)
    return found
