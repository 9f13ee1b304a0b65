"""Commands of the chat, with a model that responds by rule."""

from pathlib import Path

import pytest
from terminal_chat import TIMING, Chat

from hybridmoe.cli.commands import COMMAND_NAMES


@pytest.mark.parametrize("line", ["/nope", "/", "/ help", "/saves x"])
def test_unknown_commands_are_one_line(chat: Chat, line: str) -> None:
    assert chat.run(line).startswith("unknown command /")
    assert chat.out.getvalue().count("\n") == 1


def test_help_lists_every_command(chat: Chat) -> None:
    shown = chat.run("/help")
    for name in COMMAND_NAMES:
        assert name in shown


def test_system_message(chat: Chat) -> None:
    assert chat.run("/system") == "no system message\n"
    assert chat.run("/system Be brief.") == "system: Be brief.\n"
    chat.ask("hi")
    assert chat.llm.prompts[0][0] == {"role": "system", "content": "Be brief."}
    assert chat.run('/system """You are\na pirate"""') == "system: You are\na pirate\n"
    assert chat.run('/system ""') == "no system message\n"
    chat.ask("hi")
    assert chat.llm.prompts[1][0]["role"] == "user"


def test_params(chat: Chat) -> None:
    shown = chat.run("/params")
    assert "temperature = 0.6 (the model's)\n" in shown and "top_k = none (default)\n" in shown
    assert chat.run("/params temperature 0.3") == "temperature = 0.3 (set here)\n"
    assert chat.run("/params top-k=5") == "top_k = 5 (set here)\n"
    assert chat.run("/params stop a b") == "stop = ['a b'] (set here)\n"
    assert chat.ask("params").startswith("{'temperature': 0.3, 'top_k': 5, 'stop': ['a b']}")
    assert chat.run("/params temperature default") == "temperature = 0.6 (the model's)\n"
    assert chat.run("/params ignore-eos on") == "ignore_eos = True (set here)\n"
    assert "= ['*'] " in chat.run("/params dry_sequence_breakers *")
    assert r"= ['\n', ':'] " in chat.run(r'/params dry_sequence_breakers ["\n", ":"]')
    assert chat.run("/params dry_sequence_breakers none").endswith(" = [] (set here)\n")
    assert "= [7] " in chat.run("/params stop_token_ids 7")
    before = dict(chat.session.params)
    assert "expected 0 to 5 (higher, every token" in chat.run("/set temperature 99")
    for bad in (
        "temperature x", "temperature -1", "top_k 1.5", "nope 1", "top_p 2", "ignore_eos maybe",
        "stop_token_ids [1", "stop_token_ids x", 'stop_token_ids ["a"]', "min_tokens 0.5",
    ):  # fmt: skip
        shown = chat.run(f"/params {bad}")
        assert shown.startswith("error: ") and shown.count("\n") == 1
    assert chat.session.params == before
    assert "did you mean top_k?" in chat.run("/params topk 1")
    assert "(set here)" not in chat.run("/params reset")
    assert chat.session.params == {}


def test_the_words_of_other_programs(chat: Chat) -> None:
    assert chat.run("/set parameter temp 0.5") == "temperature = 0.5 (set here)\n"
    assert chat.run("/set num_predict 7") == "max_tokens = 7 (set here)\n"
    assert chat.run("/set nothink") == "thinking: off\n"
    assert chat.run('/set system "Be brief."') == "system: Be brief.\n"
    chat.ask("think")
    assert "user: think\nassistant: you said think\n" in chat.run("/show")
    assert chat.run("/show system") == "system: Be brief.\n"
    assert chat.run("/show thoughts") == "why\nnot\n"
    assert "context 4096" in chat.run("/show info")
    assert chat.run("/show nothing").startswith("error: ")
    assert chat.run("/retry").startswith("(thinking)\nwhy")
    chat.run("/clear")
    assert chat.said == []
    assert chat.run("/?") == chat.run("/help")
    assert "did you mean /stats?" in chat.run("/stat")


def test_copying_asks_the_terminal(chat: Chat) -> None:
    assert chat.run("/copy") == "error: no response yet\n"
    chat.ask("hi")
    assert chat.run("/copy").startswith("\x1b]52;c;eW91IHNhaWQgaGk=\x07copied 11 characters")


def test_two_slashes_begin_a_message(chat: Chat) -> None:
    chat.commands.read("//etc/passwd is a file")
    assert chat.said[0] == ("user", "/etc/passwd is a file")
    chat.commands.read("/clear")
    assert chat.said == []


@pytest.mark.parametrize("word", ["exit", "quit", "Help", "bye"])
def test_a_command_without_its_slash_is_asked_about_once(chat: Chat, word: str) -> None:
    chat.commands.read(word)
    assert chat.said == [] and f"/{word.lower()} is the command" in chat.out.getvalue()
    chat.commands.read(word)
    assert chat.said[0] == ("user", word)
    chat.commands.read(word)
    assert len(chat.said) == 2


def test_saving_asks_before_it_overwrites(chat: Chat, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    asked: list[str] = []
    chat.commands.confirm = lambda question: bool(asked.append(question))
    assert "saved 0 messages" in chat.run(f"/save {path}")
    before = path.read_bytes()
    chat.ask("hi")
    assert chat.run(f"/save {path}") == "not saved\n"
    assert len(asked) == 1 and str(path) in asked[0] and path.read_bytes() == before
    missing = tmp_path / "absent" / "talk.json"
    assert chat.run(f"/save {missing}") == f"error: {missing}: No such file or directory\n"


def test_reset_undo_and_regen(chat: Chat) -> None:
    assert chat.run("/regen") == "error: no message yet\n"
    assert chat.run("/undo") == "no message yet\n"
    chat.ask("one")
    chat.ask("two")
    assert chat.run("/regen").startswith("you said two\n")
    assert chat.said[2:] == [("user", "two"), ("assistant", "you said two")]
    assert chat.run("/undo") == "removed: two\n"
    assert chat.said == [("user", "one"), ("assistant", "you said one")]
    chat.run("/reset")
    assert chat.said == []


def test_regen_that_fails_keeps_the_old_response(chat: Chat) -> None:
    chat.session.messages = [
        {"role": "user", "content": "fail"},
        {"role": "assistant", "content": "old"},
    ]
    assert chat.run("/regen").startswith("error: ")
    assert chat.said == [("user", "fail"), ("assistant", "old")]


def test_stats(chat: Chat) -> None:
    assert chat.run("/stats") == "no response yet\n"
    chat.ask("one")
    chat.ask("two")
    shown = chat.run("/stats")
    assert TIMING in shown
    assert "2 responses, 246 prompt tokens (200 cached), 22 generated" in shown


@pytest.mark.parametrize("line", ["/exit", "/quit", "/EXIT", "/bye"])
def test_exit(chat: Chat, line: str) -> None:
    chat.run(line)
    assert chat.commands.is_done
