"""Model that a user means: a path, a folder, a name in the models folder, or `last`."""

import difflib
import re
from pathlib import Path

from hybridmoe.env import models_folder
from hybridmoe.errors import ConfigError
from hybridmoe.gguf.cursor import printable
from hybridmoe.library.last_use import last_used
from hybridmoe.library.stored_model import StoredModel, stored_models

__all__ = ["LAST", "find_model", "known_models", "models_named", "stored_model"]

LAST = "last"
_MAX_LISTED = 8
# An address, or OWNER/REPO[:QUANT] as `hybridmoe pull` takes it.
_REMOTE = re.compile(
    r"(?i)[a-z]+://.*|(huggingface|hf)\.co/.*|[\w-][\w.-]*/[\w.-]+(?<!\.gguf)(:.*)?"
)


def known_models() -> list[StoredModel]:
    """List the models in the models folder, by name."""
    folder = models_folder()
    return [] if folder is None else stored_models(folder)


def find_model(text: str) -> Path:
    """Find the file of a model, or the first of its parts.

    Names in the models folder count if no file is called so: the file's without `.gguf` and part
    number, REPO, OWNER/REPO, each with :QUANT, in any case, or their beginning if it is unique.
    Errors: ConfigError with what was meant perhaps, as for a repository or an address; a path that
    does not exist is returned as it is, for the reader of the file to refuse.
    """
    if not text:
        raise ConfigError("the model's name is empty: expected a path, or a name of hybridmoe list")
    path = _expanded(text)
    if path.is_dir():
        return _only_model_in(path)
    if path.exists():
        return path
    if text == LAST:
        if (used := last_used()) is None:
            raise ConfigError(f"{LAST}: no model was used yet")
        return used
    known = known_models()
    found = models_named(text, known)
    if len(found) == 1:
        return found[0].path
    if found:
        raise ConfigError(
            f"{printable(text, 80)}: {len(found)} models are called so: {_list(found)}"
        )
    if _REMOTE.fullmatch(text) and not (path.parent.is_dir() and "://" not in text):
        raise ConfigError(
            f"{printable(text, 200)}: no such file; hybridmoe pull OWNER/REPO:QUANT downloads one"
            " from Hugging Face"
        )
    if "/" in text or text.lower().endswith(".gguf"):
        return path
    raise ConfigError(_unknown(text, known))


def stored_model(text: str) -> Path | None:
    """Return the file that `find_model` finds; None if no file, folder or model is called so."""
    if (text and _expanded(text).exists()) or text == LAST or models_named(text, known_models()):
        return find_model(text)
    return None


def models_named(text: str, models: list[StoredModel]) -> list[StoredModel]:
    """Select the models of this name; else, of names with this beginning."""
    wanted = text.lower().removesuffix(".gguf")
    if not wanted:
        return []
    same = [model for model in models if wanted in model.names]
    return same or [m for m in models if any(name.startswith(wanted) for name in m.names)]


def _only_model_in(folder: Path) -> Path:
    models = stored_models(folder)
    if not models:
        raise ConfigError(f"{printable(str(folder), 200)}: a folder without a GGUF file")
    if len(models) > 1:
        listed = ", ".join(
            printable(str(m.path.relative_to(folder)), 200) for m in models[:_MAX_LISTED]
        )
        raise ConfigError(
            f"{printable(str(folder), 200)}: a folder with {len(models)} models: {listed}"
            + (" and more" if len(models) > _MAX_LISTED else "")
        )
    return models[0].path


def _unknown(text: str, known: list[StoredModel]) -> str:
    said = f"{printable(text, 80)}: no such file in {printable(str(Path.cwd()), 200)}, and no model"
    folder = models_folder()
    said += (
        f" of that name in {printable(str(folder), 200)}" if folder is not None else " of that name"
    )
    names = {name: model for model in known for name in model.names}
    close = difflib.get_close_matches(text.lower(), names, n=3, cutoff=0.6)
    near = list(dict.fromkeys(names[name].name for name in close))
    near += [m.name for m in known if text.lower() in m.name.lower() and m.name not in near]
    if near:
        return f"{said}; did you mean {' or '.join(printable(name, 120) for name in near[:3])}?"
    return f"{said}; it has {_list(known)}" if known else f"{said}; hybridmoe pull downloads one"


def _list(models: list[StoredModel]) -> str:
    names = [printable(model.name, 120) for model in models[:_MAX_LISTED]]
    return ", ".join(names) + (" and more" if len(models) > _MAX_LISTED else "")


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~ of an unknown user, or no home folder
        return Path(text)
