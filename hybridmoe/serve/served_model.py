"""Loaded model as requests use it: with its grammar compiler, and leases that keep it loaded."""

import zlib
from collections.abc import Callable
from functools import cached_property

from hybridmoe.llm.llm import LLM
from hybridmoe.text.grammar_compiler import GrammarCompiler

__all__ = ["Lease", "ServedModel"]


class ServedModel:
    """A loaded model, and what depends on its vocabulary and settings."""

    def __init__(self, name: str, llm: LLM) -> None:
        """name: as /v1/models lists it."""
        self.name = name
        self.llm = llm

    @cached_property
    def grammar(self) -> GrammarCompiler:
        """Compiler of response formats and tool calls for this model's vocabulary."""
        return GrammarCompiler(self.llm.tokenizer)

    @cached_property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: changes with the model's file and settings."""
        llm = self.llm
        about = f"{llm.file.path.name} {llm.config} {llm.context_tokens}"
        digest = zlib.crc32(about.encode("utf-8", "surrogateescape"))
        return f"fp_{digest:08x}"


class Lease:
    """One request's use of a model, which is not unloaded before `release`."""

    def __init__(self, model: ServedModel, on_release: Callable[[], None]) -> None:
        self.model = model
        self._on_release: Callable[[], None] | None = on_release

    @property
    def llm(self) -> LLM:
        return self.model.llm

    def release(self) -> None:
        """End the use. Any number of times."""
        on_release, self._on_release = self._on_release, None
        if on_release is not None:
            on_release()
