"""Conversations in files: `/save` and `/load`."""

import json
from pathlib import Path
from typing import Any

import pytest
from terminal_chat import Chat

from hybridmoe.cli.session import Session
from hybridmoe.errors import ConfigError


def test_a_saved_conversation_is_loaded_as_it_was(chat: Chat, tmp_path: Path) -> None:
    path = tmp_path / "a b.json"
    chat.run("/system Be ü.")
    chat.run("/params seed 7")
    chat.ask("hi \ud800 你好")
    saved = f"saved 2 messages to {path}\nsaved the KV cache of 10 tokens to a b.json.kv, 2 bytes\n"
    assert chat.run(f"/save {path}") == saved
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a b.json", "a b.json.kv"]
    other = Chat()
    other.ask("forget me")
    other.session.model = "another"
    shown = other.run(f"/load {path}")
    assert shown == (
        f"loaded 2 messages from {path}\nsampling: seed = 7\n(from another model: fake)\n"
        "loaded the KV cache of 10 tokens\n> hi ? 你好\nyou said hi ? 你好\n"
    )
    assert other.said == [("user", "hi ? 你好"), ("assistant", "you said hi ? 你好")]
    assert (other.session.system, other.session.params) == ("Be ü.", {"seed": 7})
    assert json.loads(path.read_text())["version"] == 1


@pytest.mark.parametrize("kv_cache", [None, "rubbish"])
def test_a_conversation_is_loaded_without_its_kv_cache(
    chat: Chat, tmp_path: Path, kv_cache: str | None
) -> None:
    path, beside = tmp_path / "x.json", tmp_path / "x.json.kv"
    chat.ask("hi")
    chat.run(f"/save {path}")
    beside.unlink()
    note = ""
    if kv_cache is not None:
        beside.write_text(kv_cache)
        note = "(KV cache not loaded: x.json.kv: damaged)\n"
    assert Chat().run(f"/load {path}") == (
        f"loaded 2 messages from {path}\n{note}> hi\nyou said hi\n"
    )


GOOD: dict[str, Any] = {
    "format": "hybridmoe-conversation",
    "version": 1,
    "model": "m",
    "system": None,
    "params": {},
    "messages": [{"role": "user", "content": "x"}],
}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "expected a conversation"),
        ({"format": "x"}, "expected a conversation"),
        ({"version": 2}, "version 2"),
        ({"model": 1}, "expected strings"),
        ({"system": 1}, "expected strings"),
        ({"params": []}, "params"),
        ({"params": {"nope": 1}}, "params"),
        ({"params": {"temperature": "hot"}}, "temperature='hot'"),
        ({"messages": {}}, "expected a list"),
        ({"messages": [1]}, r"messages[0].role"),
        ({"messages": [{"role": "robot", "content": ""}]}, r"messages[0].role"),
        ({"messages": [{"role": "user"}]}, r"messages[0].content"),
        ({"messages": [{"role": "user", "content": 3}]}, r"messages[0].content"),
    ],
)
def test_a_bad_file_is_one_line_and_nothing_is_lost(
    chat: Chat, tmp_path: Path, content: object, reason: str
) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(GOOD | content) if isinstance(content, dict) else str(content))
    chat.ask("keep")
    chat.run("/params seed 7")
    shown = chat.run(f"/load {path}")
    assert shown.startswith("error: ") and shown.count("\n") == 1 and reason in shown
    assert len(chat.said) == 2 and chat.session.params == {"seed": 7}


def test_files_that_cannot_be_opened_are_one_line(chat: Chat, tmp_path: Path) -> None:
    for line in (f"/load {tmp_path}/none", f"/save {tmp_path}/no/x", f"/load {tmp_path}"):
        shown = chat.run(line)
        assert shown.startswith("error: ") and shown.count("\n") == 1
    assert chat.run("/save") == "error: /save needs a file name\n"
    for command in ("/save", "/load"):
        said = chat.run(f"{command} ~no-such-user/x")
        assert said == "error: ~no-such-user/x: no such home folder\n"
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("old")
    session = Session(params={"seed": object()})
    with pytest.raises(TypeError):
        session.save(path)
    assert path.read_text() == "old"


def test_huge_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ConfigError, match="larger than"):
        Session.load(path)


def test_files_that_do_not_end_are_refused() -> None:
    """A device says that its size is 0."""
    with pytest.raises(ConfigError, match="larger than 64 MiB"):
        Session.load(Path("/dev/zero"))
