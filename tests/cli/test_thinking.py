"""Thinking on the command line: `--think`, `--think-budget`, `/think`; saved with the chat."""

import io
import json
from pathlib import Path

import fake_llm
import pytest
from terminal_chat import Chat

import hybridmoe
from hybridmoe.cli import app
from hybridmoe.cli.served_files import ServedFiles
from hybridmoe.errors import ConfigError
from hybridmoe.placement.options import LoadOptions
from hybridmoe.text.thinking_options import ThinkingOptions


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[fake_llm.FakeLLM]:
    made: list[fake_llm.FakeLLM] = []

    def load(path: Path | None, options: LoadOptions, **progress: object) -> fake_llm.FakeLLM:
        made.append(fake_llm.FakeLLM())
        return made[-1]

    monkeypatch.setattr(hybridmoe, "load", load, raising=False)
    return made


@pytest.mark.parametrize(
    ("arguments", "mode", "budget"),
    [
        ([], None, None),
        (["--think", "off"], "off", None),
        (["--think", "max", "--think-budget", "0"], "max", 0),
    ],
)
def test_generate_passes_the_options_on(
    loaded: list[fake_llm.FakeLLM], arguments: list[str], mode: str | None, budget: int | None
) -> None:
    assert app.main(["generate", "-p", "hi", *arguments]) == 0
    thinking = loaded[-1].thinking
    assert thinking is not None
    assert (thinking.mode, thinking.budget_tokens) == (mode, budget)


def test_a_switch_that_the_model_lacks_ends_the_command_with_a_line(
    loaded: list[fake_llm.FakeLLM],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hello")))
    assert app.main(["chat", "--think", "high"]) != 0
    assert capsys.readouterr().err == "hybridmoe: error: --think: the model has no levels\n"
    assert app.main(["generate", "-p", "hi", "--raw", "--think", "on"]) != 0
    assert "--raw uses no chat template" in capsys.readouterr().err


def test_think_shows_and_sets(chat: Chat) -> None:
    assert chat.run("/think") == "thinking: default\n"
    assert chat.run("/think off") == "thinking: off\n"
    assert chat.run("/think 200") == "thinking: off, at most 200 tokens\n"
    chat.ask("hi")
    assert chat.llm.thinking == ThinkingOptions(mode="off", budget_tokens=200, name="/think")
    assert chat.run("/think default on") == "thinking: on\n"
    assert chat.run("/think high") == "error: /think: the model has no levels\n"
    assert chat.run("/think perhaps").startswith("error: /think perhaps: expected on, off, minimal")
    assert chat.run("/think") == "thinking: on\n"


def test_it_is_saved_with_the_conversation(chat: Chat, tmp_path: Path) -> None:
    chat.run("/think off 7")
    path = tmp_path / "a.json"
    chat.run(f"/save {path}")
    chat.run("/think default")
    chat.run(f"/load {path}")
    assert chat.run("/think") == "thinking: off, at most 7 tokens\n"
    saved = json.loads(path.read_text())
    for wrong in ({"think": "x"}, {"think": []}, {"think_budget": -1}):
        path.write_text(json.dumps({**saved, **wrong}))
        assert "think and think_budget: expected a mode and tokens" in chat.run(f"/load {path}")
    path.write_text(json.dumps({**saved, "think": "low"}))
    assert "(thinking: the model has no levels)" in chat.run(f"/load {path}")
    assert chat.run("/think") == "thinking: default\n"
    del saved["think"], saved["think_budget"]
    path.write_text(json.dumps(saved))
    assert "loaded" in chat.run(f"/load {path}")


def test_a_server_of_one_model_needs_it_to_know_the_switch(loaded: list[fake_llm.FakeLLM]) -> None:
    said: list[str] = []
    thinking = ThinkingOptions(mode="high", name="--think")
    one = ServedFiles({"a": None}, LoadOptions(), 1, said.append, thinking)
    with pytest.raises(ConfigError, match="--think: the model has no levels"):
        one.load("a", lambda _: None)
    assert loaded[-1].is_closed
    two = ServedFiles({"a": None, "b": None}, LoadOptions(), 1, said.append, thinking)
    two.load("b", lambda _: None)
    assert not loaded[-1].is_closed
    assert said == ["b: --think: the model has no levels: --think has no effect on it"]
