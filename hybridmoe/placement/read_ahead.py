"""Page mapped weights into RAM before the first request."""

from collections.abc import Callable

from hybridmoe.gguf.names import is_expert_tensor, unused_names
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.kernels.ops import touch_rows

__all__ = ["read_ahead"]

_READ_BYTES = 32 << 20  # one progress step


def read_ahead(
    file: GGUFFile, progress: Callable[[int, int], None], *, has_experts: bool = True
) -> None:
    """Page the mapped weights into RAM, so that the first response does not wait for the disk.

    Calls progress(bytes done, bytes in all). has_experts: False = without routed experts, which
    are then read when they are used.
    """
    unused = unused_names(file.tensors)
    tensors = [
        t
        for t in file.tensors.values()
        if t.name not in unused and (has_experts or not is_expert_tensor(t.name))
    ]
    total = sum(t.num_bytes for t in tensors)
    done = 0
    progress(0, total)
    for tensor in tensors:
        batch = tensor.num_matrices
        matrix_bytes = tensor.num_bytes // max(1, batch)
        step = max(1, _READ_BYTES // max(1, matrix_bytes))
        for first in range(0, batch if tensor.num_bytes else 0, step):
            count = min(step, batch - first)
            chunk = tensor.data[first * matrix_bytes : (first + count) * matrix_bytes]
            touch_rows(chunk, count, tensor.num_rows)
            done += chunk.size
            progress(done, total)
