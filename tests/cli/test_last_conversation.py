"""`chat --continue`: what is kept of a conversation, when, and how it goes on."""

import io
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import fake_llm
import pytest

import hybridmoe
from hybridmoe.cli import app
from hybridmoe.placement.options import LoadOptions

Run = Callable[..., str]


class Keyboard(io.TextIOWrapper):
    def __init__(self, *, is_terminal: bool = True) -> None:
        super().__init__(io.BytesIO())
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "hybridmoe"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[fake_llm.FakeLLM]:
    made: list[fake_llm.FakeLLM] = []

    def load(path: Path | None, options: LoadOptions, **_: object) -> fake_llm.FakeLLM:
        made.append(fake_llm.FakeLLM())
        made[-1].config.name = "fake" if path is None else path.stem
        return made[-1]

    monkeypatch.setattr(hybridmoe, "load", load, raising=False)
    return made


@pytest.fixture
def chat(
    state: Path,
    loaded: list[fake_llm.FakeLLM],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    def run(*arguments: str, is_piped: bool = False, code: int = 0) -> str:
        monkeypatch.setattr("sys.stdin", Keyboard(is_terminal=not is_piped))
        assert app.main(["chat", *arguments]) == code
        captured = capsys.readouterr()
        return captured.err if code else captured.out

    return run


def contents(llm: fake_llm.FakeLLM) -> list[str]:
    return [message["content"] for message in llm.prompts[-1]]


def test_it_goes_on_where_it_was(
    chat: Run, state: Path, loaded: list[fake_llm.FakeLLM], tmp_path: Path
) -> None:
    model = tmp_path / "a.gguf"
    model.touch()
    assert chat(str(model), "one!", "--temp", "0.5", "--system", "Be brief.") == "you said one!\n"
    assert chat("--continue", "two!", "--top-k", "3") == "you said two!\n"
    assert contents(loaded[-1]) == ["Be brief.", "one!", "you said one!", "two!"]
    assert loaded[-1].config.name == "a"
    assert loaded[-1].params == {"temperature": 0.5, "top_k": 3}
    kept = json.loads((state / "last_conversation.json").read_text())
    assert len(kept["messages"]) == 4 and kept["file"] == str(model)
    assert chat("new!") == "you said new!\n"
    chat("--continue", "three!")
    assert contents(loaded[-1]) == ["new!", "you said new!", "three!"]
    assert chat("--continue", "-m", str(model), "four!") == "you said four!\n"
    assert contents(loaded[-1])[-3:] == ["three!", "you said three!", "four!"]


def test_the_kv_cache_is_kept_too(chat: Run, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restored: list[str] = []
    monkeypatch.setattr(
        fake_llm.FakeLLM, "restore_sequence", lambda _, path: restored.append(path.read_text())
    )
    chat("one!")
    assert sorted(os.listdir(state)) == ["last_conversation.json", "last_conversation.json.kv"]
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    chat("--continue", "two!")
    assert restored == ["10"]
    chat("--continue", "two!", "--kv-disk", f"{state}/kv=1GiB")  # it is there
    assert (state / "last_conversation.json.kv").exists()
    monkeypatch.setattr(fake_llm.FakeLLM, "save_sequence", lambda *_: 1 / 0)
    chat("fail", code=1)
    assert (state / "last_conversation.json.kv").exists(), "nothing has come after it"
    chat("new!", code=1)
    assert not (state / "last_conversation.json.kv").exists(), "that of another conversation"


def test_pipes_and_those_who_say_so_leave_nothing(chat: Run, state: Path) -> None:
    assert chat("one!", is_piped=True) == "you said one!\n"
    assert chat("one!", "--no-remember") == "you said one!\n"
    assert not state.exists() or not os.listdir(state)
    said = chat("--continue", code=1)
    assert said == "hybridmoe: error: --continue: no conversation is kept yet\n"
    chat("one!")
    assert chat("--continue", "two!", "--no-remember") == "you said two!\n"
    kept = json.loads((state / "last_conversation.json").read_text())
    assert len(kept["messages"]) == 2
    assert chat("--continue", "two!", is_piped=True) == "you said two!\n"
    kept = json.loads((state / "last_conversation.json").read_text())
    assert len(kept["messages"]) == 4


def test_a_damaged_file_is_one_line(chat: Run, state: Path) -> None:
    chat("one!")
    (state / "last_conversation.json").write_text("{")
    said = chat("--continue", "two!", code=1)
    assert said.startswith("hybridmoe: error: last_conversation.json is not JSON")


def test_the_embedded_model_reads_only_the_new_message(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Keyboard())
    assert app.main(["chat", "My name is Eva, remember that!", "--temp", "0"]) == 0
    cached: list[int] = []
    add = hybridmoe.cli.talk.Totals.add

    def note(self: object, result: hybridmoe.Result, *rest: object) -> None:
        cached.append(result.timing.cached_tokens)
        add(self, result, *rest)

    monkeypatch.setattr("hybridmoe.cli.talk.Totals.add", note)
    assert app.main(["chat", "--continue", "What is my name?"]) == 0
    assert "Eva" in capsys.readouterr().out
    assert cached[0] > 10
