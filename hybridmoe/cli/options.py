"""Options that several commands share: those of `LoadOptions`, and --debug.

An option that is not given is None, or empty if repeatable: the defaults are the file's and the
library's.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from hybridmoe.cli.foreign_options import hint_on
from hybridmoe.cli.model_path import ModelPath
from hybridmoe.cli.settings import naming_origin
from hybridmoe.config import EngineOptions
from hybridmoe.option import (
    Address,
    Choice,
    Count,
    Devices,
    File,
    Flag,
    FolderSize,
    Number,
    Option,
    Size,
    Speculate,
    Texts,
    Weights,
    options_of,
)
from hybridmoe.placement.options import LoadOptions

__all__ = [
    "SERVER_NAMES",
    "SectionOption",
    "SectionedCommand",
    "apply_decorators",
    "debug_option",
    "help_without_command",
    "load_option",
    "load_options",
    "load_options_of",
    "model_argument",
    "model_flag",
]

F = TypeVar("F", bound=Callable[..., Any])

_MODEL_FLAG = "hybridmoe.cli.options.model"

# Options of `load` that make a difference only to many requests at a time.
SERVER_NAMES = ("kv_tokens", "max_running", "max_waiting")


class SectionedCommand(click.Command):
    """A command whose help lists the options of sampling and of the model apart.

    Its errors name the variable or the key that a wrong value is from.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {flag for parameter in self.params for flag in parameter.opts}
        if hint := hint_on(args, own):
            raise click.UsageError(hint, ctx)
        with naming_origin(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with naming_origin(ctx):
            return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if row is not None:
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(row)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


class SectionOption(click.Option):
    """An option listed under a title of its own."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


def _note_debug(ctx: click.Context, _parameter: click.Parameter, is_given: bool) -> None:
    if is_given:
        ctx.ensure_object(dict)["debug"] = True


debug_option = click.option(
    "--debug",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_note_debug,
    help="Print the traceback of an error",
)


def _note_model(ctx: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    ctx.meta[_MODEL_FLAG] = value


def _with_flag(ctx: click.Context, _parameter: click.Parameter, value: Path | None) -> Path | None:
    flagged: Path | None = ctx.meta.get(_MODEL_FLAG)
    is_given = ctx.get_parameter_source("model") is ParameterSource.COMMANDLINE
    if is_given and flagged is not None:
        raise click.UsageError("both MODEL and -m name a model", ctx)
    return value if flagged is None else flagged


def model_argument(function: F) -> F:
    """Add MODEL to a command, and `-m MODEL`, as llama.cpp has it."""
    argument = click.argument(
        "model", required=False, type=ModelPath(), metavar="[MODEL]", callback=_with_flag
    )
    flag = model_flag("model_flag", callback=_note_model, expose_value=False, is_eager=True)
    return argument(flag(function))


def model_flag(name: str, **settings: Any) -> Callable[[F], F]:
    """Make the option `-m MODEL`."""
    return click.option("-m", name, type=ModelPath(), metavar="MODEL", help="As MODEL", **settings)


def help_without_command(ctx: click.Context) -> None:
    """Print the help of a group that is called without a command."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def load_option(name: str, *, help: str | None = None, default: str | None = None) -> Any:
    """Make the command-line option of one field of `LoadOptions`.

    help, default: as the help text shows them, where a command differs from `hybridmoe.load`.
    """
    option = options_of(LoadOptions)[name]
    value = getattr(LoadOptions(), name)
    shown = default or option.unset or ("" if value in (None, (), False) else str(value))
    flags = option.flags or (f"--{name.replace('_', '-')}",)
    return click.option(
        *flags,
        name,
        cls=SectionOption,
        section="Model options",
        help=(help or option.help) + (f" [default: {shown}]" if shown else ""),
        **_parsing(option),
    )


def load_options(*, without: Collection[str] = ()) -> Callable[[F], F]:
    """Add the options of `hybridmoe.load`, except some, and --debug to a command."""
    names = [name for name in options_of(LoadOptions) if name not in without]
    names.sort(key=options_of(EngineOptions).__contains__)  # the inherited ones last
    return lambda function: apply_decorators(function, *map(load_option, names), debug_option)


def load_options_of(options: Mapping[str, Any]) -> LoadOptions:
    """Check the options of `hybridmoe.load` that a command was given. Errors: ConfigError."""
    known = options_of(LoadOptions).keys() & options.keys()
    return LoadOptions(**{name: options[name] for name in known if options[name] is not None})


def _parsing(option: Option) -> dict[str, Any]:
    """Choose keywords of `click.option` by type; `LoadOptions` checks the range."""
    match option:
        case Count():
            parsing: dict[str, Any] = {"type": int, "metavar": "N"}
        case Number():
            parsing = {"type": float, "metavar": "X"}
        case Size():
            parsing = {"metavar": "SIZE"}
        case File():
            parsing = {"type": click.Path(path_type=Path, dir_okay=False), "metavar": "FILE"}
        case Choice():
            parsing = {"type": click.Choice(option.choices)}
        case Flag():
            parsing = {"is_flag": True, "default": None}
        case Address() | Devices() | FolderSize() | Speculate() | Weights():
            parsing = {}
        case Texts():
            parsing = {"multiple": True}
        case _:
            raise AssertionError(option)
    return parsing if option.metavar is None else {**parsing, "metavar": option.metavar}


def apply_decorators(function: F, *decorators: Callable[[F], F]) -> F:
    """Decorate a function; the first decorator is the outermost."""
    for decorator in reversed(decorators):
        function = decorator(function)
    return function
