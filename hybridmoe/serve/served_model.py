"""Loaded model as requests use it: with its grammar compiler, and leases that keep it loaded."""

import zlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

from hybridmoe.llm.llm import LLM
from hybridmoe.serve.model_facts import file_facts
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
        return GrammarCompiler(self.llm.tokenizer, self.llm.tool_syntax)

    @cached_property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: changes with the model's file and settings."""
        llm = self.llm
        about = f"{llm.file.path.name} {llm.config} {llm.context_tokens}"
        digest = zlib.crc32(about.encode("utf-8", "surrogateescape"))
        return f"fp_{digest:08x}"

    def card(self) -> dict[str, Any]:
        """Describe the model for /v1/models."""
        llm, config = self.llm, self.llm.config
        return {
            "id": self.name,
            "object": "model",
            "owned_by": "hybridmoe",
            "max_model_len": llm.context_tokens,
            "meta": {
                "name": config.name,
                "n_ctx": llm.context_tokens,
                "n_ctx_train": config.context_tokens,
                "n_vocab": config.vocab_size,
                "n_layer": config.num_layers,
                "n_dense_layers": config.num_dense_layers,
                "n_experts": config.num_experts,
                "n_experts_used": config.top_k,
                **file_facts(llm),
                "plan": llm.plan.facts(),
            },
        }

    def close(self) -> None:
        """Close the model. Errors: ConfigError where its profile or trace cannot be written."""
        if "grammar" in self.__dict__:
            self.grammar.process.close()
        self.llm.close()


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
