"""Conversations: shown, kept, stopped; with a model that responds by rule."""

import inspect
import io
import signal
from dataclasses import fields, replace

import fake_llm
import pytest
from fake_llm import FakeLLM
from terminal_chat import TIMING, Chat, Terminal
from waiting import eventually

import hybridmoe
from hybridmoe.cli.keyboard import edited
from hybridmoe.cli.pastes import Pastes
from hybridmoe.cli.progress_bar import ProgressBar
from hybridmoe.cli.prompt import is_unfinished, joined
from hybridmoe.cli.render import Screen, printable, timing_line
from hybridmoe.experts.stats import ExpertCounters, ExpertStats


def test_the_fake_has_the_protocol_of_the_real_one() -> None:
    for name in ("Result", "Timing"):
        real, fake = getattr(hybridmoe, name), getattr(fake_llm, name)
        assert [f.name for f in fields(real)] == [f.name for f in fields(fake)]
    assert hybridmoe.Progress._fields == fake_llm.Progress._fields
    assert hybridmoe.Piece._fields == fake_llm.Piece._fields
    for name in ("chat", "generate"):
        real = inspect.signature(getattr(hybridmoe.LLM, name)).parameters
        fake = inspect.signature(getattr(FakeLLM, name)).parameters
        assert fake.keys() <= real.keys()
    assert {"result", "close", "pieces", "__next__"} <= vars(hybridmoe.ResultStream).keys()


def test_a_response_is_followed_by_its_timing_and_remembered(chat: Chat) -> None:
    assert chat.ask("hi") == f"you said hi\n{TIMING}\n"
    chat.ask("again")
    assert chat.llm.prompts[1] == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "you said hi"},
        {"role": "user", "content": "again"},
    ]
    assert chat.said[-1] == ("assistant", "you said again")


def test_timing_without_cached_tokens_does_not_mention_them() -> None:
    line = timing_line(hybridmoe.Timing(10, 0, 0.1, 1, 0.0))
    assert line == "prompt 10 tok 100 t/s | gen 1 tok 0.0 t/s | ttft 0.10 s"


def test_timing_tells_what_came_from_disk() -> None:
    line = timing_line(hybridmoe.Timing(10, 9, 0.1, 1, 0.0, 5))
    assert line.startswith("prompt 10 tok (9 cached, 5 from disk) 10 t/s")


def test_an_error_is_one_line_and_the_session_goes_on(chat: Chat) -> None:
    chat.ask("hi")
    assert chat.ask("fail") == "error: the prompt has 9999 tokens, the context 4096\n"
    assert chat.said == [("user", "hi"), ("assistant", "you said hi")]
    assert chat.ask("on").startswith("you said on")


def test_a_crash_is_raised_but_forgotten(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat.llm, "_answer", lambda *_: [][0])
    with pytest.raises(IndexError):
        chat.ask("hi")
    assert chat.said == []
    assert chat.llm.num_open_streams == 0


def test_what_the_model_writes_cannot_steer_the_terminal(chat: Chat) -> None:
    assert chat.ask("escape").startswith("a[31mred]0;title2J\tb\n")
    assert printable("".join(map(chr, range(0xA0)))) == "\t\n" + "".join(map(chr, range(32, 127)))
    assert printable("é 你好 🙂\u200d") == "é 你好 🙂\u200d"
    pipe = io.StringIO()
    Screen(pipe).write("\x1b[31m")
    assert pipe.getvalue() == "\x1b[31m"  # a file gets what the model wrote


def test_dim_text_only_on_a_terminal_that_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for use_color, no_color, expected in (
        (True, "", "\x1b[2mx\x1b[0m\n"),
        (False, "", "x\n"),
        (True, "1", "x\n"),
    ):
        monkeypatch.setenv("NO_COLOR", no_color)
        out = Terminal()
        Screen(out, use_color=use_color).note("x")
        assert out.getvalue() == expected


def test_cut_off_responses_and_tool_calls_are_noted(chat: Chat) -> None:
    chat.run("/params max_tokens 1")
    assert "(cut off:" in chat.ask("hi")
    assert chat.ask("call").startswith("tool call: f()\n")
    assert chat.session.messages[-1]["tool_calls"][0]["function"]["name"] == "f"


def test_reasoning_is_told_from_the_text_and_kept_beside_it(chat: Chat) -> None:
    assert chat.ask("think") == f"(thinking)\nwhy\nnot\nyou said think\n{TIMING}\n"
    assert chat.session.messages[-1] == {
        "role": "assistant",
        "content": "you said think",
        "reasoning_content": "why\nnot",
    }
    assert chat.ask("think").startswith("(thinking)\n")


@pytest.mark.parametrize(
    ("out", "use_color", "expected"),
    [
        (Terminal(), True, "\x1b[2mso \x1b[0m\x1b[2mit\x1b[0m\nis\n\x1b[2mso\x1b[0m\n"),
        (Terminal(), False, "(thinking)\nso it\nis\n(thinking)\nso\n"),
        (io.StringIO(), True, "is\n"),
    ],
)
def test_reasoning_is_dim_on_a_terminal_and_nowhere_else(
    out: io.StringIO, use_color: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen = Screen(out, use_color=use_color)
    for text, is_reasoning in (("so ", True), ("it", True), ("is", False)):
        screen.write(text, is_reasoning=is_reasoning)
    screen.end_line()
    screen.write("so", is_reasoning=True)
    screen.end_line()
    assert out.getvalue() == expected


def test_interrupt_ends_the_response_and_keeps_its_text(chat: Chat) -> None:
    chat.llm.interrupted_after = 3
    shown = chat.ask("slow")
    assert shown.startswith("w0 w1 ") and "(stopped)" in shown
    assert chat.said[0] == ("user", "slow") and chat.said[1][1].startswith("w0 w1 ")
    assert chat.llm.num_open_streams == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert chat.ask("hi").startswith("you said hi")


def test_interrupt_while_the_prompt_is_read_forgets_the_message(chat: Chat) -> None:
    chat.llm.interrupted_after = 3
    assert "(stopped)" in chat.ask("long")
    assert chat.said == []
    assert chat.llm.num_open_streams == 0


def test_the_last_line_has_the_experts_of_its_response(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    ram = ExpertStats(2, 2, 8, 1, ExpertCounters(3, 1, bytes_read=2_500_000_000, read_wait_s=0.5))
    one = ExpertStats(4, 3, 8, 1, ExpertCounters(6, 4), place="VRAM", below=ram)
    other = replace(
        one, counters=ExpertCounters(8, 2), below=replace(ram, counters=ExpertCounters(2))
    )
    counts = [one, one + one, one + one + other]

    def counted() -> ExpertStats:
        return counts[len(chat.llm.prompts)]

    monkeypatch.setattr(chat.llm, "expert_stats", counted)
    first = "experts 60.0 % VRAM, 30.0 % RAM, 10.0 % disk, 2.50 GB read, 0.50 s waited"
    assert chat.ask("hi") == f"you said hi\n{TIMING} | {first}\n"
    second = "experts 80.0 % VRAM, 20.0 % RAM, 0.0 % disk, 0.00 GB read, 0.00 s waited"
    assert chat.ask("on") == f"you said on\n{TIMING} | {second}\n"
    shown = chat.run("/stats")
    assert f"last:  {TIMING} | {second}\n" in shown
    assert "experts: 66.7 % VRAM, 26.7 % RAM, 6.7 % disk\n" in shown


def test_experts_that_were_not_used_are_not_mentioned() -> None:
    none = ExpertStats(4, 3, 8, 1, ExpertCounters(), place="VRAM")
    timing = hybridmoe.Timing(10, 0, 0.1, 1, 0.0)
    assert timing_line(timing, none) == timing_line(timing)
    in_ram = timing_line(timing, replace(none, counters=ExpertCounters(1, 3)))
    assert in_ram.endswith(" | experts 25.0 % VRAM, 75.0 % RAM"), "there is no disk below a map"


def test_messages_of_several_lines() -> None:
    assert is_unfinished("a\\") and is_unfinished('"""a\nb') and not is_unfinished('"""a"""')
    assert not is_unfinished("a\\b")
    assert joined("a\\\nb") == "a\nb"
    assert joined('"""\na\n  b\n"""') == "a\n  b"
    assert joined('say """a""" twice') == 'say """a""" twice'
    assert joined("  /help ") == "/help"


def test_the_bar_needs_no_second_sign_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    err = Terminal()
    with ProgressBar(err) as bar:
        bar(hybridmoe.Progress("prompt", 0, 318, "tokens"))
        eventually(lambda: "/318" in err.getvalue())
    assert "reading the prompt" in err.getvalue()


def test_long_pastes_are_placeholders() -> None:
    pastes = Pastes()
    assert pastes.fold("short\r\ntext") == "short\ntext"
    long, tall = "word " * 300, "x\n" * 11
    shown = f"sum up {pastes.fold(long)} and {pastes.fold(tall)}"
    assert (
        shown == "sum up [paste 1: 1,500 characters, 1 line] and [paste 2: 22 characters, 12 lines]"
    )
    assert pastes.unfold(shown) == f"sum up {long} and {tall}"
    assert pastes.has_placeholder(shown)
    assert not pastes.has_placeholder("[paste 3: 1,500 characters, 1 line]")


def test_what_is_typed_meanwhile_becomes_a_draft() -> None:
    assert edited("one\rtwo\r") == "one\ntwo"
    assert edited("abc\x7f\x7f\x1b[A\x1bOPd\x04\x1b[3~é") == "adé"
    assert edited("\x7f") == ""


def test_a_bar_shows_only_for_long_work_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("hybridmoe.cli.progress_bar.time.monotonic", lambda: now[0])
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")

    def shown(err: io.StringIO, step_s: float) -> str:
        with ProgressBar(err) as bar:
            for done in range(0, 1001, 100):
                bar(hybridmoe.Progress("prompt", done, 1000, "tokens"))
                now[0] += step_s
        return err.getvalue()

    assert shown(Terminal(), 0.02) == ""
    assert shown(io.StringIO(), 5.0) == ""
    text = shown(Terminal(), 5.0)
    assert "reading the prompt" in text and "/1000" in text and "about" not in text
    with ProgressBar(err := Terminal(), tokens_per_s=10.0, known_tokens=400) as bar:
        bar(hybridmoe.Progress("prompt", 0, 1000, "tokens"))
        now[0] += 1.0
        bar(hybridmoe.Progress("prompt", 0, 1000, "tokens"))
    assert "reading the prompt, about 60 s" in err.getvalue()
    with ProgressBar(err := Terminal()) as bar:
        for done in range(3):
            bar(hybridmoe.Progress("load", done << 30, 10 << 30, "bytes"))
            now[0] += 1.0
    assert "loading the model" in err.getvalue() and "GB" in err.getvalue()
