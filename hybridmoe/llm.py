"""A loaded model as Python sees it: text in, text out.

Joins the engine (token ids) with the tokenizer and the chat template. Not thread-safe: one
generation at a time; starting another one ends a stream that was not read to its end.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, overload

import numpy as np
from numpy.typing import NDArray

from hybridmoe.answer import Answer, Result, ResultStream
from hybridmoe.config import ModelConfig
from hybridmoe.demo import demo_path
from hybridmoe.engine.generator import Generation, Generator
from hybridmoe.engine.sampler import SamplingParams
from hybridmoe.env import MAX_THREADS
from hybridmoe.errors import ConfigError, GGUFError
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.kernels import ops
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.weights import read_ahead
from hybridmoe.text.chat_template import ChatTemplate
from hybridmoe.text.prompt import encode_chat
from hybridmoe.text.tokenizer import Tokenizer

__all__ = ["LLM", "Progress", "load"]

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]


class Progress(NamedTuple):
    """How far a load or a prompt has come."""

    phase: Literal["load", "prompt"]
    done: int
    total: int
    unit: Literal["bytes", "tokens"]


ProgressCallback = Callable[[Progress], None]


class LLM:
    """A model ready to answer; made by `load`."""

    def __init__(
        self, file: GGUFFile, config: ModelConfig, tokenizer: Tokenizer, context_tokens: int
    ) -> None:
        self.file = file
        self.config = config
        self.tokenizer = tokenizer
        self._templates: dict[bool, ChatTemplate] = {}  # by whether tools are declared
        self._defaults = _sampling_defaults(file.metadata)
        self._generator = Generator(Decoder(file, config), tokenizer.eos_ids, context_tokens)
        self._active: ResultStream | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def context_tokens(self) -> int:
        """Prompt and answer together may have this many tokens."""
        return self._generator.context_tokens

    @overload
    def chat(
        self,
        messages: Messages,
        *,
        tools: Tools | None = None,
        stream: Literal[False] = False,
        progress: ProgressCallback | None = None,
        **sampling: Any,
    ) -> Result: ...

    @overload
    def chat(
        self,
        messages: Messages,
        *,
        tools: Tools | None = None,
        stream: Literal[True],
        progress: ProgressCallback | None = None,
        **sampling: Any,
    ) -> ResultStream: ...

    def chat(
        self,
        messages: Messages,
        *,
        tools: Tools | None = None,
        stream: bool = False,
        progress: ProgressCallback | None = None,
        **sampling: Any,
    ) -> Result | ResultStream:
        """Answer a conversation, through the file's chat template.

        messages: mappings with "role" and "content", as in OpenAI's API; tools: its function
        declarations. `sampling` sets fields of `SamplingParams`; what it leaves out comes from
        the file, or else from that class. With stream=True, an iterator of text pieces.
        Errors: ConfigError for unusable messages or parameters; TemplateError.
        """
        ids = encode_chat(self._template(bool(tools)), self.tokenizer, messages, tools)
        return self._answer(ids, stream, progress, sampling, may_call=True)

    @overload
    def generate(
        self,
        prompt: str,
        *,
        stream: Literal[False] = False,
        progress: ProgressCallback | None = None,
        **sampling: Any,
    ) -> Result: ...

    @overload
    def generate(
        self,
        prompt: str,
        *,
        stream: Literal[True],
        progress: ProgressCallback | None = None,
        **sampling: Any,
    ) -> ResultStream: ...

    def generate(
        self,
        prompt: str,
        *,
        stream: bool = False,
        progress: ProgressCallback | None = None,
        **sampling: Any,
    ) -> Result | ResultStream:
        """Continue raw text, in which special tokens' names stand for those tokens.

        Parameters and errors as for `chat`.
        """
        ids = self.tokenizer.encode(prompt, add_special=True, parse_special=True)
        return self._answer(ids, stream, progress, sampling, may_call=False)

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """What the model expects after each token: (tokens, vocabulary). Raises ConfigError."""
        return self._generator.logits(token_ids)

    def close(self) -> None:
        """Release the file's mapping and the vocabulary."""
        if self._active is not None:
            self._active.close()
        self.tokenizer.close()
        self.file.close()

    def _template(self, has_tools: bool) -> ChatTemplate:
        if has_tools not in self._templates:
            self._templates[has_tools] = ChatTemplate.from_metadata(
                self.file.metadata, self.tokenizer, has_tools=has_tools
            )
        return self._templates[has_tools]

    def _answer(
        self,
        ids: list[int],
        stream: bool,
        progress: ProgressCallback | None,
        sampling: Mapping[str, Any],
        *,
        may_call: bool,
    ) -> Result | ResultStream:
        params = self._params(sampling)
        if self._active is not None:
            self._active.close()
        record = Generation()
        report = _prompt_report(progress)
        token_ids = self._generator.run(ids, params, record, report)
        answer = Answer(token_ids, params, self.tokenizer, may_call=may_call)
        self._active = ResultStream(answer.pieces(), lambda: answer.result(record))
        if stream:
            return self._active
        for _ in self._active:
            pass
        return self._active.result

    def _params(self, sampling: Mapping[str, Any]) -> SamplingParams:
        known = SamplingParams.names()
        unknown = next((name for name in sampling if name not in known), None)
        if unknown is not None:
            raise ConfigError(f"unknown parameter {unknown!r}; known: {', '.join(known)}")
        given = {name: value for name, value in sampling.items() if value is not None}
        return SamplingParams(**{**self._defaults, **given})


def load(
    path: str | Path | None = None,
    *,
    num_threads: int | None = None,
    context_tokens: int | None = None,
    yarn_beta_fast: float | None = None,
    yarn_beta_slow: float | None = None,
    progress: ProgressCallback | None = None,
) -> LLM:
    """Open a GGUF file of a deepseek2 model (of a split one, its first part).

    path: None = the embedded model. num_threads: None = HYBRIDMOE_THREADS, or every physical
    core. context_tokens: None = as many as the model was made for. The YaRN betas override the
    file's. progress: called while the weights are read into memory.
    Errors: GGUFError, UnsupportedModelError, ConfigError; one line that names the file.
    """
    if num_threads is not None:
        if not 1 <= num_threads <= MAX_THREADS:
            raise ConfigError(f"num_threads={num_threads}: expected 1 to {MAX_THREADS}")
        ops.set_num_threads(num_threads)
    file = GGUFFile.open(demo_path() if path is None else path)
    try:
        config = _config(file).with_yarn_betas(yarn_beta_fast, yarn_beta_slow)
        context = config.context_tokens if context_tokens is None else context_tokens
        if not 1 <= context <= config.context_tokens:
            raise ConfigError(
                f"context_tokens={context}: expected 1 to {config.context_tokens},"
                " the model's own context"
            )
        tokenizer = Tokenizer(file.path, file.metadata)
        try:
            if tokenizer.num_tokens != config.vocab_size:
                raise GGUFError(
                    f"{file.path.name}: tokenizer.ggml.tokens has {tokenizer.num_tokens} entries,"
                    f" vocab_size is {config.vocab_size}"
                )
            llm = LLM(file, config, tokenizer, context)
        except BaseException:
            tokenizer.close()
            raise
    except BaseException:
        file.close()
        raise
    if progress is not None:
        read_ahead(file, lambda done, total: progress(Progress("load", done, total, "bytes")))
    return llm


def _config(file: GGUFFile) -> ModelConfig:
    try:
        return ModelConfig.from_metadata(file.metadata)
    except GGUFError as error:
        raise type(error)(f"{file.path.name}: {error}") from None


# GGUF keys that carry a model's recommended sampling (llama.cpp, since late 2025).
_SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


def _sampling_defaults(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {name: metadata[key] for name, key in _SAMPLING_KEYS.items() if key in metadata}


def _prompt_report(progress: ProgressCallback | None) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(Progress("prompt", done, total, "tokens"))
