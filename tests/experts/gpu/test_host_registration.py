"""Registration of host memory, piece by piece, and the cuts that it makes in a range."""

import ctypes
import mmap
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_registrar import FakeRegistrar
from hypothesis import given
from hypothesis import strategies as st

from hybridmoe.errors import DeviceError
from hybridmoe.experts.gpu.host_registration import CudaRegistrar, HostRegistration

PAGE = 4096


def done(
    spans: list[tuple[int, int]], registrar: FakeRegistrar, most_bytes: int = 1 << 40
) -> HostRegistration:
    made = HostRegistration(spans, registrar, most_bytes=most_bytes, piece_bytes=4 * PAGE)
    made.begin(60.0)
    return made


@st.composite
def tensors(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Draw neighbours in a file, some of which share pages, in any order."""
    at, spans = 17 * PAGE, []
    for _ in range(draw(st.integers(1, 6))):
        at += draw(st.integers(0, 3 * PAGE))
        end = at + draw(st.integers(1, 9 * PAGE))
        spans.append((at, end))
        at = end
    return draw(st.permutations(spans))


@given(tensors(), st.integers(0, 40), st.integers(0, 8))
def test_ranges_are_cut_where_registrations_end(
    spans: list[tuple[int, int]], num_pages: int, num_calls: int
) -> None:
    registrar = FakeRegistrar(num_calls)
    made = done(spans, registrar, num_pages * PAGE)
    assert made.num_bytes == sum(e - s for s, e in registrar.spans.items()) <= num_pages * PAGE
    assert (made.error is not None) == (registrar.num_calls > num_calls)
    owner = {page: s for s, e in registrar.spans.items() for page in range(s // PAGE, e // PAGE)}
    for start, end in spans:
        at = 0
        for piece in made.pieces(start, end - start):
            assert piece.start == at < piece.end
            at = piece.end
            first, last = (start + piece.start) // PAGE, (start + piece.end - 1) // PAGE
            owners = {owner.get(page) for page in range(first, last + 1)}
            assert owners == {None} or (piece.is_registered and len(owners) == 1)
            assert piece.is_registered == (owners != {None})
            span = start + piece.start, piece.end - piece.start
            assert made.covers(*span) == piece.is_registered
            assert not made.covers(span[0], end - span[0] + 9 * PAGE)
        assert at == end - start
    assert made.expected_bytes == made.num_bytes
    made.close()
    assert not registrar.spans


@given(tensors())
def test_everything_is_registered_where_nothing_limits(spans: list[tuple[int, int]]) -> None:
    made = done(spans, FakeRegistrar())
    assert all(p.is_registered for start, end in spans for p in made.pieces(start, end - start))


@pytest.mark.parametrize(
    ("rate", "found"),
    [(None, "give wrong bytes, expected"), (4e9, "4.0 GB/s, expected at least 5")],
)
def test_nothing_is_registered_where_copies_are_wrong_or_slow(
    rate: float | None, found: str
) -> None:
    registrar = FakeRegistrar(rate=rate)
    made = HostRegistration([(PAGE, 99 * PAGE)], registrar, most_bytes=1 << 40, least_rate=5e9)
    made.begin(60.0)
    assert found in (made.error or "") and "\n" not in (made.error or "")
    assert made.num_bytes == 0 and not registrar.spans and registrar.num_calls == 1
    assert [p.is_registered for p in made.pieces(PAGE, PAGE)] == [False]
    made.close()


@pytest.mark.parametrize(("refused", "pages"), [({3}, {2, 4, 5, 6}), ({3, 5, 6}, {2, 4})])
def test_a_piece_that_is_refused_is_left_out_and_three_end_it(
    refused: set[int], pages: set[int]
) -> None:
    class Picky(FakeRegistrar):
        def register(self, address: int, num_bytes: int) -> None:
            if address // PAGE in refused:
                raise DeviceError("a page is another's")
            super().register(address, num_bytes)

    registrar = Picky()
    span = (2 * PAGE, 9 * PAGE if len(refused) > 1 else 7 * PAGE)
    made = HostRegistration([span], registrar, most_bytes=1 << 40, piece_bytes=PAGE)
    made.begin(60.0)
    assert {start // PAGE for start in registrar.spans} == pages
    assert made.error == "a page is another's"
    found = [p.is_registered for p in made.pieces(2 * PAGE, 5 * PAGE)]
    assert found.count(True) == len(pages)
    made.close()
    assert not registrar.spans


def test_an_error_while_it_is_tried_ends_it() -> None:
    class Failing(FakeRegistrar):
        def copy_rate(self, address: int, num_bytes: int) -> float | None:
            raise RuntimeError("CUDA out of memory\nmore lines")

    registrar = Failing()
    made = HostRegistration([(PAGE, 9 * PAGE)], registrar, most_bytes=1 << 40)
    made.begin(60.0)
    assert made.error == "CUDA out of memory" and not registrar.spans


def test_it_goes_on_behind_and_ends_when_closed() -> None:
    may_go, has_begun = threading.Event(), threading.Event()

    class Slow(FakeRegistrar):
        def register(self, address: int, num_bytes: int) -> None:
            has_begun.set()
            assert may_go.wait(60)
            super().register(address, num_bytes)

    registrar = Slow()
    made = HostRegistration([(PAGE, 99 * PAGE)], registrar, most_bytes=1 << 40, piece_bytes=PAGE)
    made.begin()
    assert has_begun.wait(60)
    assert made.num_bytes == 0 and made.expected_bytes == 98 * PAGE
    assert [p.is_registered for p in made.pieces(PAGE, PAGE)] == [False]
    closing = threading.Timer(0.01, may_go.set)
    closing.start()
    made.close()
    assert registrar.num_calls < 98 and not registrar.spans
    made.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_copies_from_a_mapped_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    want = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8)
    want.tofile(path)
    with path.open("rb") as file:
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    address = np.frombuffer(view, np.uint8).ctypes.data
    registrar = CudaRegistrar(torch.device("cuda"))
    made = HostRegistration(
        [(address, address + len(view))],
        registrar,
        most_bytes=1 << 30,
        least_rate=1e6,
        piece_bytes=1 << 18,
    )
    made.begin(60.0)
    assert made.error is None and made.num_bytes == len(view)
    target = torch.zeros(len(view), dtype=torch.uint8, device="cuda")
    memory = (ctypes.c_uint8 * len(view)).from_address(address)  # torch warns of read-only memory
    source = torch.frombuffer(memory, dtype=torch.uint8)
    for start, end, is_registered in made.pieces(address, len(view)):
        assert is_registered
        target[start:end].copy_(source[start:end], non_blocking=True)
    torch.cuda.synchronize()
    assert (target.cpu().numpy() == want).all()
    made.close()
