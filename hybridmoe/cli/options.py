"""Options that several commands share: made from `LoadOptions`, and those of sampling.

An option that is not given is None, or empty where it is repeatable, so that the file's and the
library's defaults hold.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from hybridmoe.config import EngineOptions
from hybridmoe.option import Choice, Count, File, Number, Option, Size, Texts, options_of
from hybridmoe.placement.options import LoadOptions

__all__ = [
    "SAMPLING_NAMES",
    "SERVER_NAMES",
    "SectionedCommand",
    "debug_option",
    "help_without_command",
    "load_option",
    "load_options",
    "load_options_of",
    "model_argument",
    "sampling_of",
    "sampling_options",
]

F = TypeVar("F", bound=Callable[..., Any])

# Options of `load` that make a difference only to many requests at a time.
SERVER_NAMES = ("kv_tokens", "max_running", "max_waiting")


class SectionedCommand(click.Command):
    """A command whose help lists the options of sampling and of the model apart."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if row is not None:
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(row)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


class _SectionOption(click.Option):
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

model_argument = click.argument(
    "model", required=False, type=click.Path(path_type=Path), metavar="[MODEL.gguf]"
)


def help_without_command(ctx: click.Context) -> None:
    """Print a group's help where nothing was asked of it."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def load_option(name: str, *, help: str | None = None, default: str | None = None) -> Any:
    """The command-line option of one field of `LoadOptions`.

    help, default: as the help text shows them, where a command differs from `hybridmoe.load`.
    """
    option = options_of(LoadOptions)[name]
    value = getattr(LoadOptions(), name)
    shown = default or option.unset or ("" if value in (None, ()) else str(value))
    flags = option.flags or (f"--{name.replace('_', '-')}",)
    return click.option(
        *flags,
        name,
        cls=_SectionOption,
        section="Model options",
        help=(help or option.help) + (f" [default: {shown}]" if shown else ""),
        **_parsing(option),
    )


def load_options(*, without: Collection[str] = ()) -> Callable[[F], F]:
    """The options of `hybridmoe.load` but for some, and --debug."""
    names = [name for name in options_of(LoadOptions) if name not in without]
    names.sort(key=options_of(EngineOptions).__contains__)  # the inherited ones last
    return lambda function: _apply(function, *map(load_option, names), debug_option)


def load_options_of(options: Mapping[str, Any]) -> LoadOptions:
    """Check the options of `hybridmoe.load` that a command was given. Errors: ConfigError."""
    known = options_of(LoadOptions).keys() & options.keys()
    return LoadOptions(**{name: options[name] for name in known if options[name] is not None})


def _parsing(option: Option) -> dict[str, Any]:
    """Keywords of `click.option` for the type; ranges are left to `LoadOptions`."""
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
        case Texts():
            parsing = {"multiple": True}
        case _:
            raise AssertionError(option)
    return parsing if option.metavar is None else {**parsing, "metavar": option.metavar}


_SAMPLING: Mapping[str, dict[str, Any]] = {
    "temperature": {"type": float, "help": "Sampling temperature; 0 is greedy"},
    "top_k": {"type": int, "help": "Sample from the K most likely tokens; 0 = all"},
    "top_p": {"type": float, "help": "Sample from the most likely tokens of this total share"},
    "min_p": {"type": float, "help": "Drop tokens below this share of the most likely one"},
    "repetition_penalty": {"type": float, "help": "Penalty on tokens of prompt and response; > 1"},
    "presence_penalty": {"type": float, "help": "Penalty on tokens that the response contains"},
    "frequency_penalty": {"type": float, "help": "Penalty for each occurrence in the response"},
    "seed": {"type": int, "help": "Random seed; the same seed gives the same response"},
    "max_tokens": {"type": int, "help": "Maximum tokens of a response"},
    "stop": {"multiple": True, "metavar": "TEXT", "help": "End before this text; repeatable"},
}
SAMPLING_NAMES = tuple(_SAMPLING)  # as in `SamplingParams`


def sampling_options(function: F) -> F:
    """The sampling parameters that a command takes."""
    options = [
        click.option(
            f"--{name.replace('_', '-')}",
            cls=_SectionOption,
            section="Sampling options",
            **keywords,
        )
        for name, keywords in _SAMPLING.items()
    ]
    return _apply(function, *options)


def sampling_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling parameters among a command's options, as far as they were given."""
    given = {name: options[name] for name in SAMPLING_NAMES if options.get(name) is not None}
    stop = given.pop("stop", ())
    return {**given, "stop": list(stop)} if stop else given


def _apply(function: F, *decorators: Callable[[F], F]) -> F:
    for decorator in reversed(decorators):
        function = decorator(function)
    return function
