"""Make reads of files fail, wait or hang, by threads and by io_uring."""

import functools
from typing import Any

import pytest

from hybridmoe import _C
from hybridmoe.experts.disk import cached_experts, file_reader, read_backend
from hybridmoe.experts.disk.cached_experts import CachedExperts


def add_faults(monkeypatch: pytest.MonkeyPatch) -> _C.ReadFaults:
    """Return the faults, none at first, of every reader that is opened from now on."""
    faults = _C.ReadFaults()
    monkeypatch.setattr(_C, "FileReader", functools.partial(_C.FileReader, faults=faults))
    return faults


def hold_reads(monkeypatch: pytest.MonkeyPatch) -> _C.ReadFaults:
    """Let reads begin, one at a time where they are io_uring's, but not end before `resume`."""
    monkeypatch.setattr(read_backend, "RING_DEPTH", 1)
    faults = add_faults(monkeypatch)
    faults.hang()
    return faults


def add_hangs(monkeypatch: pytest.MonkeyPatch) -> _C.ReadFaults:
    """Return faults as `add_faults`, for reads that hang: these are given up soon."""
    monkeypatch.setattr(cached_experts, "STALL_S", 0.02)
    monkeypatch.setattr(file_reader, "CLOSE_S", 0.1)
    return add_faults(monkeypatch)


def check_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the table of experts after every layer of every step, failed ones too."""
    really_submit = CachedExperts.submit

    def submit(self: CachedExperts, *layer: Any) -> Any:
        try:
            return really_submit(self, *layer)
        finally:
            self.native.check()

    monkeypatch.setattr(CachedExperts, "submit", submit)
