"""Table of the models in the models folder, and removal of some."""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from hybridmoe.cli.tables import Section, print_sections
from hybridmoe.env import models_folder
from hybridmoe.errors import ConfigError
from hybridmoe.gguf.cursor import printable
from hybridmoe.library.find import known_models, models_named
from hybridmoe.library.last_use import times_of_use
from hybridmoe.library.removal import remove
from hybridmoe.library.stored_model import StoredModel
from hybridmoe.units import format_bytes

__all__ = ["list_models", "remove_models"]


def list_models(*, as_json: bool) -> None:
    """Print the models with quantization, size, missing parts and last use."""
    folder, models, times = models_folder(), known_models(), times_of_use()
    if as_json:
        entries = [_as_json(model, times.get(model.path.absolute())) for model in models]
        click.echo(json.dumps({"folder": folder and str(folder), "models": entries}))
    elif models:
        rows = [_row(model, times.get(model.path.absolute())) for model in models]
        print_sections([Section("", ("name", "quant", "size", "files", "last used"), rows)])
    else:
        where = "no home folder" if folder is None else printable(str(folder), 400)
        click.echo(f"no models in {where}")


def remove_models(names: Sequence[str], *, must_ask: bool) -> None:
    """Remove the models of these names. Errors: ConfigError before any is removed; OSError."""
    known = known_models()
    for model in [_one(name, known) for name in names]:
        what = f"{printable(model.name, 120)}, {format_bytes(model.num_bytes)}"
        if must_ask:
            if not sys.stdin.isatty():
                raise ConfigError(f"{what}: --yes removes it without asking")
            if not click.confirm(f"Remove {what}?"):
                continue
        remove(model)
        click.echo(f"removed {what}")


def _one(name: str, known: list[StoredModel]) -> StoredModel:
    """Find the only model with a name; the beginning of one is not enough to remove it."""
    found = [model for model in models_named(name, known) if name.lower() in model.names]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(printable(model.name, 120) for model in found)
        raise ConfigError(f"{printable(name, 80)}: {len(found)} models are called so: {names}")
    close = models_named(name, known)
    hint = f"; did you mean {printable(close[0].name, 120)}?" if close else "; see hybridmoe list"
    raise ConfigError(f"{printable(name, 80)}: no such model in {_folder()}{hint}")


def _folder() -> str:
    return printable(str(models_folder()), 400)


def _row(model: StoredModel, used: float | None) -> tuple[str, ...]:
    condition = model.condition()
    return (
        printable(model.name, 120),
        condition.quant,
        format_bytes(model.num_bytes),
        _files(model, condition.missing_bytes, condition.problem),
        "never" if used is None else _ago(time.time() - used),
    )


def _files(model: StoredModel, missing_bytes: int, problem: str | None) -> str:
    count = f"{len(model.files)} of {model.num_parts} parts" if model.num_parts > 1 else ""
    if problem is not None:
        return f"damaged: {problem}"
    if model.missing_parts or missing_bytes:
        size = f"{format_bytes(missing_bytes)} missing" if missing_bytes else ""
        return f"incomplete: {', '.join(filter(None, (count, size)))}"
    return f"complete{f', {count}' if count else ''}"


def _ago(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now"


def _as_json(model: StoredModel, used: float | None) -> dict[str, Any]:
    condition = model.condition()
    return {
        "name": model.name,
        "repo": model.repo or None,
        "path": str(model.path),
        "quant": condition.quant or None,
        "num_bytes": model.num_bytes,
        "num_parts": model.num_parts,
        "missing_parts": list(model.missing_parts),
        "missing_bytes": condition.missing_bytes,
        "problem": condition.problem,
        "last_used": used,
    }
