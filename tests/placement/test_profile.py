"""Profiles of hot experts: chosen by the user, or kept for each model without being asked."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_gguf import write_tiny

from hybridmoe.errors import ConfigError
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.placement import profile as profiles
from hybridmoe.placement.profile import OFF, KeptProfile, ProfileRecord, open_profile

LAYERS, EXPERTS = 2, 4


class Cache:
    """Three experts that were used, two of which are resident."""

    def __init__(self) -> None:
        self.uses = np.array([5, 0, 0, 0, 9, 1, 0, 0], np.int64)

    def resident(self) -> NDArray[np.int64]:
        return np.array([3, 4], np.int64)


@pytest.fixture
def file(tmp_path: Path) -> GGUFFile:
    path = tmp_path / "m.gguf"
    write_tiny(path)
    return GGUFFile.open(path)


def opened(file: GGUFFile, choice: Path | None = None, **options: bool) -> KeptProfile | None:
    return open_profile(choice, file, LAYERS, EXPERTS, **{"has_slots": True, **options})


def saved(state_folder: Path) -> list[Path]:
    return sorted(state_folder.rglob("*.json"))


def test_uses_come_back_halved_with_what_the_next_run_adds(
    file: GGUFFile, state_folder: Path
) -> None:
    for uses in ([5, 0, 0, 0, 9, 1, 0, 0], [7, 0, 0, 0, 13, 1, 0, 0]):
        kept = opened(file)
        assert kept is not None and kept.is_automatic
        kept.record(Cache()).close()
        kept = opened(file)
        assert kept is not None
        assert kept.found.uses.reshape(-1).tolist() == uses
        assert kept.found.most_used_keys().tolist() == [4, 0, 5]  # whatever was resident
    assert len(saved(state_folder)) == 1
    assert (state_folder / "hybridmoe").stat().st_mode & 0o077 in (0, 0o055)  # by the umask
    assert saved(state_folder)[0].parent.stat().st_mode & 0o777 == 0o700


def test_a_run_without_uses_writes_nothing(file: GGUFFile, state_folder: Path) -> None:
    cache, kept = Cache(), opened(file)
    assert kept is not None
    cache.uses[:] = 0
    kept.record(cache).close()
    assert saved(state_folder) == []


def test_another_models_profile_is_another_file(
    file: GGUFFile, tmp_path: Path, state_folder: Path
) -> None:
    write_tiny(tmp_path / "other.gguf", seed=1)
    with GGUFFile.open(tmp_path / "other.gguf") as other:
        for model in (file, other):
            kept = opened(model)
            assert kept is not None and not kept.found.uses.any()
            kept.record(Cache()).close()
    assert len(saved(state_folder)) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "hybridmoe expert profile 1"}'])
def test_a_damaged_profile_of_its_own_is_replaced_and_a_chosen_one_refused(
    file: GGUFFile, state_folder: Path, content: str
) -> None:
    kept = opened(file)
    assert kept is not None
    kept.path.write_text(content)
    again = opened(file)
    assert again is not None and not again.found.uses.any()
    again.record(Cache()).close()
    assert json.loads(kept.path.read_text())["uses"][1][0] == 9
    chosen = state_folder / "chosen.json"
    chosen.write_text(content)
    with pytest.raises(ConfigError, match=r"chosen\.json: expected"):
        opened(file, chosen)


def test_off_and_models_without_slots_keep_none(file: GGUFFile, state_folder: Path) -> None:
    assert opened(file, OFF) is None
    assert opened(file, has_slots=False) is None
    assert opened(file, state_folder / "mine.json", has_slots=False) is not None
    assert not (state_folder / "hybridmoe").exists()


def test_a_folder_that_cannot_be_written_is_no_error(
    file: GGUFFile, state_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_folder.mkdir(parents=True, exist_ok=True)
    (state_folder / "hybridmoe").write_text("a file where the folder should be")
    assert opened(file) is None
    (state_folder / "hybridmoe").unlink()
    kept = opened(file)
    assert kept is not None
    record = kept.record(Cache())
    kept.path.parent.rmdir()  # gone, or read-only, meanwhile
    record.close()
    assert saved(state_folder) == []

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", nowhere)
    assert opened(file) is None


def test_the_oldest_files_go(
    file: GGUFFile, state_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "_MOST_FILES", 3)
    kept = opened(file)
    assert kept is not None
    for age in range(5):
        other = kept.path.with_name(f"{age}.json")
        other.write_text("{}")
        os.utime(other, (1e9 - age, 1e9 - age))
    kept.record(Cache()).close()
    assert {path.name for path in saved(state_folder)} == {"0.json", "1.json", kept.path.name}


def test_it_is_written_now_and_then(file: GGUFFile, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, is_saved = opened(file), threading.Event()
    assert kept is not None

    class Watched(ProfileRecord):
        def save(self) -> None:
            super().save()
            is_saved.set()

    record = Watched(kept, Cache(), every_s=0.001)
    assert is_saved.wait(30)
    assert json.loads(kept.path.read_text())["uses"][0][0] == 5
    record.close()
    record.close()
    again = opened(file)
    assert again is not None and again.found.uses.sum() == 15  # each write counts the run once


_WRITER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import test_profile as t
with t.GGUFFile.open(Path(sys.argv[1])) as file:
    kept = t.opened(file)
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(20):
        record = kept.record(t.Cache())
        record.close()
"""


def test_two_processes_leave_one_whole_file(file: GGUFFile, state_folder: Path) -> None:
    here = Path(__file__).parent
    command = [
        sys.executable,
        "-c",
        _WRITER,
        str(file.path),
        str(here),
        str(here.parent / "support"),
    ]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.communicate("go\n", timeout=60)
        assert writer.returncode == 0
    kept = opened(file)
    assert kept is not None and kept.found.uses.sum() == 15
    assert [path.name for path in kept.path.parent.iterdir()] == [kept.path.name]
