"""The `hybridmoe` command: run a subcommand; errors become one line and an exit code.

Exit codes: 0 done, 1 failed, 2 used wrongly, 130 interrupted. SIGTERM and SIGHUP end the process
after all is saved. A command's module is imported when the command runs, since torch alone takes
longer than `--help` may; so this module holds names and summaries.
"""

import difflib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

import click

import hybridmoe
from hybridmoe.cli.options import debug_option, help_without_command
from hybridmoe.cli.settings import add_settings
from hybridmoe.cli.signals import Terminated, die_of, terminations
from hybridmoe.errors import HybridMoeError

__all__ = ["main"]

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


class _Entry(NamedTuple):
    module: str
    attribute: str
    summary: str


COMMANDS = {
    "chat": _Entry("hybridmoe.cli.chat", "chat_command", "Chat with a model; or pipe one message."),
    "generate": _Entry(
        "hybridmoe.cli.generate", "generate_command", "Answer one prompt, or continue a text."
    ),
    "serve": _Entry(
        "hybridmoe.cli.serve", "serve_command", "Serve a model over OpenAI's and Anthropic's APIs."
    ),
    "inspect": _Entry(
        "hybridmoe.cli.inspect",
        "inspect_command",
        "Show the contents and sizes of a GGUF file.",
    ),
    "plan": _Entry(
        "hybridmoe.cli.plan", "plan_command", "Plan memory and predict speed for a model."
    ),
    "pull": _Entry("hybridmoe.cli.pull", "pull_command", "Download a model as GGUF files."),
    "list": _Entry("hybridmoe.cli.models", "list_command", "List the models in the models folder."),
    "rm": _Entry("hybridmoe.cli.models", "rm_command", "Remove models from the models folder."),
    "bench": _Entry("hybridmoe.cli.bench", "bench_command", "Compare expert-cache policies."),
    "doctor": _Entry(
        "hybridmoe.cli.doctor_command",
        "doctor_command",
        "Measure this machine's limits, and give advice.",
    ),
}

_WITH_FILE = ("chat", "generate", "serve", "plan")  # commands that config.toml is for

_EXAMPLES = (
    ("hybridmoe chat", "talk with the embedded model"),
    ('hybridmoe chat MODEL "What is a router?"', "one question, one answer"),
    ("hybridmoe serve MODEL", "a page and the APIs on http://127.0.0.1:8000"),
)

# Commands of ollama and llama.cpp, to ours.
_ELSEWHERE = {
    "run": "chat MODEL",
    "show": "inspect MODEL",
    "ps": "serve, then GET /v1/models or its page",
    "version": "--version",
    "help": "--help",
    "server": "serve",
    "cli": "chat",
    "complete": "generate",
    "completion": "generate",
    "ls": "list",
    "delete": "rm",
}


def _meant(name: str) -> str:
    """Say what a person may have meant by a command that does not exist."""
    if name in _ELSEWHERE:
        return f"here it is hybridmoe {_ELSEWHERE[name]}"
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    if close:
        return f"did you mean {close[0]}?"
    if " " in name or name.lower().endswith((".gguf", "?")):
        return f"did you mean hybridmoe chat {name!r:.40}?"
    return f"known: {', '.join(COMMANDS)}"


def _imported(name: str) -> click.Command:
    entry = COMMANDS[name]
    command: click.Command = getattr(import_module(entry.module), entry.attribute)
    return command


class _LazyGroup(click.Group):
    """A group that imports a command's module when the command runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = _imported(cmd_name)
        others = {name: _imported(name) for name in _WITH_FILE} if cmd_name in _WITH_FILE else None
        add_settings(command, others)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            formatter.write_dl(_EXAMPLES, col_max=60)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            raise click.UsageError(f"no command {name!r:.40}; {_meant(name)}", ctx)
        return super().resolve_command(ctx, args)


def _print_version(ctx: click.Context, _parameter: click.Parameter, is_given: bool) -> None:
    if is_given:
        click.echo(f"hybridmoe {hybridmoe.__version__}")
        ctx.exit()


@click.group(
    cls=_LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version",
)
@debug_option
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Run trillion-parameter mixture-of-experts models, such as Kimi K2, on one workstation.

    Without a file, chat, generate and serve use the embedded model.
    """
    help_without_command(ctx)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; argv: without the program's name.

    SIGTERM and SIGHUP end the command in order. With argv=None the process then dies of them.
    """
    _fill_streams()
    with terminations() as arrived:
        try:
            code = _run(argv)
        except Terminated as end:
            arrived = [end.number]
    if arrived:
        if argv is None:
            die_of(arrived[0])
        return 128 + arrived[0]
    if argv is None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to interrupt
    return code


def _fill_streams() -> None:
    """Redirect closed standard streams to /dev/null.

    Else the next file that is opened takes their descriptor, and is written into.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    # Kept open by sys, as long as the process lives.
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _run(argv: Sequence[str] | None) -> int:
    state: dict[str, Any] = {"debug": False}
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        if argv is None and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # __main__ has another one
        arguments = None if argv is None else list(argv)
        code = cli.main(arguments, "hybridmoe", standalone_mode=False, obj=state)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.UsageError as error:
        _say(f"{error.format_message().rstrip('.')} (see {_path(error)} --help)")
        return EXIT_USAGE
    except click.Abort:
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # click ends silently with 1 where it happens earlier
        _drop_output()
        return EXIT_FAILED
    except Exception as error:
        if isinstance(error, OSError):  # standard output may be full
            _drop_output()
        if state["debug"]:
            traceback.print_exc()
        elif isinstance(error, HybridMoeError | OSError | click.ClickException):
            _say(_line(error))
        else:
            _say(f"internal error: {type(error).__name__}: {error} (--debug shows where)")
        return EXIT_FAILED


def _drop_output() -> None:
    """Redirect standard output to /dev/null if a flush fails: Python flushes again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _line(error: Exception) -> str:
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, OSError) and error.strerror:  # without "[Errno 28]"
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _say(message: str) -> None:
    print(f"hybridmoe: error: {' '.join(message.split())}", file=sys.stderr)


def _path(error: click.UsageError) -> str:
    return error.ctx.command_path if error.ctx is not None else "hybridmoe"
