"""One request in the engine's terms, whichever API it came by.

Everything here may take a while (templates, tokenizing, grammars) and runs in a thread of the pool,
never in the event loop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from hybridmoe.engine.constraint import Constraint
from hybridmoe.engine.sampler import SamplingParams
from hybridmoe.llm.llm import LLM
from hybridmoe.serve.config import ServeConfig
from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.pool import CancelToken
from hybridmoe.serve.schemas.common import ResponseFormat
from hybridmoe.text.call_guard import CallGuard, no_calls
from hybridmoe.text.grammar import Calls, Form, GrammarCompiler, MatcherConstraint
from hybridmoe.text.thinking import thinking_after

__all__ = ["Job", "TextTurn", "Turn", "chat_job", "chat_prompt", "completion_job"]

_LONG_CHARS = 1 << 14
_MANY_MESSAGES = 64


@dataclass(slots=True, kw_only=True)
class Turn:
    """A conversation, its tools, and what is asked of the answer; messages are OpenAI's."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: Literal["auto", "none", "required"] = "auto"
    forced_tool: str | None = None  # the only tool that may, and must, be called
    allowed_tools: list[str] | None = None  # the only ones that the model is told of; None: all
    is_parallel: bool = True  # whether one answer may hold several calls
    format: ResponseFormat | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    num_choices: int = 1
    top_logprobs: int | None = None
    expert_trace: bool = False

    @property
    def is_short(self) -> bool:
        """True where it is made into a job in no time."""
        if self.tools or self.format is not None or len(self.messages) > _MANY_MESSAGES:
            return False
        texts = (message.get("content") for message in self.messages)
        return (
            sum(len(text) if isinstance(text, str) else _LONG_CHARS for text in texts if text)
            < _LONG_CHARS
        )


@dataclass(slots=True, kw_only=True)
class TextTurn:
    """Texts, or their token ids, and what is asked of the continuation of each."""

    prompts: list[str] | list[list[int]]
    format: ResponseFormat | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    num_choices: int = 1  # of each
    top_logprobs: int | None = None
    expert_trace: bool = False

    @property
    def is_short(self) -> bool:
        """True where it is made into a job in no time."""
        return self.format is None and sum(map(len, self.prompts)) < _LONG_CHARS


@dataclass(slots=True, kw_only=True)
class Job:
    """What the engine is to do, and how its tokens are to be read."""

    prompts: list[list[int]]  # token ids; each has equally many choices, which stand together
    params: SamplingParams
    constraints: list[Constraint | None]  # one for each choice: they have state
    top_logprobs: int | None
    expert_trace: bool
    may_call: bool = False
    tools: Sequence[Mapping[str, Any]] = ()  # those that may be called
    may_think: bool = False
    is_thinking: bool = False  # the prompt ends inside `<think>`
    is_parallel: bool = True

    @property
    def choices_per_prompt(self) -> int:
        return len(self.constraints) // len(self.prompts)

    def prompt_of(self, choice: int) -> list[int]:
        return self.prompts[choice // self.choices_per_prompt]

    def params_of(self, choice: int) -> SamplingParams:
        """Parameters of a choice: all but the seed are the same, as are those of every prompt."""
        number = choice % self.choices_per_prompt
        if self.params.seed is None or number == 0:
            return self.params
        return replace(self.params, seed=(self.params.seed + number) % 2**64)


def chat_prompt(llm: LLM, turn: Turn, config: ServeConfig, token: CancelToken) -> list[int]:
    """Token ids of the conversation. Errors: ApiError, ConfigError, TemplateError."""
    if len(turn.messages) > config.max_messages:
        raise ApiError(
            400,
            f"messages has {len(turn.messages)} entries; at most {config.max_messages} are taken",
            param="messages",
        )
    messages = [
        {**message, "role": "system"} if message.get("role") == "developer" else message
        for message in turn.messages
    ]
    limit = llm.tokenizer.limit(llm.context_tokens, token.check)
    return llm.encode_chat(messages, turn.tools or None, limit)


def chat_job(
    llm: LLM, grammar: GrammarCompiler, turn: Turn, config: ServeConfig, token: CancelToken
) -> Job:
    """The job of a conversation. Errors: ApiError, ConfigError, TemplateError."""
    _check_choices(turn.num_choices, config)
    turn = _with_allowed_tools(turn)
    _check_tool_choice(turn)
    may_call = bool(turn.tools) and turn.tool_choice != "none"
    params = llm.sampling_params(turn.sampling)
    prompt_ids = chat_prompt(llm, turn, config, token)
    num_past_calls = sum(len(message.get("tool_calls") or ()) for message in turn.messages)
    if not may_call:
        params = replace(params, logit_bias={**params.logit_bias, **no_calls(llm.tokenizer)})
    thinking = thinking_after(prompt_ids, llm.tokenizer, may_think=llm.may_think)
    form = _form(turn.format)
    calls = _calls(turn, num_past_calls)
    constraint: MatcherConstraint | CallGuard | None = None
    if calls is not None and calls.is_auto and form is None:
        constraint = grammar.guard(calls, token.check)
    elif form or calls:
        constraint = grammar.answer(form, calls, thinking, token.check)
    return Job(
        prompts=[prompt_ids],
        params=params,
        constraints=_copies(constraint, turn.num_choices),
        top_logprobs=turn.top_logprobs,
        expert_trace=turn.expert_trace,
        may_call=may_call,
        tools=turn.tools,
        may_think=True,
        is_thinking=thinking == "open",
        is_parallel=turn.is_parallel,
    )


def completion_job(
    llm: LLM, grammar: GrammarCompiler, turn: TextTurn, config: ServeConfig, token: CancelToken
) -> Job:
    """The job of a text, or of several. Errors: ApiError, ConfigError."""
    _check_choices(turn.num_choices, config)
    num_sequences = len(turn.prompts) * turn.num_choices
    engine = llm.engine.config
    most = min(config.max_sequences, engine.max_running + engine.max_waiting)
    if num_sequences > most:
        raise ApiError(
            400,
            f"prompt: {len(turn.prompts)} prompts with {turn.num_choices} choices each are"
            f" {num_sequences}; at most {most} are taken at once",
            param="prompt",
        )
    params = llm.sampling_params(turn.sampling)
    form = _form(turn.format)
    return Job(
        prompts=[
            llm.tokenizer.encode(
                prompt,
                add_special=True,
                parse_special=True,
                limit=llm.tokenizer.limit(llm.context_tokens, token.check),
            )
            if isinstance(prompt, str)
            else prompt
            for prompt in turn.prompts
        ],
        params=params,
        constraints=_copies(grammar.text(form, token.check) if form else None, num_sequences),
        top_logprobs=turn.top_logprobs,
        expert_trace=turn.expert_trace,
    )


def _check_choices(num_choices: int, config: ServeConfig) -> None:
    if num_choices > config.max_choices:
        raise ApiError(
            400, f"n is {num_choices}; at most {config.max_choices} are supported", param="n"
        )


def _with_allowed_tools(turn: Turn) -> Turn:
    if turn.allowed_tools is None:
        return turn
    declared = {tool["function"]["name"] for tool in turn.tools}
    absent = next((name for name in turn.allowed_tools if name not in declared), None)
    if absent is not None:
        raise ApiError(
            400, f"tool_choice allows {absent!r}, which tools lacks", param="tool_choice"
        )
    tools = [tool for tool in turn.tools if tool["function"]["name"] in turn.allowed_tools]
    return replace(turn, tools=tools)


def _check_tool_choice(turn: Turn) -> None:
    names = [tool["function"]["name"] for tool in turn.tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ApiError(400, f"tools: {twice!r} is declared twice", param="tools")
    if turn.forced_tool is not None and turn.forced_tool not in names:
        raise ApiError(
            400, f"tool_choice names {turn.forced_tool!r}, which tools lacks", param="tool_choice"
        )
    if turn.tool_choice == "required" and not turn.tools:
        raise ApiError(400, "tool_choice is 'required' without tools", param="tool_choice")


def _copies(
    constraint: MatcherConstraint | CallGuard | None, count: int
) -> list[Constraint | None]:
    """One for each choice, compiled once."""
    if constraint is None:
        return [None] * count
    return [constraint, *(constraint.copy() for _ in range(count - 1))]


def _calls(turn: Turn, num_past_calls: int) -> Calls | None:
    if not turn.tools or turn.tool_choice == "none":
        return None
    choice = turn.forced_tool or turn.tool_choice
    return Calls(turn.tools, choice, num_past_calls, turn.is_parallel)


def _form(wanted: ResponseFormat | None) -> Form | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object" and wanted.schema_ is None:
        return Form.json_object()
    if wanted.type in ("json_object", "json_schema"):
        schema = (wanted.json_schema or {}).get("schema", wanted.schema_)
        if not isinstance(schema, dict):
            raise _lacks("json_schema.schema", "a JSON schema")
        return Form.json_schema(schema)
    if wanted.type == "regex":
        if not wanted.pattern:
            raise _lacks("pattern", "a regular expression")
        return Form.regex(wanted.pattern)
    if not wanted.grammar:
        raise _lacks("grammar", "a Lark or GBNF grammar")
    return Form.grammar(wanted.grammar)


def _lacks(name: str, what: str) -> ApiError:
    param = f"response_format.{name}"
    return ApiError(400, f"{param} is missing; expected {what}", param=param)
