"""`hybridmoe chat`: a conversation on a terminal, or one message through a pipe."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hybridmoe.cli.commands import Commands
from hybridmoe.cli.keyboard import Keyboard
from hybridmoe.cli.loading import check_params, open_model
from hybridmoe.cli.options import (
    SERVER_NAMES,
    SectionedCommand,
    load_options,
    load_options_of,
    model_argument,
)
from hybridmoe.cli.progress_bar import ProgressBar
from hybridmoe.cli.prompt import Prompt
from hybridmoe.cli.render import Screen
from hybridmoe.cli.sampling_options import sampling_of, sampling_options
from hybridmoe.cli.session import Session
from hybridmoe.cli.talk import Talk
from hybridmoe.cli.thinking import thinking_of, thinking_options
from hybridmoe.errors import ConfigError
from hybridmoe.placement.options import LoadOptions

if TYPE_CHECKING:
    from hybridmoe import LLM

__all__ = ["chat_command"]


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
    loading = load_options_of(options)
    session = Session("", system, params, thinking=thinking_of(options))
    if sys.stdin.isatty():
        _converse(model, loading, session, Screen(use_color=not no_color))
        return
    with open_model(model, loading) as llm:
        _check_session(llm, session)
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


def _converse(model: Path | None, loading: LoadOptions, session: Session, screen: Screen) -> None:
    keyboard = Keyboard()
    with ExitStack() as stack:
        with keyboard.held():
            llm = stack.enter_context(open_model(model, loading))
        _check_session(llm, session)
        talk = Talk(llm, session, screen, hold_keyboard=keyboard.held)
        commands = Commands(talk, check_params)
        screen.note(f"{talk.model_line} · /help lists commands")
        prompt = Prompt(commands.names)
        commands.confirm = prompt.confirm
        while not commands.is_done:
            try:
                commands.read(prompt.read(keyboard.take()))
            except KeyboardInterrupt:
                screen.note("(Ctrl-D or /exit ends the program)")
            except EOFError:
                return


def _check_session(llm: "LLM", session: Session) -> None:
    """Name the model of a session, and check that it knows the options on thinking."""
    session.model = llm.config.name
    llm.check_thinking(session.thinking)
