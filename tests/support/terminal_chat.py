"""A conversation on a terminal that a test can read."""

import io

from fake_llm import FakeLLM

from hybridmoe.cli.commands import Commands
from hybridmoe.cli.loading import check_params
from hybridmoe.cli.render import Screen
from hybridmoe.cli.session import Session
from hybridmoe.cli.talk import Talk

TIMING = "prompt 123 tok (100 cached) 184 t/s | gen 11 tok 40.0 t/s | ttft 0.12 s"  # of FakeLLM


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Chat:
    """Commands and questions, and what the terminal shows of each."""

    def __init__(self) -> None:
        self.out = Terminal()
        self.llm = FakeLLM()
        self.session = Session("fake")
        screen = Screen(self.out, use_color=False)
        self.talk = Talk(self.llm, self.session, screen)  # type: ignore[arg-type]
        self.commands = Commands(self.talk, check_params)

    def ask(self, text: str) -> str:
        self.out.truncate(self.out.seek(0))
        self.talk.ask(text)
        return self.out.getvalue()

    def run(self, line: str) -> str:
        self.out.truncate(self.out.seek(0))
        self.commands.run(line)
        return self.out.getvalue()

    @property
    def said(self) -> list[tuple[str, str]]:
        return [(m["role"], m["content"]) for m in self.session.messages]
