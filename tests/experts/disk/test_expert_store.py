"""Expert store under any order of requests, releases and completed reads."""

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from read_faults import hold_reads
from waiting import eventually

from hybridmoe.experts.disk.expert_store import ExpertStore
from hybridmoe.experts.disk.file_reader import FileReader
from hybridmoe.experts.disk.read_request import FileRange

pytestmark = pytest.mark.usefixtures("each_io")

LAYERS, EXPERTS, SIZES = 2, 4, (700, 700, 5000)
KEYS = range(LAYERS * EXPERTS)


def layout() -> Any:
    """Lay out experts one after the other in a file, at odd offsets."""
    step = sum(SIZES)

    def ranges(layer: int, expert: int) -> list[FileRange]:
        start = 13 + (layer * EXPERTS + expert) * step
        starts = (start, start + SIZES[0], start + 2 * SIZES[0])
        return [FileRange(0, at, n, "t") for at, n in zip(starts, SIZES, strict=True)]

    return SimpleNamespace(
        num_layers=LAYERS, num_experts=EXPERTS, matrix_bytes=SIZES, ranges=ranges
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "weights"
    size = 13 + len(KEYS) * sum(SIZES)
    path.write_bytes(np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes())
    return path


def check_bytes(store: ExpertStore, content: bytes, key: int) -> None:
    layer, expert = divmod(key, EXPERTS)
    for i, part in enumerate(layout().ranges(layer, expert)):
        found = ctypes.string_at(int(store.addresses[layer, i, expert]), part.num_bytes)
        assert found == content[part.offset : part.offset + part.num_bytes]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["request", "prefetch", "release", "collect"]), st.sampled_from(KEYS)
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(steps=STEPS, num_buffers=st.integers(1, 5))
def test_requested_experts_are_loaded_and_no_buffer_leaks(
    path: Path, steps: list[tuple[str, int]], num_buffers: int
) -> None:
    content = path.read_bytes()
    reader = FileReader([path], num_threads=2)
    store = ExpertStore(layout(), reader, num_buffers)
    wanted: set[int] = set()
    try:
        for what, key in steps:
            if what in ("request", "prefetch"):
                if store.request(key, is_urgent=what == "request"):
                    wanted.add(key)
                else:
                    assert store.num_free == 0
            elif what == "release":
                store.release(key)
                wanted.discard(key)
            else:
                assert set(store.collect(wait=False).values()) <= {None}
            assert store.num_free + store.num_loaded + store.num_in_flight == num_buffers
            for other in KEYS:
                assert store.is_loaded(other) == bool(store.addresses[divmod_at(other)])
                assert (store.is_loaded(other) or store.is_in_flight(other)) == (other in wanted)
        store.drain()
        assert store.num_in_flight == 0
        assert {key for key in KEYS if store.is_loaded(key)} == wanted
        for key in wanted:
            check_bytes(store, content, key)
        assert np.count_nonzero(store.addresses) == 3 * len(wanted)
    finally:
        reader.close()


def divmod_at(key: int) -> tuple[int, int, int]:
    layer, expert = divmod(key, EXPERTS)
    return layer, 0, expert


def test_an_expert_released_and_requested_again_while_it_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = hold_reads(monkeypatch)
    reader = FileReader([path], num_threads=1)
    store = ExpertStore(layout(), reader, 1)
    assert store.request(3)
    eventually(lambda: faults.num_hung > 0)
    assert not store.release(3)  # its read has begun
    assert not store.is_in_flight(3)
    assert not store.request(4)  # its buffer is not free yet
    assert store.request(3)
    faults.resume()
    store.drain()
    check_bytes(store, path.read_bytes(), 3)
    assert store.bytes_read == sum(SIZES)
    reader.close()
