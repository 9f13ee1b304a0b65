"""Chat templates: renders messages to the prompt text that a model was trained on.

Templates come with untrusted files; text/template_sandbox.py bounds what they can do. Conventions
are those of Hugging Face's `apply_chat_template`. text/chat_encoding.py encodes the text to token
ids, and keeps special tokens in messages from being recognised.
"""

import functools
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jinja2

from hybridmoe.errors import HybridMoeError, TemplateError
from hybridmoe.text.messages import copy_json
from hybridmoe.text.prefill import ThoughtMarks
from hybridmoe.text.prompt_limit import PromptLimit
from hybridmoe.text.template_sandbox import BoundedEnvironment
from hybridmoe.text.template_switches import TemplateSwitches
from hybridmoe.text.tool_support import ToolSupport, probe_tools

__all__ = ["KIMI_K2_TEMPLATE", "ChatTemplate"]

# For files with Kimi K2's tokens and no template. As in training, there is nothing between turns,
# and tools are declared in compact JSON with sorted keys.
KIMI_K2_TEMPLATE = """\
{%- if tools -%}
  <|im_system|>tool_declare<|im_middle|>
  {{- tools | tojson(separators=(',', ':'), sort_keys=True) -}}
  <|im_end|>
{%- endif -%}
{%- if messages[0].role != 'system' -%}
  <|im_system|>system<|im_middle|>You are Kimi, an AI assistant created by Moonshot AI.<|im_end|>
{%- endif -%}
{%- for message in messages -%}
  {%- if message.role in ('user', 'assistant') -%}
    <|im_{{ message.role }}|>
  {%- else -%}
    <|im_system|>
  {%- endif -%}
  {{- message.name or message.role -}}<|im_middle|>
  {%- if message.role == 'tool' -%}
    {{- '## Return of ' ~ message.tool_call_id ~ '\n' -}}
  {%- endif -%}
  {{- message.content or '' -}}
  {%- if message.tool_calls -%}
    <|tool_calls_section_begin|>
    {%- for call in message.tool_calls -%}
      <|tool_call_begin|>{{ call.id }}<|tool_call_argument_begin|>
      {{- call.function.arguments -}}<|tool_call_end|>
    {%- endfor -%}
    <|tool_calls_section_end|>
  {%- endif -%}
  <|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}
  <|im_assistant|>assistant<|im_middle|>
{%- endif -%}
"""

_KIMI_MARKS = ("<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>")


class SpecialTokens(Protocol):
    """The part of a tokenizer that a template needs."""

    @property
    def bos_id(self) -> int | None: ...
    def special_id(self, text: str) -> int | None: ...
    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str: ...


class ChatTemplate:
    """A compiled chat template. Thread-safe."""

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        """Compile a template. Raises TemplateError with its line."""
        self.source = source
        self._environment = BoundedEnvironment()
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._lock = threading.Lock()
        try:
            self._template = self._environment.from_string(source)
        except Exception as error:  # an untrusted template can raise anything
            raise _as_template_error(error) from None

    @classmethod
    def is_known(cls, metadata: Mapping[str, Any], tokenizer: SpecialTokens) -> bool:
        """Test whether `from_metadata` would find a template. Raises TemplateError."""
        return _find_source(metadata, False) is not None or _has_kimi_marks(tokenizer)

    @classmethod
    def from_metadata(
        cls, metadata: Mapping[str, Any], tokenizer: SpecialTokens, *, has_tools: bool = False
    ) -> "ChatTemplate":
        """Compile the file's template, or Kimi K2's for a file with its tokens and no template.

        Of several templates: with tools "tool_use", else the default. Raises TemplateError.
        """
        source = _find_source(metadata, has_tools)
        if source is None:
            if not _has_kimi_marks(tokenizer):
                raise TemplateError(
                    "the file has no chat template (tokenizer.chat_template), nor Kimi K2's special"
                    " tokens: it can continue text (generate), but not chat"
                )
            source = KIMI_K2_TEMPLATE
        texts = metadata.get("tokenizer.ggml.tokens") or []
        named = {}
        for role in ("bos", "eos"):
            token_id = metadata.get(f"tokenizer.ggml.{role}_token_id")
            if isinstance(token_id, int) and 0 <= token_id < len(texts):
                named[f"{role}_token"] = str(texts[token_id])
        return cls(source, **named)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
        limit: PromptLimit | None = None,
    ) -> str:
        """Render normalized messages (text/messages.py) to the prompt text.

        variables: further ones that the template may read. Takes seconds at most. Errors:
        TemplateError, one line; those of the limit.
        """
        limit = limit or PromptLimit.unlimited()
        context = {
            **(variables or {}),
            "messages": copy_json(messages, "messages"),
            "tools": copy_json(tools, "tools"),
            "add_generation_prompt": add_generation_prompt,
            **self._tokens,
        }
        with self._lock:
            try:
                budget = self._environment.budget
                budget.restart(0)
                budget.restart(budget.cost_of(context), limit.check)
                parts, size = [], 0
                for part in self._template.generate(context):
                    parts.append(part)
                    size += len(part)
                    limit.check_size(size)
                return "".join(parts)
            except HybridMoeError:
                raise
            except Exception as error:
                raise _as_template_error(error) from None

    @functools.cached_property
    def read_names(self) -> frozenset[str]:
        """Names of all variables that the source reads, its own among them."""
        with self._lock:
            return self._environment.read_names(self.source)

    @functools.cached_property
    def switches(self) -> TemplateSwitches:
        """Switches of thinking that the template knows."""
        return TemplateSwitches(self)

    @functools.cached_property
    def thought_marks(self) -> ThoughtMarks:
        """Text around thoughts before a response's text, found by rendering a sample."""
        question, response = {"role": "user", "content": "x"}, ThoughtMarks.sample()
        try:
            return ThoughtMarks.of(self.render([question, response], add_generation_prompt=False))
        except TemplateError:
            return ThoughtMarks()

    @functools.cached_property
    def tools(self) -> ToolSupport:
        """Parts of a conversation with tools that the template writes."""

        def render(
            messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
        ) -> str:
            return self.render(messages, tools=tools, add_generation_prompt=False)

        return probe_tools(render)


def _has_kimi_marks(tokenizer: SpecialTokens) -> bool:
    return all(tokenizer.special_id(mark) is not None for mark in _KIMI_MARKS)


def _find_source(metadata: Mapping[str, Any], has_tools: bool) -> str | None:
    """Find the template; GGUF appends the names of further ones to the key."""
    keys = ["tokenizer.chat_template", "tokenizer.chat_template.default"]
    if has_tools:
        keys.insert(0, "tokenizer.chat_template.tool_use")
    source = next((metadata[key] for key in keys if metadata.get(key)), None)
    if source is not None and not isinstance(source, str):
        raise TemplateError(f"tokenizer.chat_template is {source!r:.60}; expected a string")
    return source


def _as_template_error(error: Exception) -> TemplateError:
    """Summarise an error in one line, with the template's line from jinja2's traceback."""
    line = getattr(error, "lineno", None)
    trace = error.__traceback__
    while trace is not None and line is None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    if isinstance(error, RecursionError):
        what = "nested too deeply"
    elif isinstance(error, jinja2.TemplateError):
        what = str(error.message or type(error).__name__)
    else:
        what = f"{type(error).__name__}: {error}"
    place = f", line {line}" if line else ""
    return TemplateError(f"chat template{place}: {' '.join(what.split())[:300]}")
