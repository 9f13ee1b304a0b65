"""Preparation of a request for the engine: prompt token ids, sampling parameters, constraints.

Templates, tokenization and grammars may take long: this runs in a thread of the pool, never in the
event loop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from hybridmoe.engine.constraint import Constraint
from hybridmoe.engine.dry import SequenceBreakers
from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.llm.llm import LLM
from hybridmoe.serve.config import ServeConfig
from hybridmoe.serve.encode_prompt import chosen_thinking, encode_prompt
from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.inputs import ChatInput, TextInput
from hybridmoe.serve.schemas.output import ResponseFormat
from hybridmoe.serve.work_pool import CancelToken
from hybridmoe.text.grammar_compiler import GrammarCompiler
from hybridmoe.text.lazy_tool_calls import LazyToolCalls, forbid_tool_calls
from hybridmoe.text.matcher_constraint import MatcherConstraint
from hybridmoe.text.output_format import OutputFormat, ToolCallFormat
from hybridmoe.text.thinking_budget import InnerConstraint, ThinkingBudget
from hybridmoe.text.tool_syntax import ToolSyntax

__all__ = ["EchoedPrompt", "PreparedRequest", "prepare_chat", "prepare_completion"]


@dataclass(frozen=True, slots=True)
class EchoedPrompt:
    """Text of a prompt that the response begins with."""

    text: str
    num_hidden: int  # characters of its tokens before the text: of an added begin token


@dataclass(slots=True, kw_only=True)
class PreparedRequest:
    """Inputs of the engine for all choices, and options of the response parser."""

    prompts: list[list[int]]  # token ids; each has the same number of choices, in a row
    params: SamplingParams
    constraints: list[Constraint | None]  # one per choice: they have state
    top_logprobs: int | None
    expert_trace: bool
    prompt_logprobs: int | None = None  # of each prompt, computed for its first choice
    echoes: list[EchoedPrompt] | None = None  # one per prompt
    dry_breakers: SequenceBreakers = field(default_factory=dict)
    may_call: bool = False
    tools: Sequence[Mapping[str, Any]] = ()  # the declared ones
    tool_syntax: ToolSyntax | None = None
    call_id_prefix: str = "call_"
    may_think: bool = False
    is_thinking: bool = False  # the prompt ends inside `<think>`
    is_parallel: bool = True
    ignored: tuple[str, ...] = ()  # fields without effect on this model
    relaxed: Sequence[str] = ()  # paths in schemas of keywords without a grammar

    @property
    def choices_per_prompt(self) -> int:
        return len(self.constraints) // len(self.prompts)

    def first_of(self, choice: int) -> int:
        """Index of the first choice of the same prompt."""
        return choice - choice % self.choices_per_prompt

    def prompt_of(self, choice: int) -> list[int]:
        return self.prompts[choice // self.choices_per_prompt]

    def params_of(self, choice: int) -> SamplingParams:
        """Parameters of a choice. Only the seed differs between the choices of a prompt."""
        number = choice % self.choices_per_prompt
        if self.params.seed is None or number == 0:
            return self.params
        return replace(self.params, seed=(self.params.seed + number) % 2**64)


def prepare_chat(
    llm: LLM, grammar: GrammarCompiler, chat: ChatInput, config: ServeConfig, token: CancelToken
) -> PreparedRequest:
    """Prepare a conversation. Errors: ApiError, ConfigError, TemplateError."""
    _check_choices(chat.num_choices, config)
    chat = _with_allowed_tools(chat)
    _check_tool_choice(chat)
    may_call = bool(chat.tools) and chat.tool_choice != "none"
    params = _chat_params(llm, chat)
    prompt = encode_prompt(llm, chat, config, token)
    _check_prompt_logprobs([prompt.ids], chat.prompt_logprobs, config)
    num_past_calls = sum(len(message.get("tool_calls") or ()) for message in chat.messages)
    if not may_call:
        params = replace(
            params, logit_bias={**params.logit_bias, **forbid_tool_calls(llm.tool_syntax)}
        )
    form = _form(chat.format)
    calls = _calls(chat, num_past_calls)
    constraint: MatcherConstraint | LazyToolCalls | None = None
    if calls is not None and calls.is_auto and form is None:
        constraint = grammar.compile_lazy_calls(calls, token.check)
    elif form or calls:
        constraint = grammar.compile_response(form, calls, prompt.thinking, token.check)
        if form and prompt.prefill and (calls is None or calls.is_auto):
            _begin(constraint, llm.tokenizer.encode_untrusted(prompt.prefill))
    is_thinking = prompt.thinking == "open"
    limited = ThinkingBudget.around(
        constraint,
        llm.tokenizer,
        chosen_thinking(llm, chat, config).budget_tokens,
        is_thinking=is_thinking,
        leaving_ids=forbid_tool_calls(llm.tool_syntax),
    )
    return PreparedRequest(
        prompts=[prompt.ids],
        params=params,
        dry_breakers=llm.sequence_breakers(params),
        constraints=_copies(limited, chat.num_choices),
        top_logprobs=chat.top_logprobs,
        prompt_logprobs=chat.prompt_logprobs,
        expert_trace=chat.expert_trace,
        may_call=may_call,
        tools=chat.tools,
        tool_syntax=llm.tool_syntax,
        call_id_prefix=chat.call_id_prefix,
        may_think=True,
        is_thinking=is_thinking,
        is_parallel=chat.is_parallel,
        ignored=prompt.ignored,
        relaxed=() if constraint is None else constraint.relaxed,
    )


def prepare_completion(
    llm: LLM, grammar: GrammarCompiler, text: TextInput, config: ServeConfig, token: CancelToken
) -> PreparedRequest:
    """Prepare one or several texts. Errors: ApiError, ConfigError."""
    _check_choices(text.num_choices, config)
    num_sequences = len(text.prompts) * text.num_choices
    engine = llm.engine.config
    most = min(config.max_sequences, engine.max_running + engine.max_waiting)
    if num_sequences > most:
        raise ApiError(
            400,
            f"prompt: {len(text.prompts)} prompts with {text.num_choices} choices each are"
            f" {num_sequences}; at most {most} are taken at once",
            param="prompt",
        )
    params = llm.sampling_params(text.sampling)
    form = _form(text.format)
    prompts = [_encode_text(llm, text, prompt, token) for prompt in text.prompts]
    _check_prompt_logprobs(prompts, text.prompt_logprobs, config)
    return PreparedRequest(
        prompts=prompts,
        params=params,
        dry_breakers=llm.sequence_breakers(params),
        constraints=_copies(
            grammar.compile_format(form, token.check) if form else None, num_sequences
        ),
        top_logprobs=text.top_logprobs,
        prompt_logprobs=text.prompt_logprobs,
        echoes=list(map(partial(_echo, llm), text.prompts, prompts)) if text.echo else None,
        expert_trace=text.expert_trace,
        relaxed=form.relaxed if form else (),
    )


def _encode_text(
    llm: LLM, text: TextInput, prompt: str | Sequence[int | str], token: CancelToken
) -> list[int]:
    """Encode a prompt of texts and token ids. Only a text that it starts with gets a BOS."""
    limit = llm.tokenizer.prompt_limit(llm.context_tokens, token.check)
    out: list[int] = []
    for i, part in enumerate([prompt] if isinstance(prompt, str) else prompt):
        if isinstance(part, str):
            add_special = i == 0 and text.add_special
            out += llm.tokenizer.encode(
                part, add_special=add_special, parse_special=True, limit=limit
            )
        else:
            out.append(part)
    return out


def _echo(llm: LLM, given: str | Sequence[int | str], ids: list[int]) -> EchoedPrompt:
    """Decode a prompt; a text is echoed as it was given, without a begin token."""
    text = llm.tokenizer.decode(ids, skip_special=False)
    if isinstance(given, str) and text.endswith(given):
        return EchoedPrompt(given, len(text) - len(given))
    return EchoedPrompt(text, 0)


def _check_prompt_logprobs(
    prompts: list[list[int]], count: int | None, config: ServeConfig
) -> None:
    """Raise ApiError if a response would hold too many log-probabilities of prompts."""
    if count is None:
        return
    num_tokens = sum(map(len, prompts))
    if num_tokens * (1 + count) > config.max_prompt_logprobs:
        raise ApiError(
            400,
            f"log-probabilities of {num_tokens} prompt tokens with {count} alternatives each are"
            f" {num_tokens * (1 + count)}; at most {config.max_prompt_logprobs} are taken at once",
            param="prompt_logprobs",
        )


def _chat_params(llm: LLM, chat: ChatInput) -> SamplingParams:
    if chat.relative_temperature is None:
        return llm.sampling_params(chat.sampling)
    temperature = chat.relative_temperature * llm.sampling_params({}).temperature
    return llm.sampling_params({**chat.sampling, "temperature": temperature})


def _check_choices(num_choices: int, config: ServeConfig) -> None:
    if num_choices > config.max_choices:
        raise ApiError(
            400, f"n is {num_choices}; at most {config.max_choices} are supported", param="n"
        )


def _with_allowed_tools(chat: ChatInput) -> ChatInput:
    if chat.allowed_tools is None:
        return chat
    declared = {tool["function"]["name"] for tool in chat.tools}
    absent = next((name for name in chat.allowed_tools if name not in declared), None)
    if absent is not None:
        raise ApiError(
            400, f"tool_choice allows {absent!r}, which tools lacks", param="tool_choice"
        )
    tools = [tool for tool in chat.tools if tool["function"]["name"] in chat.allowed_tools]
    return replace(chat, tools=tools)


def _check_tool_choice(chat: ChatInput) -> None:
    names = [tool["function"]["name"] for tool in chat.tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ApiError(400, f"tools: {twice!r} is declared twice", param="tools")
    if chat.forced_tool is not None and chat.forced_tool not in names:
        raise ApiError(
            400, f"tool_choice names {chat.forced_tool!r}, which tools lacks", param="tool_choice"
        )
    if chat.tool_choice == "required" and not chat.tools:
        raise ApiError(400, "tool_choice is 'required' without tools", param="tool_choice")


def _begin(constraint: MatcherConstraint, ids: list[int]) -> None:
    """Advance by the text that is continued. Raises ApiError unless the format allows it."""
    if not constraint.begin_with(ids):
        raise ApiError(
            400,
            "the assistant's last message is not the beginning of a text of response_format",
            param="messages",
        )


def _copies(constraint: InnerConstraint | None, count: int) -> list[Constraint | None]:
    """Copy a constraint for each choice; it is compiled once."""
    if constraint is None:
        return [None] * count
    return [constraint, *(constraint.copy() for _ in range(count - 1))]


def _calls(chat: ChatInput, num_past_calls: int) -> ToolCallFormat | None:
    if not chat.tools or chat.tool_choice == "none":
        return None
    choice = chat.forced_tool or chat.tool_choice
    return ToolCallFormat(chat.tools, choice, num_past_calls, chat.is_parallel)


def _form(wanted: ResponseFormat | None) -> OutputFormat | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object" and wanted.schema_ is None:
        return OutputFormat.json_object()
    if wanted.type in ("json_object", "json_schema"):
        schema = (wanted.json_schema or {}).get("schema", wanted.schema_)
        if not isinstance(schema, dict):
            raise _lacks("json_schema.schema", "a JSON schema")
        return OutputFormat.json_schema(schema)
    if wanted.type == "regex":
        if not wanted.pattern:
            raise _lacks("pattern", "a regular expression")
        return OutputFormat.regex(wanted.pattern)
    if wanted.type == "choice":
        if not wanted.choices:
            raise _lacks("choices", "a list of texts")
        return OutputFormat.choice(wanted.choices)
    if not wanted.grammar:
        raise _lacks("grammar", "a Lark or GBNF grammar")
    return OutputFormat.lark_or_gbnf(wanted.grammar)


def _lacks(name: str, what: str) -> ApiError:
    param = f"response_format.{name}"
    return ApiError(400, f"{param} is missing; expected {what}", param=param)
