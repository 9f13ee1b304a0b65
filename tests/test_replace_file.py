"""Saved files: whole or as they were, on the disk before they have their name, alone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hybridmoe.cli.session import Session
from hybridmoe.experts.hot_profile import HotProfile
from hybridmoe.replace_file import replace_file

HELD = """
import sys, time
from pathlib import Path
from hybridmoe.replace_file import replace_file
with replace_file(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_an_error_leaves_the_old_file_and_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replace_file(path) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]
    with replace_file(path) as file:
        file.write(b"new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.json"]


def test_what_was_written_is_on_the_disk_before_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(fd: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{fd}")).name
        size = os.fstat(fd).st_size
        done.append("folder" if name == tmp_path.name else f"{size} bytes")
        fsync(fd)

    def note_replace(old: str, new: str) -> None:
        done.append("name")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    with replace_file(tmp_path / "a.bin") as file:
        file.write(b"12345")
    assert done == ["5 bytes", "name", "folder"]
    for save in (
        Session().save,
        HotProfile(np.zeros((1, 2), np.int64), np.zeros((1, 2), np.bool_)).save,
    ):
        done.clear()
        save(tmp_path / "a.json")
        assert done[1:] == ["name", "folder"]


def test_the_next_save_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    others = [".a.json.tmp", ".b.json.0123abcd.tmp", ".a.json.0123abcd.tmp.kept", "a.json.0123.tmp"]
    for name in others:
        (tmp_path / name).write_text("another's")
    command = [sys.executable, "-c", HELD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"writing\n"
        with replace_file(path) as file:  # of one that is at work nothing is taken
            file.write(b"new")
        assert len(os.listdir(tmp_path)) == len(others) + 2
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert path.read_text() == "new"
    with replace_file(path) as file:
        file.write(b"newer")
    assert sorted(os.listdir(tmp_path)) == sorted(["a.json", *others])
    assert path.read_text() == "newer"
