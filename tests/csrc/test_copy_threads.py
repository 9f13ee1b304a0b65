"""Copies by several threads equal the source, whatever their length."""

import numpy as np
import pytest

from hybridmoe import _C
from hybridmoe.errors import ShapeError

CHUNK = 256 << 10


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_every_byte_and_no_other_is_copied(num_threads: int) -> None:
    threads = _C.CopyThreads(num_threads)
    assert threads.num_threads == num_threads
    source = np.random.default_rng(0).integers(0, 256, 5 * CHUNK, np.uint8)
    for size in (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 12345):
        target = np.zeros(5 * CHUNK, np.uint8)
        threads.copy(target.ctypes.data + 7, source.ctypes.data + 3, size)
        assert (target[7 : 7 + size] == source[3 : 3 + size]).all()
        assert not target[:7].any() and not target[7 + size :].any()


def test_what_cannot_be_is_refused() -> None:
    for num_threads in (0, 1025):
        with pytest.raises(ShapeError, match=f"{num_threads} threads, expected 1 to 1024"):
            _C.CopyThreads(num_threads)
    with pytest.raises(ShapeError, match="-1 bytes"):
        _C.CopyThreads(1).copy(0, 0, -1)
