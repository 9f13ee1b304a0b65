"""A small model, and two ranks that share its experts equally."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type
from ranks import SHARES, WorkerThread, meet
from tiny_gguf import write_tiny

from hybridmoe.cluster.rendezvous import MeetingPlace


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pool") / "x.gguf"
    write_tiny(path, type=Type.Q8_0, gain=0.7)
    return path


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> MeetingPlace:
    return meet(monkeypatch, 2)


@pytest.fixture
def worker(path: Path, place: MeetingPlace) -> Iterator[WorkerThread]:
    worker = WorkerThread(path, place, 1, expert_share=SHARES)
    yield worker
    worker.join()
    assert worker.error is None
