"""Conversation of `hybridmoe chat`: on a terminal, or of one message; kept for `--continue`."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from hybridmoe.cli.commands import COMMAND_NAMES, Commands
from hybridmoe.cli.keyboard import Keyboard
from hybridmoe.cli.last_conversation import LastConversation
from hybridmoe.cli.loading import check_params, open_model
from hybridmoe.cli.opening import Opening
from hybridmoe.cli.prompt import Prompt, choose
from hybridmoe.cli.render import Screen
from hybridmoe.cli.session import Session
from hybridmoe.cli.signals import Terminated, uninterrupted
from hybridmoe.cli.talk import Talk
from hybridmoe.cli.tool_runner import ToolRunner
from hybridmoe.placement.options import LoadOptions

if TYPE_CHECKING:
    from hybridmoe import LLM
    from hybridmoe.cli.tool_file import ToolFile

__all__ = ["Conversation"]


class Conversation:
    """One run of the command."""

    def __init__(
        self,
        session: Session,
        screen: Screen,
        *,
        tools: "ToolFile | None",
        is_continued: bool,
        is_kept: bool,
    ) -> None:
        """is_continued: the session is that of the last conversation. is_kept: for `--continue`."""
        self._session = session
        self._screen = screen
        self._tools = tools
        self._is_continued = is_continued
        self._is_kept = is_kept
        self._last = LastConversation(is_continued=is_continued)

    def respond(self, model: Path | None, loading: LoadOptions, message: str) -> None:
        """Print the response to one message. Errors: HybridMoeError; KeyboardInterrupt."""
        with open_model(model, loading) as llm:
            talk = self._begin(llm, nullcontext, is_quiet=True)
            if not talk.respond(message):
                raise KeyboardInterrupt
            self._keep_kv(talk, loading)

    def run(self, model: Path | None, loading: LoadOptions) -> None:
        """Read messages and commands from the terminal until the user ends."""
        keyboard, screen = Keyboard(), self._screen
        screen.fold_hint = "; /thoughts shows them"
        with keyboard.held():
            opening = Opening(
                model, loading, lambda llm: llm.check_thinking(self._session.thinking)
            )
        with opening:
            screen.note(f"{opening.model_line} · /help lists commands")
            prompt = Prompt(COMMAND_NAMES, keeps_history=self._is_kept, use_color=screen.use_color)
            talk: Talk | None = None
            if self._is_continued:  # its KV cache is read
                talk = self._wait(opening, keyboard)
                screen.note(f"(continued: {len(self._session.messages)} messages)")
                talk.recall()
            commands: Commands | None = None
            while commands is None or not commands.is_done:
                try:
                    text = prompt.read(keyboard.take(), opening if talk is None else None)
                    talk = talk or self._wait(opening, keyboard)
                    commands = commands or Commands(talk, check_params, prompt.confirm)
                    commands.read(text)
                except KeyboardInterrupt:
                    screen.note("(Ctrl-D or /exit ends the program)")
                except EOFError:
                    break
                except Terminated:  # a closed window, a shutdown
                    if talk is not None:
                        with uninterrupted():
                            self._keep_kv(talk, loading)
                    raise
            if talk is not None and (num_tokens := self._keep_kv(talk, loading)):
                screen.note(f"(kept for --continue, with a KV cache of {num_tokens} tokens)")
            if self._last.failure:
                screen.note(f"(not kept for --continue: {self._last.failure})")

    def _wait(self, opening: Opening, keyboard: Keyboard) -> Talk:
        with keyboard.held():
            llm = opening.wait()
        return self._begin(llm, keyboard.held, is_quiet=False)

    def _begin(
        self, llm: "LLM", hold: Callable[[], AbstractContextManager[None]], *, is_quiet: bool
    ) -> Talk:
        """Join the session and the model. Errors: ConfigError."""
        session = self._session
        if self._is_continued and session.model != llm.config.name:
            note = f"(continued from another model: {session.model:.80})"
            print(note, file=sys.stderr, flush=True)
        session.model = llm.config.name
        llm.check_thinking(session.thinking)
        tools = None
        if self._tools is not None:
            tools = ToolRunner(self._tools, choose, self._screen.note)
        talk = Talk(
            llm,
            session,
            self._screen,
            hold_keyboard=hold,
            on_response=self._keep,
            tools=tools,
            is_quiet=is_quiet,
        )
        if self._is_continued:
            self._last.load_kv(talk.load_kv_cache)
        return talk

    def _keep(self) -> None:
        if self._is_kept:
            self._last.save(self._session)

    def _keep_kv(self, talk: Talk, loading: LoadOptions) -> int:
        """Write the KV cache, unless it is on disk anyway. Returns its tokens, 0 = none."""
        if self._is_kept and loading.kv_disk is None:
            return self._last.save_kv(talk.save_kv_cache)
        return 0
