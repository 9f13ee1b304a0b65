"""Open a model for a command: a progress bar, placement notes, an orderly end."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hybridmoe
from hybridmoe.cli.progress_bar import ProgressBar
from hybridmoe.cli.sampling_options import check_sensible
from hybridmoe.cli.signals import uninterrupted
from hybridmoe.library.last_use import note_use
from hybridmoe.placement.options import LoadOptions

if TYPE_CHECKING:
    from hybridmoe import LLM

__all__ = ["check_params", "open_model", "placement_lines"]


def check_params(params: dict[str, Any]) -> None:
    """Raise ConfigError for a sampling parameter outside its range."""
    check_sensible(params)
    hybridmoe.SamplingParams(**params)


@contextmanager
def open_model(path: Path | None, options: LoadOptions) -> "Iterator[LLM]":
    """Open a model with a progress bar; close it at the end, whatever signals arrive."""
    with ProgressBar(say=_say) as bar:
        llm = hybridmoe.load(path, options, progress=bar)
    if path is not None:
        note_use(path)
    try:
        for line in placement_lines(llm):
            _say(line)
        yield llm
    finally:
        with uninterrupted():
            llm.close()


def _say(line: str) -> None:
    print(f"hybridmoe: {line}", file=sys.stderr, flush=True)


def placement_lines(llm: "LLM") -> list[str]:
    """Describe the placement of a model, with a warning if it will be slow."""
    if llm.expert_plan is None:
        return [*llm.notes]
    return [*llm.notes, f"experts are read by {llm.expert_reads}"]
