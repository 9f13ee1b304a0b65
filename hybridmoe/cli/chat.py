"""`hybridmoe chat`: a conversation on a terminal, or one message through a pipe."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from hybridmoe.cli.commands import Commands
from hybridmoe.cli.keyboard import Keyboard
from hybridmoe.cli.loading import check_params, open_model
from hybridmoe.cli.message import model_and_message, read_text, with_texts
from hybridmoe.cli.model_path import ModelPath
from hybridmoe.cli.options import (
    SERVER_NAMES,
    SectionedCommand,
    load_options,
    load_options_of,
    model_flag,
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
@click.argument(
    "words", nargs=-1, metavar="[MODEL] [MESSAGE]", shell_complete=ModelPath().shell_complete
)
@model_flag("flagged")
@click.option("-p", "--prompt", metavar="TEXT", help="As MESSAGE")
@click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Text file that goes before MESSAGE; repeatable",
)
@click.option("--system", metavar="TEXT", help="System message")
@thinking_options
@sampling_options
@click.option("--no-color", is_flag=True, help="No dim text, no colors; as NO_COLOR=1")
@click.option("--plain", is_flag=True, help="Show responses as they are written, not as Markdown")
@click.option(
    "--thoughts",
    type=click.Choice(("fold", "open")),
    default="fold",
    help="Put one line in the place of thoughts when they end, or leave them [default: fold]",
)
@load_options(without=SERVER_NAMES)
@click.pass_context
def chat_command(
    ctx: click.Context,
    /,
    words: tuple[str, ...],
    flagged: Path | None,
    prompt: str | None,
    files: tuple[Path, ...],
    system: str | None,
    no_color: bool,
    plain: bool,
    thoughts: str,
    **options: Any,
) -> None:
    """Chat with MODEL, or with the embedded model.

    With MESSAGE, or in a pipe, only the response is printed. What comes through a pipe goes
    before MESSAGE: `hybridmoe chat "What failed?" < build.log`.
    """
    is_flagged = ctx.get_parameter_source("flagged") is ParameterSource.COMMANDLINE
    model, message = model_and_message(words, flagged if is_flagged else None, ctx)
    model = model or flagged
    if prompt is not None:
        if message:
            raise click.UsageError("both MESSAGE and -p give a message", ctx)
        message = prompt
    params = sampling_of(options)
    check_params(params)
    loading = load_options_of(options)
    session = Session("", system, params, thinking=thinking_of(options))
    screen = Screen(use_color=not no_color, is_plain=plain, folds_thoughts=thoughts == "fold")
    texts = [_file_text(path) for path in files]
    if not sys.stdin.isatty():
        piped = read_text(sys.stdin.buffer, "standard input")
        if piped.strip():
            texts.append(("standard input", piped))
        elif not message and not texts:
            raise ConfigError("standard input is empty; expected a message")
    elif not message and not texts:
        _converse(model, loading, session, screen)
        return
    with open_model(model, loading) as llm:
        _check_session(llm, session)
        _respond(llm, session, with_texts(message, texts), screen)


def _file_text(path: Path) -> tuple[str, str]:
    try:
        with path.open("rb") as file:
            return path.name, read_text(file, str(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None


def _respond(llm: "LLM", session: Session, message: str, screen: Screen) -> None:
    """Print the response to one message."""
    session.messages.append({"role": "user", "content": message})
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
        screen.fold_hint = "; /thoughts shows them"
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
