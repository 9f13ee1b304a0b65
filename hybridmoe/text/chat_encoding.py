"""Encodes a conversation so that messages cannot inject special tokens.

Messages are untrusted: a user, or a page that a tool has read, may contain `<|im_end|>`. Before the
template runs, texts of special tokens in messages are masked by unused private-use characters.
Special tokens are then found in the rendered text, and the masked ones are restored and encoded as
ordinary text. A template may trim, split or quote messages; it sees one character for each masked
text. Text between two special tokens is encoded as one piece, so that a conversation without such
texts gets exactly the ids of its rendered prompt.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybridmoe.errors import ConfigError
from hybridmoe.text.chat_template import ChatTemplate
from hybridmoe.text.messages import (
    normalize_messages,
    normalize_tools,
    number_tool_calls,
    parse_tool_arguments,
)
from hybridmoe.text.prefill import split_prefill
from hybridmoe.text.prompt_limit import PromptLimit
from hybridmoe.text.thinking import Thinking, thinking_after
from hybridmoe.text.thinking_options import PromptOptions
from hybridmoe.text.tokenizer import Tokenizer
from hybridmoe.text.tool_support import complete_messages
from hybridmoe.text.tool_syntax import choose_syntax

__all__ = ["ChatPrompt", "encode_chat", "encode_prompt"]

_PRIVATE_USE = range(0xE000, 0xF900)
# Templates of reasoning models look for these in earlier responses.
_THINKING_MARKS = ("<think>", "</think>")


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Prompt for the assistant's next message, or for the rest of its last one."""

    ids: list[int]
    thinking: Thinking  # at the start of the response
    prefill: str = ""  # text of the message that is continued, without its thoughts
    ignored: tuple[str, ...] = ()  # fields that have no effect on this model


def encode_prompt(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    limit: PromptLimit | None = None,
    options: PromptOptions | None = None,
) -> ChatPrompt:
    """Encode the prompt for a conversation.

    Errors: ConfigError for unusable messages, tools or options; TemplateError; those of the limit.
    """
    limit = limit or PromptLimit.unlimited()
    options = options or PromptOptions()
    normalized = normalize_messages(messages)
    syntax = choose_syntax(tokenizer, template.source)
    has_numbers = syntax is not None and syntax.has_numbers
    declared = normalize_tools(tools, sort_keys=has_numbers)
    if has_numbers:
        number_tool_calls(normalized)
    has_calls = any("tool_calls" in message for message in normalized)
    choice = template.switches.choose(options)
    mask = _Mask(tokenizer, [normalized, declared, choice.variables], limit.check)
    past, prefill = split_prefill(mask.apply(normalized), options.continues_final)
    declared = mask.apply(declared)
    if has_calls or declared or any(message["role"] == "tool" for message in past):
        past = complete_messages(past, declared, template.tools, syntax)
    if has_calls and template.tools.wants_parsed_arguments:
        past = parse_tool_arguments(past)
    text = template.render(
        past,
        tools=declared,
        variables=mask.apply(choice.variables),
        limit=limit,
    )
    if prefill is not None:
        text += prefill.after(text, template.thought_marks)
    ids: list[int] = []
    start = 0
    for begin, end in tokenizer.special_spans(text, limit.check):
        ids += tokenizer.encode_untrusted(mask.restore(text[start:begin]), limit)
        ids += tokenizer.encode(text[begin:end], parse_special=True, limit=limit)
        start = end
    ids += tokenizer.encode_untrusted(mask.restore(text[start:]), limit)
    if prefill is None:
        thinking = thinking_after(ids, tokenizer, may_think="<think>" in template.source)
        return ChatPrompt(ids, thinking, ignored=choice.ignored)
    thinking = "open" if prefill.is_thinking else "none"
    return ChatPrompt(ids, thinking, mask.restore(prefill.content), choice.ignored)


def encode_chat(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    limit: PromptLimit | None = None,
) -> list[int]:
    """Encode the prompt for the assistant's next message. Errors: those of `encode_prompt`."""
    return encode_prompt(template, tokenizer, messages, tools, limit).ids


class _Mask:
    """Masks texts of special tokens by private-use characters."""

    def __init__(self, tokenizer: Tokenizer, data: object, check: Callable[[], None]) -> None:
        self._tokenizer = tokenizer
        self._check = check
        strings = list(_strings(data))
        specials = {text[begin:end] for text in strings for begin, end in self._spans(text)}
        self._characters: dict[str, str] = {}  # special token's text -> character
        if specials:
            taken = set().union(*strings)
            free = (chr(code) for code in _PRIVATE_USE if chr(code) not in taken)
            self._characters = dict(zip(sorted(specials), free, strict=False))
            if len(self._characters) < len(specials):
                raise ConfigError("messages hold too many private-use characters")

    def apply(self, data: Any, role: str = "") -> Any:
        """Copy the data with all special tokens masked."""
        if not self._characters:
            return data
        if isinstance(data, str):
            return self._replace(data, keep_thinking=role == "assistant")
        if isinstance(data, list):
            return [self.apply(item, role) for item in data]
        if isinstance(data, dict):
            role = str(data.get("role", role))
            return {self.apply(key): self.apply(value, role) for key, value in data.items()}
        return data

    def restore(self, text: str) -> str:
        """Restore masked texts, also where a template has escaped the characters as in JSON."""
        for special, character in self._characters.items():
            self._check()
            text = text.replace(character, special)
            text = text.replace(f"\\u{ord(character):04x}", special)
        return text

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        return self._tokenizer.special_spans(text, self._check)

    def _replace(self, text: str, *, keep_thinking: bool) -> str:
        parts, start = [], 0
        for begin, end in self._spans(text):
            special = text[begin:end]
            is_kept = keep_thinking and special in _THINKING_MARKS
            parts += [text[start:begin], special if is_kept else self._characters[special]]
            start = end
        return "".join([*parts, text[start:]])


def _strings(data: object) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, list):
        for item in data:
            yield from _strings(item)
    elif isinstance(data, dict):
        for key, value in data.items():
            yield from _strings(key)
            yield from _strings(value)
