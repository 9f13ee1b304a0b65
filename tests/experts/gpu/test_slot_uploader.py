"""Uploads of experts to slots, through the real ring over a fake stream."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from fake_registrar import FakeRegistrar
from fake_streams import FakeStream
from gguf import GGMLQuantizationType as T
from random_weights import random_matrix
from waiting import HANG_S

from hybridmoe import _C
from hybridmoe.experts.gpu import slot_downloader
from hybridmoe.experts.gpu.host_registration import HostRegistration
from hybridmoe.experts.gpu.slot_downloader import SlotDownloader
from hybridmoe.experts.gpu.slot_uploader import SlotUpload, SlotUploader
from hybridmoe.experts.routed_experts import ExpertWeights, RoutedExperts

pytest.importorskip("triton", reason="slots are laid out for Triton's kernels")

from kernel_device import DEVICE

from hybridmoe.kernels.triton.expert_ffn import SlotLayout
from hybridmoe.kernels.triton.packing import has_planes, packed_row_bytes, planes

EXPERTS, HIDDEN, INTER, SLOTS = 4, 256, 32, 3
POISON = 0xA5


class Copies:
    """A real uploader over a fake stream."""

    def __init__(self, *, is_lazy: bool, piece_bytes: int = 1000) -> None:
        kinds = [(T.Q4_0, T.Q8_0, T.Q4_0), (T.Q5_K, T.Q4_0, T.Q8_0)]
        self.layers = {
            number: ExpertWeights(
                random_matrix(gate, EXPERTS, INTER, HIDDEN, seed=number),
                random_matrix(up, EXPERTS, INTER, HIDDEN, seed=10 + number),
                random_matrix(down, EXPERTS, HIDDEN, INTER, seed=20 + number),
            )
            for number, (gate, up, down) in enumerate(kinds, 1)
        }
        self.layouts = [SlotLayout(*kind, HIDDEN, INTER, is_packed=True) for kind in kinds]
        slot_bytes = max(layout.slot_bytes for layout in self.layouts)
        size = (SLOTS, slot_bytes)
        self.data = torch.full(size, POISON, dtype=torch.uint8, device=DEVICE)
        self.main = FakeStream(is_lazy=False, is_current=True)
        self.stream = FakeStream(is_lazy=is_lazy)
        self.uploader = SlotUploader(
            RoutedExperts(self.layers, 1),
            self.layouts,
            self.data,
            self.main,
            self.stream,
            piece_bytes=piece_bytes,
        )

    def wait(self, upload: SlotUpload) -> None:
        while not upload.is_done():
            self.uploader.advance(1 << 20)
            self.stream.synchronize()

    def check(self, layer: int, expert: int, slot: int) -> None:
        layout = self.layouts[layer]
        want = torch.full((self.data.shape[1],), POISON, dtype=torch.uint8)
        parts = self.layers[layer + 1]
        for w, at in zip(parts, (0, layout.up_offset, layout.down_offset), strict=True):
            rows = torch.from_numpy(w.slice(expert, expert + 1).data.reshape(w.rows, -1))
            if has_planes(w.type):
                packed = torch.full((w.rows, packed_row_bytes(w.type, w.cols)), POISON).byte()
                for plane, field in planes(rows, w.type, packed):
                    plane.copy_(field)
                rows = packed
            want[at : at + rows.numel()] = rows.reshape(-1)
        assert torch.equal(self.data[slot].cpu(), want)


@pytest.fixture(params=[False, True], ids=["eager", "lazy"])
def copies(request: pytest.FixtureRequest) -> Iterator[Copies]:
    copies = Copies(is_lazy=request.param)
    yield copies
    copies.uploader.close()


def test_experts_arrive_in_their_slots(copies: Copies) -> None:
    """More pieces than the ring has: each waits for the last copy from its memory."""
    places = [(0, 1, 2), (1, 3, 0), (0, 0, 1)]
    for upload in [copies.uploader.begin(*place) for place in places]:
        copies.wait(upload)
        assert upload.error is None
    for place in places:
        copies.check(*place)


def test_registered_experts_need_no_ring(copies: Copies) -> None:
    memory = [w.data for layer in copies.layers.values() for w in layer]
    first = min(data.ctypes.data for data in memory)
    last = max(data.ctypes.data + data.nbytes for data in memory)
    registration = HostRegistration(
        [(first, last)], FakeRegistrar(), most_bytes=1 << 48, piece_bytes=1 << 48
    )
    registration.begin(HANG_S)
    copies.uploader.registration = registration
    ring = copies.uploader._ring.fill_(POISON)
    for place in [(0, 1, 2), (1, 3, 0)]:
        upload = copies.uploader.begin(*place)
        copies.wait(upload)
        assert upload.error is None
        copies.check(*place)
    assert (ring == POISON).all()


def test_a_step_copies_no_more_than_its_bytes_and_never_waits_for_the_link() -> None:
    copies = Copies(is_lazy=True, piece_bytes=64)
    copies.uploader.begin(1, 1, 0)  # gate in the file's order: a copy of each piece
    for pieces in (1, 2, 8, 8):  # of a ring of 8, whose copies have not run
        copies.uploader.advance(64 if pieces < 8 else 1 << 20)
        assert copies.stream.record().end - 1 == pieces  # after the wait for the steps
    copies.stream.synchronize()
    copies.uploader.advance(65)  # the piece that reaches the limit is the last
    assert copies.stream.record().end - 1 == 10


@pytest.mark.parametrize("size", [0, 1, (128 << 10) - 1, 128 << 10, 1 << 20, (1 << 20) + 13])
def test_threads_copy_every_byte_and_no_other(size: int) -> None:
    source = np.random.default_rng(size).integers(0, 256, size + 2, np.uint8)
    copy = np.full(size + 2, POISON, np.uint8)
    _C.copy_memory(copy.ctypes.data + 1, source.ctypes.data + 1, size)
    assert np.array_equal(copy[1 : size + 1], source[1 : size + 1])
    assert copy[0] == copy[-1] == POISON


def test_a_cancelled_copy_ends_between_pieces() -> None:
    copies = Copies(is_lazy=True, piece_bytes=64)
    upload = copies.uploader.begin(0, 1, 0)
    copies.uploader.advance(100)
    upload.cancel()
    copies.wait(upload)
    before = copies.data.clone()
    assert (before[0] == POISON).any()
    copies.uploader.close()
    assert torch.equal(copies.data, before), "the slot was written after the upload was done"


def test_a_copy_waits_for_the_steps_that_read_the_slot() -> None:
    copies = Copies(is_lazy=True)
    copies.main.is_lazy, copies.main.is_current = True, False  # its work is lazy, too
    read = torch.zeros_like(copies.data[0])
    copies.main.copy(read, copies.data[0])
    copies.wait(copies.uploader.begin(0, 1, 0))
    assert (read == POISON).all(), "the slot was overwritten before it was read"
    copies.uploader.close()


def test_a_failed_copy_is_an_error_of_its_upload() -> None:
    copies = Copies(is_lazy=False)
    upload = copies.uploader.begin(0, 1, SLOTS)
    copies.wait(upload)
    assert isinstance(upload.error, IndexError)
    good = copies.uploader.begin(1, 1, 0)
    copies.wait(good)
    copies.check(1, 1, 0)
    copies.uploader.close()
    copies.uploader.close()


@pytest.mark.parametrize("is_lazy", [False, True], ids=["eager", "lazy"])
def test_what_was_uploaded_comes_back_as_it_was_and_slots_may_be_filled_again(
    is_lazy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_downloader, "_STAGED_BYTES", 700)  # some rows at a time
    copies = Copies(is_lazy=is_lazy)
    routed = RoutedExperts(copies.layers, 1)
    downloader = SlotDownloader(routed, copies.layouts, copies.data, copies.stream, num_buffers=2)
    places = [(0, 1, 2), (1, 3, 0)]
    for place in places:
        copies.wait(copies.uploader.begin(*place))
    found = [downloader.begin(layer, slot) for layer, _, slot in places]
    assert downloader.begin(0, 2) is None  # no pinned memory is left
    copies.wait(copies.uploader.begin(1, 0, 2))
    for download, (layer, expert, _) in zip(found, places, strict=True):
        assert download is not None and download.is_done()
        for part, w in zip(download.parts, copies.layers[layer + 1], strict=True):
            assert np.array_equal(part.numpy(), w.slice(expert, expert + 1).data)
        downloader.end(download)
    assert downloader.begin(0, 2) is not None
    copies.uploader.close()
