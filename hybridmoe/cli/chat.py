"""`hybridmoe chat`: a conversation on a terminal, or one message through a pipe."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hybridmoe.cli.commands import Commands
from hybridmoe.cli.loading import check_params, open_model
from hybridmoe.cli.options import (
    SERVER_NAMES,
    SectionedCommand,
    load_options,
    load_options_of,
    model_argument,
)
from hybridmoe.cli.render import ProgressBar, Screen
from hybridmoe.cli.sampling_options import SAMPLING_NAMES, sampling_of, sampling_options
from hybridmoe.cli.session import Session
from hybridmoe.cli.talk import Talk
from hybridmoe.cli.thinking import MODES, thinking_of, thinking_options
from hybridmoe.errors import ConfigError
from hybridmoe.state_folder import state_folder

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings

    from hybridmoe import LLM

__all__ = ["chat_command", "is_unfinished", "joined"]

_QUOTES = '"""'


@click.command("chat", cls=SectionedCommand)
@model_argument
@click.option("--system", metavar="TEXT", help="System message")
@thinking_options
@sampling_options
@click.option("--no-color", is_flag=True, help="No dim text, no colors; as NO_COLOR=1")
@load_options(without=SERVER_NAMES)
def chat_command(model: Path | None, system: str | None, no_color: bool, **options: Any) -> None:
    """Chat with MODEL.gguf, or with the embedded model.

    In a pipe, standard input is one message, and only the response is printed.
    """
    params = sampling_of(options)
    check_params(params)
    with open_model(model, load_options_of(options)) as llm:
        session = Session(llm.config.name, system, params, thinking=thinking_of(options))
        llm.check_thinking(session.thinking)
        if sys.stdin.isatty():
            _converse(llm, session, Screen(use_color=not no_color))
        else:
            _respond_to_pipe(llm, session)


def _respond_to_pipe(llm: "LLM", session: Session) -> None:
    message = sys.stdin.buffer.read().decode("utf-8-sig", "replace").rstrip("\r\n")
    if not message.strip():
        raise ConfigError("standard input is empty; expected a message")
    session.messages.append({"role": "user", "content": message})
    screen = Screen()
    with ProgressBar() as bar:
        stream = llm.chat(
            session.prompt(), thinking=session.thinking, stream=True, progress=bar, **session.params
        )
        for text, is_reasoning in stream.pieces():
            bar.close()
            screen.write(text, is_reasoning=is_reasoning)
    screen.end_line()


def _converse(llm: "LLM", session: Session, screen: Screen) -> None:
    talk = Talk(llm, session, screen)
    commands = Commands(talk, check_params)
    screen.note(f"{session.model} · context {llm.context_tokens} tokens · /help lists commands")
    read = _reader(commands.names)
    while not commands.is_done:
        try:
            text = joined(read())
        except KeyboardInterrupt:
            screen.note("(Ctrl-D or /exit ends the program)")
            continue
        except EOFError:
            return
        if text.startswith("/"):
            commands.run(text)
        elif text.strip():
            talk.ask(text)


def is_unfinished(text: str) -> bool:
    """Return True if Enter continues the message rather than sending it."""
    return text.endswith("\\") or text.count(_QUOTES) % 2 == 1


def joined(text: str) -> str:
    """Remove the marks that continued the message."""
    text = text.strip()
    if text.startswith(_QUOTES) and text.endswith(_QUOTES) and len(text) >= 2 * len(_QUOTES):
        return text.removeprefix(_QUOTES).removesuffix(_QUOTES).strip("\n")
    return text.replace("\\\n", "\n")


def _reader(commands: list[str]) -> Callable[[], str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import create_output

    session: PromptSession[str] = PromptSession(
        history=_history(),
        completer=_completer(commands),
        complete_while_typing=False,
        key_bindings=_key_bindings(),
        multiline=True,
        prompt_continuation="  ",
        output=create_output(always_prefer_tty=True),  # also if standard output is a file
    )
    return lambda: session.prompt("> ")


def _key_bindings() -> "KeyBindings":
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_unfinished(buffer.document.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def _completer(commands: list[str]) -> "Completer":
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    class SlashCompleter(Completer):
        """Completes names of commands, parameters and files."""

        def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
            name, space, argument = document.text_before_cursor.partition(" ")
            if not space:
                yield from _beginning_with(name, commands if name.startswith("/") else ())
            elif name == "/params":
                yield from _beginning_with(argument, SAMPLING_NAMES)
            elif name == "/think":
                yield from _beginning_with(argument, (*MODES, "default"))
            elif name in ("/save", "/load"):
                files = PathCompleter(expanduser=True)
                yield from files.get_completions(Document(argument), event)

    def _beginning_with(text: str, words: Iterable[str]) -> Iterable[Completion]:
        return (Completion(word, -len(text)) for word in words if word.startswith(text))

    return SlashCompleter()


def _history() -> "History":
    """History in $XDG_STATE_HOME/hybridmoe/history; in memory if that cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    folder = state_folder()
    if folder is None:
        return InMemoryHistory()
    path = folder / "history"
    try:
        path.open("a").close()
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
