"""`hybridmoe list` and `rm`, and names and folders in place of paths."""

import json
import os
import shutil
from pathlib import Path
from unittest.mock import MagicMock

import click
import pytest
from commands import refusal, run
from tiny_gguf import split_file, write_tiny

from hybridmoe.cli.loading import open_model
from hybridmoe.cli.model_path import ModelPath
from hybridmoe.cli.served_files import named_files
from hybridmoe.placement.options import LoadOptions


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file, and a split model of which part 2 is cut and part 3 missing."""
    base = tmp_path_factory.mktemp("made")
    root = base / "models"
    (root / "me" / "Tiny-GGUF").mkdir(parents=True)
    write_tiny(base / "tiny-Q4_K.gguf", layers=2)
    shutil.copy(base / "tiny-Q4_K.gguf", root / "whole-Q8_0.gguf")
    for part in split_file(base / "tiny-Q4_K.gguf", 3):
        part.rename(root / "me" / "Tiny-GGUF" / part.name)
    second = root / "me" / "Tiny-GGUF" / "tiny-Q4_K-00002-of-00003.gguf"
    os.truncate(second, second.stat().st_size - 1000)
    second.with_name("tiny-Q4_K-00003-of-00003.gguf").unlink()
    notes = root / "me" / "Tiny-GGUF" / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    (notes / "tiny-Q4_K-00003-of-00003.gguf.0af1.incomplete").write_bytes(b"GG")
    return root


@pytest.fixture(autouse=True)
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder of this test."""
    root = tmp_path / "models"
    shutil.copytree(made, root)
    monkeypatch.setenv("HYBRIDMOE_MODELS", str(root))
    return root


def test_list_says_what_is_there_and_what_is_missing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybridmoe.load", lambda *_, **__: MagicMock(notes=()))
    with open_model(folder / "whole-Q8_0.gguf", LoadOptions()):
        pass
    head, tiny, whole = (line.split("  ") for line in run(capsys, "list").splitlines())
    assert head[0] == "name" and head[-1].strip() == "last used"
    assert tiny[0] == "tiny-Q4_K" and "never" in tiny[-1]
    assert any("incomplete: 2 of 3 parts, 1000 bytes missing" in cell for cell in tiny)
    assert whole[0] == "whole-Q8_0" and "complete" in whole and "just now" in whole[-1]
    models = json.loads(run(capsys, "list", "--json"))["models"]
    assert models[0]["missing_parts"] == [3] and models[0]["missing_bytes"] == 1000
    assert models[0]["repo"] == "me/Tiny-GGUF" and models[1]["last_used"] > 1e9


def test_an_empty_folder_is_said_to_be_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HYBRIDMOE_MODELS", str(tmp_path / "none"))
    assert run(capsys, "list") == f"no models in {tmp_path / 'none'}\n"


def test_rm_asks_and_removes_all_parts_and_leftovers(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--yes removes it without asking" in refusal(capsys, "rm", "tiny-Q4_K")
    assert "did you mean tiny-Q4_K?" in refusal(capsys, "rm", "tin", "--yes")
    assert "no such model" in refusal(capsys, "rm", "whole-Q8_0", "other", "--yes")
    assert "removed tiny-Q4_K" in run(capsys, "rm", "me/tiny-gguf", "--yes")
    assert sorted(path.name for path in folder.rglob("*")) == ["whole-Q8_0.gguf"]


def test_rm_removes_a_download_that_has_only_begun(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = folder / "you" / "Other-GGUF" / "other-Q4_0-00001-of-00002.gguf.part"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"GGUF")
    assert "incomplete: 0 of 2 parts" in run(capsys, "list")
    assert "no such file" in refusal(capsys, "inspect", "other")
    run(capsys, "rm", "other-q4_0", "--yes")
    assert not (folder / "you").exists()


def test_tab_completes_names_and_files() -> None:
    context = click.Context(click.Command("chat"))
    found = ModelPath().shell_complete(context, click.Argument(["model"]), "TINY")
    assert [(item.value, item.type) for item in found] == [("tiny-Q4_K", "plain"), ("TINY", "file")]


def test_commands_take_names_and_folders(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "whole-Q8_0.gguf" in run(capsys, "inspect", "whole")
    assert "a folder with 2 models" in refusal(capsys, "chat", str(folder))
    assert "did you mean whole-Q8_0?" in refusal(capsys, "serve", "hwole-q8_0")
    assert "the download is incomplete" in refusal(capsys, "inspect", "tiny")
    assert "nope: no such file" in refusal(capsys, "serve", "--model", "a=nope")
    assert named_files(folder / "x-00001-of-00013.gguf", (), ["a=whole"]) == {
        "x": folder / "x-00001-of-00013.gguf",
        "a": folder / "whole-Q8_0.gguf",
    }


def test_inspect_and_plan_without_a_model_take_the_embedded_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "demo.gguf" in run(capsys, "inspect")
    given = ("--dram-gbs", "20", "--tops", "1", "--prompt-tokens", "100", "--answer-tokens", "10")
    assert "tokens/s" in run(capsys, "plan", *given)
