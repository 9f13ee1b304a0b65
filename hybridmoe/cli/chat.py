"""`hybridmoe chat`: a conversation on a terminal, or one message through a pipe."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from hybridmoe.cli.conversation import Conversation
from hybridmoe.cli.last_conversation import load_last
from hybridmoe.cli.loading import check_params
from hybridmoe.cli.message import model_and_message, read_text, with_texts
from hybridmoe.cli.model_path import ModelPath
from hybridmoe.cli.options import (
    SERVER_NAMES,
    SectionedCommand,
    load_options,
    load_options_of,
    model_flag,
)
from hybridmoe.cli.ranks import has_served_experts
from hybridmoe.cli.render import Screen
from hybridmoe.cli.sampling_options import sampling_of, sampling_options
from hybridmoe.cli.session import Session
from hybridmoe.cli.thinking import thinking_of, thinking_options
from hybridmoe.errors import ConfigError
from hybridmoe.text.thinking_options import ThinkingOptions

if TYPE_CHECKING:
    from hybridmoe.cli.tool_file import ToolFile

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
@click.option("--continue", "continues", is_flag=True, help="Go on with the last conversation")
@click.option(
    "--tools",
    "tool_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.py",
    help="Let the model call the functions of a Python file, which is run; asks before each call",
)
@click.option(
    "--remember/--no-remember",
    default=True,
    help="Keep the conversation, for --continue, and the history of the prompt [default: remember]",
)
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
    continues: bool,
    tool_path: Path | None,
    remember: bool,
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
    if prompt is not None:
        if message:
            raise click.UsageError("both MESSAGE and -p give a message", ctx)
        message = prompt
    params = sampling_of(options)
    check_params(params)
    session = Session("", system, params, thinking=thinking_of(options))
    if continues:
        session = _continued(load_last(), session)
        model = model or (Path(session.file) if session.file else None)
    else:
        model = model or flagged
    loading = load_options_of(options)
    if has_served_experts(model, loading):
        return
    session.file = None if model is None else str(model.absolute())
    is_terminal = sys.stdin.isatty()
    texts = _texts(files, is_terminal=is_terminal, is_expected=not message)
    conversation = Conversation(
        session,
        Screen(use_color=not no_color, is_plain=plain, folds_thoughts=thoughts == "fold"),
        tools=None if tool_path is None else _load_tools(tool_path),
        is_continued=continues,
        is_kept=remember and (is_terminal or continues),  # else it is the work of a script
    )
    if message or texts:
        conversation.respond(model, loading, with_texts(message, texts))
    else:
        conversation.run(model, loading)


def _texts(
    files: tuple[Path, ...], *, is_terminal: bool, is_expected: bool
) -> list[tuple[str, str]]:
    """Read files and what comes through a pipe. Errors: ConfigError, also without any text."""
    texts = [_file_text(path) for path in files]
    if not is_terminal:
        piped = read_text(sys.stdin.buffer, "standard input")
        if piped.strip():
            texts.append(("standard input", piped))
        elif is_expected and not texts:
            raise ConfigError("standard input is empty; expected a message")
    return texts


def _file_text(path: Path) -> tuple[str, str]:
    try:
        with path.open("rb") as file:
            return path.name, read_text(file, str(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None


def _continued(last: Session, now: Session) -> Session:
    """Add what the command line says to the last conversation."""
    last.system = last.system if now.system is None else now.system
    last.params |= now.params
    if now.thinking != ThinkingOptions(name=now.thinking.name):
        last.thinking = now.thinking
    return last


def _load_tools(path: Path) -> "ToolFile":
    if not sys.stdin.isatty():
        raise ConfigError("--tools asks before each call: expected a terminal as standard input")
    from hybridmoe.cli.tool_file import ToolFile  # takes 0.2 s

    return ToolFile(path)
