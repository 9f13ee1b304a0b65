"""MODEL of `plan` and `pull`: a file, a stored model, or a published one by name."""

from pathlib import Path

from hybridmoe.errors import ConfigError
from hybridmoe.gguf.cursor import printable
from hybridmoe.library.find import find_model, known_models, models_named
from hybridmoe.planning.releases import (
    RELEASES,
    Release,
    release_named,
    releases_beginning,
    releases_like,
)

__all__ = ["model_or_release"]


def model_or_release(text: str) -> Path | Release:
    """Find what is called so: first files, then stored models, then published ones.

    A published model's own name comes before the beginning of a stored one's.
    Errors: ConfigError.
    """
    release = release_named(text)
    is_stored = any(text.lower() in model.names for model in models_named(text, known_models()))
    if release is not None and not is_stored and not Path(text).exists():
        return release
    try:
        return find_model(text)
    except ConfigError as error:
        beginning = releases_beginning(text)
        if len(beginning) == 1:
            return beginning[0]
        close = beginning or releases_like(text)
        if close and not models_named(text, known_models()):
            names = " or ".join(each.name for each in close)
            raise ConfigError(f"{printable(text, 80)}: do you mean {names}?") from None
        names = ", ".join(each.name for each in RELEASES)
        raise ConfigError(f"{error}; published models that are known: {names}") from None
