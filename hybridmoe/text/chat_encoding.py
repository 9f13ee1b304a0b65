"""From a conversation to token ids, with no special token that the template did not write.

Messages are untrusted: a user, or a page that a tool has read, may contain `<|im_end|>`. Names of
special tokens in them are therefore replaced, before the template runs, by characters of a
private-use area that occur nowhere else, and put back after the special tokens of the rendered
text have been found; what they stand for is then encoded as ordinary text. A template may trim,
split or quote a message as it likes; it sees one odd character in place of each name. All text
between two special tokens is encoded as one, so that a conversation without such names gets
exactly the ids of its rendered text.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hybridmoe.errors import ConfigError
from hybridmoe.text.chat_template import ChatTemplate
from hybridmoe.text.messages import (
    normalize_messages,
    normalize_tools,
    number_tool_calls,
    parse_tool_arguments,
)
from hybridmoe.text.prompt_limit import PromptLimit
from hybridmoe.text.tokenizer import Tokenizer

__all__ = ["encode_chat"]

_PRIVATE_USE = range(0xE000, 0xF900)
# Reasoning models' templates look for these in what the assistant said before.
_THINKING_MARKS = ("<think>", "</think>")


def encode_chat(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    limit: PromptLimit | None = None,
) -> list[int]:
    """Ids of the prompt that asks for the assistant's next message.

    Errors: ConfigError where the messages or tools are unusable; TemplateError; the limit's.
    """
    limit = limit or PromptLimit.unlimited()
    checked = normalize_messages(messages)
    is_kimi = tokenizer.special_id("<|tool_call_begin|>") is not None
    declared = normalize_tools(tools, sort_keys=is_kimi)
    if is_kimi:
        number_tool_calls(checked)
    if any("tool_calls" in message for message in checked) and template.wants_parsed_arguments:
        checked = parse_tool_arguments(checked)
    mask = _Mask(tokenizer, [checked, declared], limit.check)
    text = template.render(mask.apply(checked), tools=mask.apply(declared), limit=limit)
    out: list[int] = []
    start = 0
    for begin, end in tokenizer.special_spans(text, limit.check):
        out += tokenizer.encode_untrusted(mask.lift(text[start:begin]), limit)
        out += tokenizer.encode(text[begin:end], parse_special=True, limit=limit)
        start = end
    return out + tokenizer.encode_untrusted(mask.lift(text[start:]), limit)


class _Mask:
    """Swaps names of special tokens for private-use characters, and back."""

    def __init__(self, tokenizer: Tokenizer, data: object, check: Callable[[], None]) -> None:
        self._tokenizer = tokenizer
        self._check = check
        strings = list(_strings(data))
        names = {text[begin:end] for text in strings for begin, end in self._spans(text)}
        self._marks: dict[str, str] = {}  # name -> character
        if names:
            taken = set().union(*strings)
            free = (chr(code) for code in _PRIVATE_USE if chr(code) not in taken)
            self._marks = dict(zip(sorted(names), free, strict=False))
            if len(self._marks) < len(names):
                raise ConfigError("messages hold too many private-use characters")

    def apply(self, data: Any, role: str = "") -> Any:
        """A copy of the data with every name replaced."""
        if not self._marks:
            return data
        if isinstance(data, str):
            return self._replace(data, keep_thinking=role == "assistant")
        if isinstance(data, list):
            return [self.apply(item, role) for item in data]
        if isinstance(data, dict):
            role = str(data.get("role", role))
            return {self.apply(key): self.apply(value, role) for key, value in data.items()}
        return data

    def lift(self, text: str) -> str:
        """Put the names back, also where a template has escaped their marks as JSON does."""
        for name, mark in self._marks.items():
            self._check()
            text = text.replace(mark, name).replace(f"\\u{ord(mark):04x}", name)
        return text

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        return self._tokenizer.special_spans(text, self._check)

    def _replace(self, text: str, *, keep_thinking: bool) -> str:
        parts, start = [], 0
        for begin, end in self._spans(text):
            name = text[begin:end]
            is_kept = keep_thinking and name in _THINKING_MARKS
            parts += [text[start:begin], name if is_kept else self._marks[name]]
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
