"""Message and model that a command line of `chat` means, and the text files that go with it."""

import sys
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import click

from hybridmoe.cli.model_path import ModelPath
from hybridmoe.errors import ConfigError

__all__ = ["model_and_message", "read_text", "with_texts"]

_MAX_BYTES = 1 << 26


def model_and_message(
    words: Sequence[str], flagged: Path | None, ctx: click.Context
) -> tuple[Path | None, str]:
    """Split the words of `chat [MODEL] [MESSAGE]`; flagged: the MODEL of `-m`.

    A first word that is no model's name is the message if it holds a space or ends as a question.
    Errors: ConfigError for a name that no model has; UsageError for two models, or only blanks.
    """
    if words and not "".join(words).strip():
        raise click.UsageError("MESSAGE is empty", ctx)
    if flagged is not None or not words:
        return flagged, " ".join(words)
    from hybridmoe.library.find import stored_model

    first, rest = words[0], words[1:]
    is_file = first.lower().endswith(".gguf")
    is_text = any(c.isspace() for c in first) or first.endswith(("?", "!"))
    if is_text and not is_file and stored_model(first) is None:
        return None, " ".join(words)
    if rest and rest[0].lower().endswith(".gguf"):
        raise click.UsageError(f"two models: {first:.40} and {rest[0]:.40}", ctx)
    try:
        return ModelPath().convert(first, None, ctx), " ".join(rest)
    except ConfigError as error:
        if rest or is_file or stored_model(first) is not None:
            raise
        raise ConfigError(f"{error}; as a message: hybridmoe chat -p {first:.40}") from None


def read_text(file: BinaryIO, name: str) -> str:
    """Read a text. Errors: ConfigError if it is too long, or no text.

    Of UTF-8, or UTF-16 that says so; a line on standard error tells of bytes that are neither.
    """
    data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{name}: larger than {_MAX_BYTES >> 20} MiB")
    encoding = "utf-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig"
    text = data.decode(encoding, "replace")
    if "\0" in text:
        raise ConfigError(f"{name}: not a text file")
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        say = "not UTF-8 throughout; the model sees \ufffd for other bytes"
        print(f"hybridmoe: {name}: {say}", file=sys.stderr, flush=True)
    return text.rstrip("\r\n")


def with_texts(message: str, texts: Sequence[tuple[str, str]]) -> str:
    """Put texts, each with a name, before a message; one text alone is the message itself."""
    if not message and len(texts) == 1:
        return texts[0][1]
    return "\n\n".join([*(f"{name}:\n```\n{text}\n```" for name, text in texts), message]).rstrip()
