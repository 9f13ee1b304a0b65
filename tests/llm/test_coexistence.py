"""Models that may be loaded together, by their plans."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hybridmoe.hardware.gpu import CudaGpu, NoGpu
from hybridmoe.llm import coexistence
from hybridmoe.llm.coexistence import Coexistence
from hybridmoe.placement.options import LoadOptions
from hybridmoe.planning.ram_plan import RAM_RESERVE_BYTES
from hybridmoe.units import GIB

NAMES = ("a", "b", "c")


def coexisting(
    monkeypatch: pytest.MonkeyPatch, *, ram: int, vram: Sequence[int] = (), **options: Any
) -> Coexistence:
    """Three times the embedded model on a machine with so much free memory."""
    gpus = tuple(CudaGpu(i, f"GPU {i}", (9, 0), size, size) for i, size in enumerate(vram))
    monkeypatch.setattr(coexistence, "choose_gpus", lambda _: gpus or NoGpu("none", True))
    monkeypatch.setattr(coexistence, "free_ram_bytes", lambda: ram)
    options = {"context_tokens": 1024, **options}
    return Coexistence(dict.fromkeys(NAMES), LoadOptions(**options))


def test_models_fit_while_ram_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    plenty = coexisting(monkeypatch, ram=64 * GIB)
    assert plenty.fit(NAMES)
    needed = plenty.plans["a"].ram.used_bytes - RAM_RESERVE_BYTES  # which the process has once
    models = coexisting(monkeypatch, ram=RAM_RESERVE_BYTES + 5 * needed // 2)
    for number, fits in ((1, True), (2, True), (3, False)):
        assert models.fit(NAMES[:number]) == fits


def test_models_fit_while_vram_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    plenty = coexisting(monkeypatch, ram=64 * GIB, vram=(64 * GIB,))
    assert plenty.fit(NAMES)
    vram = plenty.plans["a"].vram
    assert vram is not None
    models = coexisting(monkeypatch, ram=64 * GIB, vram=(5 * vram.used_bytes // 2,))
    for number, fits in ((1, True), (2, True), (3, False)):
        assert models.fit(NAMES[:number]) == fits


def test_where_one_gpu_is_full_models_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    two = coexisting(monkeypatch, ram=64 * GIB, vram=(8 * GIB, 8 * GIB), device="cuda:0,cuda:1")
    assert len(two.plans["a"].stages) == 2 and two.fit(["a", "b"])
    tight = coexisting(monkeypatch, ram=64 * GIB, vram=(8 * GIB, 2 * GIB), device="cuda:0,cuda:1")
    assert tight.fit(["a"]) and not tight.fit(["a", "b"])


def test_what_pages_fits_beside_none(monkeypatch: pytest.MonkeyPatch) -> None:
    models = coexisting(monkeypatch, ram=8 << 20)
    assert models.plans["a"].shortage is not None
    assert not models.fit(["a", "b"])


def test_a_model_that_cannot_be_read_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(coexistence, "choose_gpus", lambda _: NoGpu("none", True))
    with pytest.raises(Exception, match=r"absent\.gguf"):
        Coexistence({"a": None, "b": tmp_path / "absent.gguf"}, LoadOptions())
