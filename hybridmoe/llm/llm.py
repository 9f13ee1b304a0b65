"""Python API of a loaded model: text in, text out.

Joins the engine (token ids) with the tokenizer and the chat template. `chat` and `generate` serve
one caller at a time: starting another response ends a stream that was not read to its end. To serve
many callers, use `engine`, which is thread-safe, as are the tokenizer and `encode_chat`.
"""

import functools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray

from hybridmoe.config import ModelConfig
from hybridmoe.engine.constraint import Constraint
from hybridmoe.engine.dry import SequenceBreakers
from hybridmoe.engine.engine import Engine
from hybridmoe.engine.request import Request
from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.errors import ConfigError
from hybridmoe.experts.backend import ExpertBackend
from hybridmoe.experts.stats import ExpertStats
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.llm.fingerprints import model_fingerprint
from hybridmoe.llm.progress import ProgressCallback
from hybridmoe.llm.result import Result, ResultStream
from hybridmoe.llm.run import Run
from hybridmoe.llm.sampling_defaults import sampling_defaults
from hybridmoe.placement.kernel_checks import KernelCheck
from hybridmoe.placement.residency import Residency
from hybridmoe.planning.disk_cache_plan import DiskCachePlan
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.rates import Rates
from hybridmoe.text.chat_encoding import ChatPrompt, encode_prompt
from hybridmoe.text.chat_template import ChatTemplate
from hybridmoe.text.grammar_compiler import GrammarCompiler
from hybridmoe.text.lazy_tool_calls import forbid_tool_calls
from hybridmoe.text.output_format import ToolCallFormat
from hybridmoe.text.prompt_limit import PromptLimit
from hybridmoe.text.response import Response
from hybridmoe.text.response_parser import ResponseParser, numbered_call_id
from hybridmoe.text.sequence_breakers import BreakerFinder
from hybridmoe.text.thinking_budget import InnerConstraint, ThinkingBudget
from hybridmoe.text.thinking_options import PromptOptions, ThinkingArgument, ThinkingOptions
from hybridmoe.text.tokenizer import Tokenizer
from hybridmoe.text.tool_syntax import ToolSyntax, choose_syntax

__all__ = ["LLM"]

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]


class LLM:
    """Loaded model with its engine; made by `hybridmoe.load`."""

    def __init__(
        self,
        file: GGUFFile,
        config: ModelConfig,
        tokenizer: Tokenizer,
        engine: Engine,
        residency: Residency,
        resources: ExitStack,
    ) -> None:
        """resources: closes all of the others; taken over, and closed with this."""
        self.file = file
        self.config = config
        self.tokenizer = tokenizer
        self.engine = engine
        self._residency = residency
        self._templates: dict[bool, ChatTemplate] = {}  # by whether tools are declared
        self._defaults = sampling_defaults(file.metadata)
        self._resources = resources.pop_all()
        self._breakers = BreakerFinder(tokenizer)
        self._active: ResultStream | None = None
        self._last: Run | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def context_tokens(self) -> int:
        """Maximum tokens of prompt and response together."""
        return self.engine.config.context_tokens

    @property
    def can_chat(self) -> bool:
        """True with a chat template: the file's, or Kimi K2's for its tokens.

        Errors: TemplateError if the file's is not text.
        """
        return ChatTemplate.is_known(self.file.metadata, self.tokenizer)

    @functools.cached_property
    def tool_syntax(self) -> ToolSyntax | None:
        """Syntax of this model's tool calls; None if its vocabulary has no tokens for them."""
        template = self.file.metadata.get("tokenizer.chat_template", "")
        return choose_syntax(self.tokenizer, str(template))

    @property
    def plan(self) -> Plan:
        """Memory plan that this model was placed by; `plan.facts()` is its JSON."""
        return self._residency.plan

    @property
    def expert_plan(self) -> DiskCachePlan | None:
        """Plan of the RAM cache of experts; None where all of them are in the memory map."""
        return self.plan.disk_cache

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines on the file and the memory plan, and warnings, for people."""
        return (*self.tokenizer.notes, *self._residency.notes)

    @property
    def kernel_checks(self) -> Sequence[KernelCheck]:
        """Comparisons of the GPU's kernels with the CPU's at load; none without a GPU."""
        checks = self._residency.checks
        return () if checks is None else checks.checks

    @property
    def gpu_rates(self) -> Sequence[Rates]:
        """Rates with each GPU, measured at load; none without a GPU that streams experts."""
        calibration = self._residency.calibration
        return () if calibration is None else calibration.rates

    @property
    def expert_reads(self) -> str | None:
        """Description of the reads of experts from the file; None where none are read."""
        cache = self._residency.disk_cache
        return None if cache is None else cache.read_backend

    @property
    def experts(self) -> ExpertBackend:
        """Backend of the routed experts, for benchmarks and diagnostics."""
        return self._residency.experts

    def expert_stats(self) -> ExpertStats | None:
        """Statistics of the expert cache; None without one."""
        return self.engine.stats().experts

    @overload
    def chat(
        self,
        messages: Messages,
        *,
        tools: Tools | None = None,
        thinking: ThinkingArgument = None,
        continue_final_message: bool | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
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
        thinking: ThinkingArgument = None,
        continue_final_message: bool | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        stream: Literal[True],
        progress: ProgressCallback | None = None,
        **sampling: Any,
    ) -> ResultStream: ...

    def chat(
        self,
        messages: Messages,
        *,
        tools: Tools | None = None,
        thinking: ThinkingArgument = None,
        continue_final_message: bool | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        stream: bool = False,
        progress: ProgressCallback | None = None,
        **sampling: Any,
    ) -> Result | ResultStream:
        """Generate the next message of a conversation, through the file's chat template.

        messages: mappings with "role" and "content", as in OpenAI's API.
        tools: function declarations in OpenAI's format; the model can call no others.
        thinking: True, False, a level ("low", "high", ...), or {"type", "budget_tokens"} as in
        Anthropic's API; by default as the template does. template_kwargs: its further variables.
        continue_final_message: continue an assistant's last message; by default if it has text and
        no tool calls. The result holds the continuation alone.
        stream: return an iterator of text pieces; its `pieces` yields reasoning too.
        sampling: fields of `SamplingParams`; defaults come from the file, else from the class.
        Errors: ConfigError for unusable messages or parameters; TemplateError.
        """
        params = self.sampling_params(sampling)
        options = PromptOptions(
            thinking=ThinkingOptions.of_argument(thinking),
            variables=template_kwargs or {},
            continues_final=continue_final_message,
        )
        prompt = self.chat_prompt(messages, tools, options=options)
        num_calls = sum(len(message.get("tool_calls") or ()) for message in messages)
        constraint: InnerConstraint | None = None
        if tools:
            constraint = self._grammar.compile_lazy_calls(ToolCallFormat(tools, "auto", num_calls))
        else:
            params = replace(
                params, logit_bias={**params.logit_bias, **forbid_tool_calls(self.tool_syntax)}
            )
        is_thinking = prompt.thinking == "open"
        parser = ResponseParser(
            self.tokenizer,
            syntax=self.tool_syntax,
            stop=params.stop,
            may_call=bool(tools),
            tools=tools or (),
            may_think=True,
            is_thinking=is_thinking,
            make_call_id=lambda name, index: numbered_call_id(name, num_calls + index),
        )
        constraint = ThinkingBudget.around(
            constraint,
            self.tokenizer,
            options.thinking.budget_tokens,
            is_thinking=is_thinking,
            leaving_ids=forbid_tool_calls(self.tool_syntax),
        )
        request = self._request(prompt.ids, params, constraint)
        return self._generate(request, Response(parser), stream, progress)

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
        """Continue raw text, without a chat template. Special tokens are found in the text.

        Parameters and errors: those of `chat`.
        """
        limit = self.tokenizer.prompt_limit(self.context_tokens)
        ids = self.tokenizer.encode(prompt, add_special=True, parse_special=True, limit=limit)
        params = self.sampling_params(sampling)
        response = Response(ResponseParser(self.tokenizer, stop=params.stop))
        return self._generate(self._request(ids, params), response, stream, progress)

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Compute the logits after each token: (tokens, vocabulary). Raises ConfigError."""
        return self.engine.logits(token_ids)

    def encode_chat(
        self, messages: Messages, tools: Tools | None = None, limit: PromptLimit | None = None
    ) -> list[int]:
        """Encode the prompt for a conversation's next message.

        limit: by default four times the context, so that an error can tell the prompt's length.
        Errors: ConfigError, TemplateError; those of the limit.
        """
        return self.chat_prompt(messages, tools, limit).ids

    def chat_prompt(
        self,
        messages: Messages,
        tools: Tools | None = None,
        limit: PromptLimit | None = None,
        options: PromptOptions | None = None,
    ) -> ChatPrompt:
        """Encode the prompt as `encode_chat`, with options. Errors: those of it, ConfigError."""
        limit = limit or self.tokenizer.prompt_limit(self.context_tokens)
        template = self._template(bool(tools))
        return encode_prompt(template, self.tokenizer, messages, tools, limit, options)

    def check_thinking(self, thinking: ThinkingArgument) -> None:
        """Raise ConfigError if the model's chat template does not know such a switch."""
        options = PromptOptions(thinking=ThinkingOptions.of_argument(thinking))
        self._template(False).switches.choose(options)

    @property
    def sampling_defaults(self) -> Mapping[str, Any]:
        """Sampling parameters that the file sets."""
        return self._defaults

    def sampling_params(self, given: Mapping[str, Any]) -> SamplingParams:
        """Make parameters by name; defaults come from the file, else from the class.

        Errors: ConfigError, also for an unknown name.
        """
        known = SamplingParams.names()
        if unknown := [name for name in given if name not in known]:
            raise ConfigError(f"unknown parameter {unknown[0]!r}; known: {', '.join(known)}")
        given = {name: value for name, value in given.items() if value is not None}
        return SamplingParams(**{**self._defaults, **given})

    def sequence_breakers(self, params: SamplingParams) -> SequenceBreakers:
        """Find the tokens of `dry_sequence_breakers`; takes 0.3 s for a new list. Thread-safe."""
        return self._breakers.find(params.dry_sequence_breakers) if params.dry_multiplier else {}

    def save_sequence(self, path: Path) -> int:
        """Write the KV cache of the last prompt and response to a file. Returns its tokens.

        Without a response, writes no file and returns 0. Errors: OSError.
        """
        if self._last is None:
            return 0
        return self.engine.save(path, self._last.token_ids, self._fingerprint)

    def restore_sequence(self, path: Path) -> int:
        """Restore a KV cache from a file: its tokens need no prefill. Returns their number.

        Errors: ConfigError for a damaged file or another model's; OSError.
        """
        return len(self.engine.restore(path, self._fingerprint))

    @functools.cached_property
    def _fingerprint(self) -> str:
        return model_fingerprint(self.file, self.config)

    def close(self) -> None:
        """End the engine; release the file's mapping and the vocabulary.

        Errors: ConfigError where expert profile or trace cannot be written; all is released even
        so.
        """
        if not self.engine.is_forked:  # else all of it is the parent's, its files too
            self._resources.close()

    def _template(self, has_tools: bool) -> ChatTemplate:
        if has_tools not in self._templates:
            self._templates[has_tools] = ChatTemplate.from_metadata(
                self.file.metadata, self.tokenizer, has_tools=has_tools
            )
        return self._templates[has_tools]

    def _request(
        self, ids: Sequence[int], params: SamplingParams, constraint: Constraint | None = None
    ) -> Request:
        breakers = self.sequence_breakers(params)
        return Request(prompt_ids=ids, params=params, constraint=constraint, dry_breakers=breakers)

    @functools.cached_property
    def _grammar(self) -> GrammarCompiler:
        return GrammarCompiler(self.tokenizer, self.tool_syntax)

    def _generate(
        self, request: Request, response: Response, stream: bool, progress: ProgressCallback | None
    ) -> Result | ResultStream:
        if self._active is not None:
            self._active.close()
        self._last = run = Run(self.engine, request, response, progress)
        self._active = ResultStream(run.pieces(), run.result, run.cancel)
        if stream:
            return self._active
        for _ in self._active:
            pass
        return self._active.result
