"""Options from the environment and from one TOML file.

An option is looked for on the command line, in the environment (`HYBRIDMOE_CTX` for `--ctx`), in
the preset of `--preset`, and at the top level of the file, in this order. In the file, options are
called as on the command line without dashes in front; MODEL is `model`:

    ctx = 32768
    [presets.fast]
    model = "GLM-4.7-Flash-Q4_K_M"
    think = "off"
"""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from hybridmoe.errors import ConfigError

__all__ = ["add_settings", "naming_origin", "origin_of", "settings_file"]

# Read by the library, too, with the same meaning, and checked there.
_OF_LIBRARY = frozenset({"HYBRIDMOE_THREADS"})
_NO_SETTINGS = frozenset({"pairs", "help", "preset_name"})  # --model NAME=FILE is not MODEL
_MODEL = ("model",)
_PRESETS = "presets"
_META = "hybridmoe.cli.settings.keys"
_EXPECTED: Sequence[tuple[Any, Any, str]] = (
    (click.types.BoolParamType, bool, "true or false"),
    (click.types.IntParamType, int, "a whole number"),
    (click.types.FloatParamType, (int, float), "a number"),
    (click.ParamType, (int, float, str), "a text"),
)


def settings_file() -> Path | None:
    """Name `$XDG_CONFIG_HOME/hybridmoe/config.toml`; None without a home folder."""
    try:
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    except RuntimeError:
        return None
    return folder / "hybridmoe" / "config.toml"


def add_settings(command: click.Command, others: Mapping[str, click.Command] | None) -> None:
    """Let a command take its options from the environment, too; once for each command.

    others: commands that share the file, this one among them; None: it does not read the file.
    """
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            add_settings(inner, None)
    for parameter in command.params:
        if parameter.envvar is None:
            names = [name for name in _variables(parameter) if name not in _OF_LIBRARY]
            parameter.envvar = names or None
    if others is None or any(parameter.name == "preset_name" for parameter in command.params):
        return

    def read(ctx: click.Context, _parameter: click.Parameter, preset: str | None) -> None:
        if not ctx.resilient_parsing:
            _read_file(ctx, others, preset)

    option = click.Option(
        ["--preset", "preset_name"],
        metavar="NAME",
        is_eager=True,  # before the options that it gives values
        expose_value=False,
        callback=read,
        envvar="HYBRIDMOE_PRESET",
        help="Options of [presets.NAME] in config.toml",
    )
    command.params.insert(0, option)


def origin_of(ctx: click.Context, parameter: click.Parameter) -> str | None:
    """Name the variable, or the file and the key, that a value is from; None: the command line."""
    source = ctx.get_parameter_source(parameter.name or "")
    if source is ParameterSource.ENVIRONMENT:
        names = [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar or ()
        return next((name for name in names if os.environ.get(name)), None)
    if source is ParameterSource.DEFAULT_MAP:
        origin: str | None = ctx.meta.get(_META, {}).get(parameter.name)
        return origin
    return None


@contextmanager
def naming_origin(ctx: click.Context) -> Iterator[None]:
    """Put the variable, or file and key, before an error that is about a value from there.

    One that is about a value of the command line names the option.
    """
    try:
        yield
    except click.BadParameter as error:
        if error.param is not None and (origin := origin_of(ctx, error.param)):
            error.param_hint = origin
        raise
    except ConfigError as error:
        for parameter in ctx.command.params:
            if (origin := origin_of(ctx, parameter)) and _is_about(str(error), parameter, ctx):
                raise ConfigError(f"{origin}: {error}") from None
            name, is_value, rest = str(error).partition("=")
            if is_value and name == parameter.name and (keys := _keys(parameter)):
                raise ConfigError(f"--{keys[-1]} {rest}") from None
        raise


def _is_about(message: str, parameter: click.Parameter, ctx: click.Context) -> bool:
    if _keys(parameter) == _MODEL:
        return parameter.name not in ctx.params  # it was being looked for
    flags = "|".join(map(re.escape, parameter.opts))
    return re.search(rf"(?<![\w-])({parameter.name}=|({flags})(?![\w-]))", message) is not None


def _keys(parameter: click.Parameter) -> tuple[str, ...]:
    """Names of an option in the file: its long flags; MODEL, and chat's -m, are `model`."""
    if parameter.name in _NO_SETTINGS:
        return ()
    if isinstance(parameter, click.Argument):
        return _MODEL if parameter.name == "model" else ()
    if parameter.opts == ["-m"]:
        return _MODEL if parameter.expose_value else ()
    return tuple(flag[2:] for flag in parameter.opts if flag.startswith("--"))


def _variables(parameter: click.Parameter) -> list[str]:
    return ["HYBRIDMOE_" + key.upper().replace("-", "_") for key in _keys(parameter)]


def _read_file(ctx: click.Context, others: Mapping[str, click.Command], preset: str | None) -> None:
    path = settings_file()
    if path is None or not path.is_file():
        if preset is not None:
            raise ConfigError(f"--preset {preset:.80}: no file {path or 'config.toml'}")
        return
    tables = _tables(path, preset)
    known = {key for one in others.values() for parameter in one.params for key in _keys(parameter)}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for place, table in tables:
        for key in table:
            if key.replace("_", "-") not in known:
                raise ConfigError(f"{path}: {place}{key:.80}: no such option")
        for parameter in ctx.command.params:
            if any(os.environ.get(name) for name in _variables(parameter)):
                continue  # also what the library reads
            for key in table:
                if parameter.name and key.replace("_", "-") in _keys(parameter):
                    origins[parameter.name] = f"{path}: {place}{key}"
                    values[parameter.name] = _value(table[key], parameter, origins[parameter.name])
    ctx.default_map = values
    ctx.meta[_META] = origins


def _tables(path: Path, preset: str | None) -> list[tuple[str, Mapping[str, Any]]]:
    """Read the top level, and the preset: each with what goes before its keys in errors."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path}: {error}") from None
    presets = found.pop(_PRESETS, {})
    if not isinstance(presets, dict) or not all(isinstance(p, dict) for p in presets.values()):
        raise ConfigError(f"{path}: {_PRESETS}: expected tables such as [presets.fast]")
    if preset is None:
        return [("", found)]
    if preset not in presets:
        names = ", ".join(presets) or "none"
        raise ConfigError(f"{path}: no preset {preset:.80}; there are: {names}")
    return [("", found), (f"{_PRESETS}.{preset}.", presets[preset])]


def _value(value: Any, parameter: click.Parameter, origin: str) -> Any:
    """Check the type of a value of the file. Errors: ConfigError."""
    is_list = isinstance(parameter, click.Option) and parameter.multiple
    entries = value if is_list and isinstance(value, list) else [value]
    types, words = next(
        (types, words) for kind, types, words in _EXPECTED if isinstance(parameter.type, kind)
    )
    for entry in entries:
        if not isinstance(entry, types) or (isinstance(entry, bool) and types is not bool):
            raise ConfigError(f"{origin}={entry!r:.80}: expected {words}")
    texts = [entry if isinstance(entry, bool) else str(entry) for entry in entries]
    return texts if is_list else texts[0]
