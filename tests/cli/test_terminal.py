"""The chat in a real pseudo-terminal: keys in, screen out, signals as a terminal sends them."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import fake_llm
import pexpect
import pytest
from waiting import HANG_S

from hybridmoe.cli.opening import Opening
from hybridmoe.errors import GGUFError
from hybridmoe.placement.options import LoadOptions

CONTROL_D, CONTROL_C, ENTER, ALT_ENTER = "\x04", "\x03", "\r", "\x1b\r"
CHAT = (sys.executable, fake_llm.__file__, "chat")


class Terminal:
    def __init__(self, home: Path, *arguments: str, program: Sequence[str] = CHAT) -> None:
        environment = fake_llm.environment() | {
            "XDG_STATE_HOME": str(home),
            "TERM": "xterm",
            "PROMPT_TOOLKIT_NO_CPR": "1",  # nobody answers a cursor position request here
        }
        for name in ("NO_COLOR", "COLUMNS", "LINES"):
            environment.pop(name, None)
        self.child = pexpect.spawn(
            program[0],
            [*program[1:], *arguments],
            env=environment,
            encoding="utf-8",
            timeout=HANG_S,
            dimensions=(50, 120),
            cwd=str(home),  # names of files in it are short, and their lines whole
        )

    def expect(self, pattern: str) -> str:
        """Wait for the pattern; return the plain text of what came before and the match."""
        self.child.expect(pattern)
        return _plain(self.child.before + self.child.after)

    def prompt(self) -> None:
        self.child.expect(r"\x1b\[\?2004h[^>]*>")

    def type(self, text: str) -> None:
        self.child.send(text)

    def end(self) -> int:
        self.child.expect(pexpect.EOF)
        self.child.wait()
        assert self.child.exitstatus is not None, self.child.signalstatus
        return int(self.child.exitstatus)

    def kill(self) -> None:
        """End the process. pexpect's own way gives up on a machine that is busy."""
        self.child.kill(signal.SIGKILL)
        self.child.expect(pexpect.EOF)
        self.child.wait()


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path)
    opened.prompt()
    yield opened
    opened.kill()


def test_a_conversation(terminal: Terminal, tmp_path: Path) -> None:
    terminal.type("hello" + ENTER)
    terminal.expect("you said hello")
    terminal.expect(r"\x1b\[2mprompt 123 tok .* ttft 0\.12 s\x1b\[0m")  # dim
    terminal.prompt()
    terminal.type("/nope" + ENTER)
    terminal.expect("unknown command /nope")
    terminal.prompt()
    terminal.type("/exit" + ENTER)
    assert terminal.end() == 0
    again = Terminal(tmp_path)  # the history outlives the program
    again.prompt()
    again.type("\x1b[A\x1b[A\x1b[A" + ENTER)
    again.expect("you said hello")
    again.prompt()
    again.type(CONTROL_D)
    assert again.end() == 0


def test_control_c_ends_the_response_and_not_the_program(terminal: Terminal) -> None:
    terminal.type("slow" + ENTER)
    terminal.expect("w2 ")
    terminal.type(CONTROL_C)
    terminal.expect(r"\(stopped\)")
    terminal.prompt()
    terminal.type("still there?" + ENTER)
    terminal.expect("you said still there")
    terminal.prompt()
    terminal.type(CONTROL_C)
    terminal.expect("Ctrl-D or /exit ends the program")
    terminal.prompt()
    terminal.type(CONTROL_D)
    assert terminal.end() == 0


def test_control_c_ends_the_reading_of_a_long_prompt(terminal: Terminal) -> None:
    terminal.type("long" + ENTER)
    terminal.expect("reading the prompt")
    terminal.type(CONTROL_C)
    terminal.expect(r"\(stopped\)")
    terminal.prompt()
    terminal.type("/exit" + ENTER)
    assert terminal.end() == 0


def test_messages_of_several_lines(terminal: Terminal) -> None:
    terminal.type("one\\" + ENTER + "two" + ALT_ENTER + "three" + ENTER)
    assert "you said one\r\ntwo\r\nthree" in terminal.expect("ttft")
    terminal.prompt()
    terminal.type('"""' + ENTER + "four" + ENTER + "five" + ENTER + '"""' + ENTER)
    assert "you said four\r\nfive\r\n" in terminal.expect("ttft")


def test_what_is_typed_during_a_response_is_no_part_of_it(terminal: Terminal) -> None:
    terminal.type("slow" + ENTER)
    terminal.expect("w2 ")
    terminal.type("later\x7f" + ENTER)
    terminal.expect("w9 ")
    terminal.type(CONTROL_C)
    assert "late" not in terminal.expect(r"\(stopped\)")
    terminal.prompt()
    terminal.expect("late")
    terminal.type("!" + ENTER)
    terminal.expect("you said late!")


def test_markdown_and_thoughts_as_they_stream(terminal: Terminal) -> None:
    terminal.child.setwinsize(24, 40)
    terminal.type("a **bold** word" + "\\" + ENTER + "- " + "one " * 12 + ENTER)
    shown = terminal.expect("ttft")
    assert "\x1b[1mbold\x1b[0m" in terminal.child.before
    assert "\n• one one one one one one one one one\r\n  one one one\r\n" in shown
    terminal.prompt()
    terminal.type("think" + ENTER)
    terminal.expect(r"thought for 0\.\d s, 1 tokens; /thoughts")
    assert "\x1b[2mnot\x1b[0m" in terminal.child.before
    terminal.prompt()
    terminal.type("/thoughts" + ENTER)
    terminal.expect("why")
    terminal.prompt()
    terminal.type("/thoughts open" + ENTER)
    terminal.prompt()
    terminal.type("slow" + ENTER)
    terminal.expect("w9 ")
    terminal.child.setwinsize(24, 30)
    terminal.expect("w14 ")
    terminal.type(CONTROL_C)
    terminal.expect(r"\(stopped\)")


def test_a_long_paste_is_sent_whole_and_shown_as_a_placeholder(
    terminal: Terminal, tmp_path: Path
) -> None:
    pasted = "begin " + "word " * 1500 + "end"
    terminal.type(f"\x1b[200~{pasted}\x1b[201~")
    terminal.expect(r"\[paste 1: 7,509 characters, 1 line\]")
    terminal.type(" was pasted" + ENTER)
    terminal.expect("you said begin word word")
    terminal.expect("ttft")
    assert re.search(r"end\s+was\s+pasted\s", _plain(terminal.child.before))
    terminal.prompt()
    assert "paste" not in (tmp_path / "hybridmoe" / "history").read_text()


def test_tools_are_asked_about_and_a_conversation_is_continued(tmp_path: Path) -> None:
    tools = tmp_path / "tools.py"
    tools.write_text("def double(n: int) -> int:\n    'Double a number'\n    return 2 * n\n")
    terminal = Terminal(tmp_path, "--tools", str(tools))
    terminal.prompt()
    terminal.type('call double {"n": 4}' + ENTER)
    terminal.expect(r"call double\(n=4\)\? \[y\]es, \[n\]o, \[a\]lways")
    terminal.type("y" + ENTER)
    assert "= 8" in terminal.expect("you said 8")
    terminal.prompt()
    terminal.type(CONTROL_D)
    terminal.expect(r"kept for --continue, with a KV cache of 20 tokens")
    assert terminal.end() == 0
    again = Terminal(tmp_path, "--continue")
    assert "continued: 4 messages" in again.expect('> call double {"n": 4}')
    again.expect("you said 8")
    again.kill()


def kept(home: Path) -> list[str]:
    """Texts of the conversation that is kept."""
    text = (home / "hybridmoe" / "last_conversation.json").read_text()
    return [message["content"] for message in json.loads(text)["messages"]]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_window_that_is_closed_in_mid_answer_loses_no_word(number: int, tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    terminal.prompt()
    terminal.type("hello" + ENTER)
    terminal.expect("you said hello")
    terminal.prompt()
    terminal.type("slow" + ENTER)
    terminal.expect("w1 ")
    if number == signal.SIGHUP:
        terminal.child.close(force=False)  # the kernel sends it, and no write succeeds any more
    else:
        terminal.child.kill(number)
        terminal.child.expect(pexpect.EOF)
    terminal.child.wait()
    assert terminal.child.signalstatus == number
    assert kept(tmp_path)[:3] == ["hello", "you said hello", "slow"]
    assert kept(tmp_path)[3].startswith("w0 w1 ")
    assert (tmp_path / "hybridmoe" / "last_conversation.json.kv").read_text() == "20"


def test_a_window_that_is_closed_at_the_prompt_keeps_the_kv_cache(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    terminal.prompt()
    terminal.type("hello" + ENTER)
    terminal.expect("you said hello")
    terminal.prompt()
    terminal.child.kill(signal.SIGHUP)
    terminal.child.expect(pexpect.EOF)
    terminal.child.wait()
    assert terminal.child.signalstatus == signal.SIGHUP
    assert (tmp_path / "hybridmoe" / "last_conversation.json.kv").read_text() == "10"


def test_control_z_gives_the_shell_back(tmp_path: Path) -> None:
    """A shell is needed: what it starts can be stopped, a session's leader cannot."""
    terminal = Terminal(tmp_path, program=("/bin/sh", "-i"))
    terminal.type(f"{sys.executable} {fake_llm.__file__} chat" + ENTER)
    terminal.prompt()
    terminal.type("hel\x1a")
    terminal.expect("Stopped")
    terminal.type("fg" + ENTER)
    terminal.prompt()
    terminal.type("lo" + ENTER)
    terminal.expect("you said hello")
    terminal.prompt()
    terminal.type("slow" + ENTER)
    terminal.expect("w1 ")
    terminal.type("\x1a")
    terminal.expect("Stopped")
    terminal.type("fg" + ENTER)
    terminal.expect("w9 ")
    terminal.type(CONTROL_C)
    terminal.expect(r"\(stopped\)")
    terminal.kill()


def test_overwriting_is_asked_about(terminal: Terminal, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("mine")
    terminal.type(f"/save {path.name}" + ENTER)
    terminal.expect(r"overwrite it\? \[y/N\]")
    terminal.type("n" + ENTER)
    terminal.expect("not saved")
    assert path.read_text() == "mine"


def test_commands_are_completed(terminal: Terminal) -> None:
    terminal.type("/sta\t")
    terminal.expect("/stats|ts")
    terminal.type(ENTER)
    terminal.expect("no response yet")


def test_a_bar_while_the_model_loads_and_none_of_it_left(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "slow.gguf", "--no-color")
    terminal.expect("context 4096 tokens")
    terminal.prompt()
    terminal.type("hi" + ENTER)
    assert "\x1b[2m" not in terminal.child.before
    assert "GB" in terminal.expect("loading the model.*you said hi")
    terminal.expect(r"\r\nprompt 123 tok")
    terminal.kill()


def test_the_prompt_does_not_wait_for_the_model(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "endless.gguf")
    terminal.prompt()
    terminal.expect("loading the model: ")  # after a second
    terminal.type("hi" + ENTER)
    terminal.expect("GB")
    terminal.type(CONTROL_C)  # takes the message back
    terminal.prompt()
    terminal.type(CONTROL_D)
    assert terminal.end() == 0


def test_a_model_that_cannot_be_opened_ends_the_prompt(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "broken.gguf")
    terminal.prompt()
    terminal.type("half a mess")
    terminal.expect("hybridmoe: error: broken.gguf: no memory for it\r\n")
    assert terminal.end() == 1


def test_a_file_that_is_none_is_an_error_before_the_prompt(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGML")
    with pytest.raises(GGUFError, match="not a GGUF file"):
        Opening(tmp_path / "x.gguf", LoadOptions(), lambda _: None)


def test_the_header_is_read_without_torch() -> None:
    code = """
import sys
from hybridmoe.cli.opening import read_header
from hybridmoe.cli.chat import check_params
from hybridmoe.cli.prompt import Prompt
from hybridmoe.placement.options import LoadOptions
check_params({"temperature": 0.0})
Prompt([], keeps_history=False)
assert read_header(None, LoadOptions())[1] == 2048
print([m for m in ("torch", "jinja2", "rich", "hybridmoe._C") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_a_conversation_that_cannot_be_kept_is_told_of_at_the_end(tmp_path: Path) -> None:
    state = tmp_path / "hybridmoe"
    state.mkdir(mode=0o700)
    (state / "last_conversation.json").mkdir()  # cannot be replaced by a file
    terminal = Terminal(tmp_path)
    terminal.prompt()
    terminal.type("hi" + ENTER)
    terminal.expect("you said hi")
    terminal.prompt()
    terminal.type(CONTROL_D)
    terminal.expect(r"\(not kept for --continue: Is a directory\)")
    assert terminal.end() == 0
    assert "Traceback" not in terminal.child.before


def test_a_history_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "hybridmoe").write_text("a file where the folder should be")
    terminal = Terminal(tmp_path)
    terminal.prompt()
    terminal.type("hi" + ENTER)
    terminal.expect("you said hi")
    terminal.kill()
