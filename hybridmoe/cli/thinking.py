"""Options `--think` and `--think-budget`, and the arguments of `/think`."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from hybridmoe.errors import ConfigError
from hybridmoe.text.thinking_options import LEVELS, ThinkingOptions

__all__ = ["MODES", "parse_thinking", "shown_thinking", "thinking_of", "thinking_options"]

F = TypeVar("F", bound=Callable[..., Any])
MODES = ("on", "off", *LEVELS)


def thinking_options(function: F) -> F:
    """Add the options on thinking to a command."""
    mode = click.option(
        "--think",
        type=click.Choice(MODES),
        metavar="on|off|LEVEL",
        help=f"Think, or not; LEVEL: {', '.join(LEVELS)} [default: the model's]",
    )
    budget = click.option(
        "--think-budget",
        type=click.IntRange(min=0),
        metavar="N",
        help="End thoughts after N tokens [default: no limit]",
    )
    return mode(budget(function))


def thinking_of(options: Mapping[str, Any]) -> ThinkingOptions:
    """Read the options on thinking that a command was given."""
    return ThinkingOptions(
        mode=options["think"], budget_tokens=options["think_budget"], name="--think"
    )


def parse_thinking(text: str, before: ThinkingOptions) -> ThinkingOptions:
    """Read the words of `/think`: a mode, tokens of a budget, or "default" for neither.

    What is not given stays as it is in `before`. Errors: ConfigError.
    """
    mode, budget = before.mode, before.budget_tokens
    for word in text.split():
        if word == "default":
            mode = budget = None
        elif word.isascii() and word.isdecimal():
            budget = int(word)
        elif word in MODES:
            mode = word
        else:
            known = ", ".join(MODES)
            raise ConfigError(f"/think {word:.40}: expected {known}, default, or tokens")
    return ThinkingOptions(mode=mode, budget_tokens=budget, name="/think")


def shown_thinking(options: ThinkingOptions) -> str:
    """Write the options for people."""
    budget = options.budget_tokens
    limit = "" if budget is None else f", at most {budget} tokens"
    return f"thinking: {options.mode or 'default'}{limit}"
