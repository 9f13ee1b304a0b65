"""Type of MODEL on the command line: a path or a name, which Tab completes."""

import os
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

__all__ = ["ModelPath"]


class ModelPath(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5
    """Path of a model's file, or of the first part of a split one."""

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Find the file. Errors: ConfigError."""
        if isinstance(value, Path):
            return value
        from hybridmoe.library.find import find_model

        return find_model(os.fsdecode(value))

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete names of models, and files as the shell does."""
        from hybridmoe.library.find import known_models

        wanted = incomplete.lower()
        names = [m.name for m in known_models() if m.name.lower().startswith(wanted)]
        return [*map(CompletionItem, names), CompletionItem(incomplete, type="file")]
