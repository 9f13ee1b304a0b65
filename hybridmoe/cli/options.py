"""Options that several commands share, and what becomes of them.

An option that is not given is None, so that the file's and the library's defaults hold.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from hybridmoe.config import DEVICES, KV_TYPES

__all__ = [
    "ENGINE_NAMES",
    "LOAD_NAMES",
    "SAMPLING_NAMES",
    "debug_option",
    "device_option",
    "engine_options",
    "help_without_command",
    "load_options",
    "model_argument",
    "opening_of",
    "place_option",
    "sampling_of",
    "sampling_options",
]

LOAD_NAMES = (
    "num_threads", "context_tokens", "device", "vram", "place", "defer", "expert_ram",
    "expert_prefetch", "expert_profile", "trace", "yarn_beta_fast", "yarn_beta_slow",
)  # fmt: skip
ENGINE_NAMES = ("kv_type", "speculate")
F = TypeVar("F", bound=Callable[..., Any])

SAMPLING_NAMES = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed", "max_tokens", "stop",
)  # fmt: skip


def _note_debug(ctx: click.Context, _parameter: click.Parameter, is_given: bool) -> None:
    if is_given:
        ctx.ensure_object(dict)["debug"] = True


debug_option = click.option(
    "--debug",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_note_debug,
    help="Show a traceback where something fails.",
)

device_option = click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="auto",
    help="Where all but the experts is computed; a CUDA card if there is one.",
)
place_option = click.option(
    "--place",
    multiple=True,
    metavar="REGEX=cpu|cuda",
    help="Where tensors of such names are; the first that matches counts; repeatable.",
)

model_argument = click.argument(
    "model", required=False, type=click.Path(path_type=Path), metavar="[MODEL.gguf]"
)


def help_without_command(ctx: click.Context) -> None:
    """Print a group's help where nothing was asked of it."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def sampling_options(function: F) -> F:
    """How the next token is chosen; names as in `SamplingParams`."""
    return _apply(
        function,
        click.option("--temperature", type=float, help="0 = always the likeliest token."),
        click.option("--top-k", type=int, help="Choose among the K likeliest tokens; 0 = all."),
        click.option("--top-p", type=float, help="Among the likeliest that make up this share."),
        click.option("--min-p", type=float, help="Among those this likely, next to the likeliest."),
        click.option("--repetition-penalty", type=float, help="Above 1 discourages; whole text."),
        click.option("--presence-penalty", type=float, help="On tokens that the answer has."),
        click.option("--frequency-penalty", type=float, help="The same, for each time."),
        click.option("--seed", type=int, help="The same seed gives the same answer."),
        click.option("--max-tokens", type=int, help="At most this many tokens an answer."),
        click.option("--stop", multiple=True, metavar="TEXT", help="End before it; repeatable."),
    )


def load_options(function: F) -> F:
    """How the model is opened; the names are those of `hybridmoe.load`."""
    return _apply(
        function,
        click.option("--threads", "num_threads", type=int, help="CPU threads; physical cores."),
        click.option("--ctx", "context_tokens", type=int, help="Context in tokens; the model's."),
        device_option,
        click.option("--vram", metavar="SIZE", help="Of the card's memory, 20GiB; what is free."),
        place_option,
        click.option(
            "--defer",
            type=int,
            default=0,
            metavar="N",
            help="Add a token's N least weighted experts one layer later; changes answers.",
        ),
        click.option("--expert-ram", metavar="SIZE", help="RAM for experts, 12GiB; what is free."),
        click.option(
            "--expert-prefetch",
            type=int,
            default=0,
            metavar="N",
            help="Read N experts of the next layer on a guess, where not all are in RAM.",
        ),
        click.option(
            "--expert-profile",
            type=click.Path(path_type=Path),
            help="Load the experts first that it names; saved at the end.",
        ),
        click.option(
            "--trace",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Write which experts every token chose.",
        ),
        click.option("--yarn-beta-fast", type=float, help="Override the file's YaRN beta_fast."),
        click.option("--yarn-beta-slow", type=float, help="Override the file's YaRN beta_slow."),
        debug_option,
    )


def engine_options(function: F) -> F:
    """How one conversation runs; the names are those of `hybridmoe.load`."""
    return _apply(
        function,
        click.option(
            "--kv-type",
            type=click.Choice(KV_TYPES),
            default=KV_TYPES[0],
            show_default=True,
            help="KV cache type; int8 takes half the memory.",
        ),
        click.option(
            "--speculate",
            type=int,
            default=0,
            show_default=True,
            metavar="N",
            help="Check N tokens at once that followed the same words before.",
        ),
    )


def opening_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """What `hybridmoe.load` takes of a command's options."""
    return {name: options[name] for name in (*LOAD_NAMES, *ENGINE_NAMES)}


def sampling_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling parameters among a command's options, as far as they were given."""
    given = {name: options[name] for name in SAMPLING_NAMES if options.get(name) is not None}
    stop = given.pop("stop", ())
    return {**given, "stop": list(stop)} if stop else given


def _apply(function: F, *decorators: Callable[[F], F]) -> F:
    for decorator in reversed(decorators):
        function = decorator(function)
    return function
