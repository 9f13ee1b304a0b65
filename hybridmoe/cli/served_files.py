"""Model files of a server: names on the command line to sources that load them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import hybridmoe
from hybridmoe.cli.loading import placement_lines
from hybridmoe.cli.progress_bar import ProgressBar
from hybridmoe.cli.server_log import notify_supervisor
from hybridmoe.errors import ConfigError, TemplateError
from hybridmoe.library.find import find_model
from hybridmoe.library.last_use import note_use
from hybridmoe.library.stored_model import model_name
from hybridmoe.placement.options import LoadOptions
from hybridmoe.text.thinking_options import ThinkingOptions

if TYPE_CHECKING:
    from hybridmoe import LLM, Progress
    from hybridmoe.llm.coexistence import Coexistence
    from hybridmoe.llm.progress import ProgressCallback

__all__ = ["ServedFiles", "named_files"]

_PROFILE_OFF = Path("off")


def named_files(
    model: Path | None, names: Sequence[str], pairs: Sequence[str]
) -> dict[str, Path | None]:
    """Name the files of a server: the default one first; None = the embedded model.

    names: of `model`, the first of which counts. pairs: NAME=FILE. Errors: ConfigError.
    """
    files: dict[str, Path | None] = {}
    if model is not None or names or not pairs:
        files[names[0] if names else _model_name(model)] = model
    taken = set(names)
    for pair in pairs:
        name, is_pair, file = pair.partition("=")
        if not is_pair or not name.strip() or not file:
            raise ConfigError(f"--model {pair!r:.200}: expected NAME=FILE")
        if name in files or name in taken:
            raise ConfigError(f"--model {pair!r:.200}: the name {name} is taken")
        files[name] = find_model(file)
    return files


class ServedFiles:
    """Files that one server loads, with the same options, and what it tells about it."""

    def __init__(
        self,
        files: Mapping[str, Path | None],
        options: LoadOptions,
        max_loaded: int | None,
        say: Callable[[str], None],
        thinking: ThinkingOptions | None = None,
    ) -> None:
        """thinking: of requests that ask for none; a model alone must know it."""
        self._files = dict(files)
        self._options = options
        self._max_loaded = len(files) if max_loaded is None else max_loaded
        self.url = ""  # of the server, once it listens
        self._say = say
        self._thinking = thinking
        self._coexistence: Coexistence | None = None
        self._num_loads = dict.fromkeys(files, 0)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all models, the default one first."""
        return tuple(self._files)

    def load(self, name: str, progress: "ProgressCallback") -> "LLM":
        """Load a model. progress: may raise. Errors: those of `hybridmoe.load`."""
        if self._coexistence is None and self._max_loaded > 1:
            from hybridmoe.llm.coexistence import Coexistence

            # Before memory is taken.
            self._coexistence = Coexistence(self._files, self._options)
        self._num_loads[name] += 1
        with ProgressBar(say=self._say) as bar:

            def on_progress(step: "Progress") -> None:
                progress(step)
                bar(step)

            file, options = self._files[name], self._options_of(name)
            llm = hybridmoe.load(file, options, progress=on_progress)
        self._check_thinking(name, llm)
        if file is not None:
            note_use(file)
        return llm

    def announce(self, name: str, llm: "LLM") -> None:
        """Tell how a model was placed, and that it is ready."""
        for line in placement_lines(llm):
            self._say(line)
        where = f" at {self.url}" if self.url else ""
        self._say(f"ready: {name}{where}; {llm.engine.kv_plan}")
        notify_supervisor(READY="1", STATUS=f"serving {', '.join(self._files)}")

    def fit(self, names: Sequence[str]) -> bool:
        """True if these models may be loaded at the same time."""
        if len(names) < 2:
            return True
        if len(names) > self._max_loaded:
            return False
        return self._coexistence is not None and self._coexistence.fit(names)

    def _check_thinking(self, name: str, llm: "LLM") -> None:
        if self._thinking is None or self._thinking == ThinkingOptions(name=self._thinking.name):
            return  # a model that only continues text has no template to ask
        try:
            llm.check_thinking(self._thinking)
        except (ConfigError, TemplateError) as error:
            if len(self._files) == 1:
                llm.close()
                raise
            self._say(f"{name}: {error}: --think has no effect on it")

    def _options_of(self, name: str) -> LoadOptions:
        """Options with files of this model's own, and a new trace for each load."""
        options = self._options
        profile, trace = options.expert_profile, options.trace
        own = (name,) if len(self._files) > 1 else ()
        number = self._num_loads[name]
        if profile is not None and profile != _PROFILE_OFF:
            profile = _with_parts(profile, *own)
        if trace is not None:
            trace = _with_parts(trace, *own, *([str(number)] if number > 1 else ()))
        return replace(options, expert_profile=profile, trace=trace)


def _with_parts(path: Path, *parts: str) -> Path:
    """Put parts before a file's suffix: `run.trace` to `run.NAME.2.trace`."""
    safe = [re.sub(r"[^\w.-]", "_", part) for part in parts]
    return path.with_name(".".join([path.stem, *safe]) + path.suffix)


def _model_name(model: Path | None) -> str:
    return "hybridmoe-demo" if model is None else model_name(model)
