"""Special tokens of tool calls: Kimi K2's, and DeepSeek's for the same roles.

    <|tool_calls_section_begin|>
      <|tool_call_begin|>functions.NAME:N<|tool_call_argument_begin|>{JSON}<|tool_call_end|> ...
    <|tool_calls_section_end|>

Found by token id: the same characters in ordinary text are text. Models also write the singular
name of the section. Sources: Moonshot's tool_call_guidance.md, DeepSeek's chat templates.
"""

from typing import Literal

__all__ = [
    "ARGUMENTS_BEGIN",
    "CALL_BEGIN",
    "CALL_END",
    "MARKS",
    "SECTION_BEGIN",
    "SECTION_END",
    "Mark",
]

Mark = Literal["section begin", "section end", "call begin", "arguments begin", "call end"]

SECTION_BEGIN = (
    "<|tool_calls_section_begin|>", "<|tool_call_section_begin|>", "<｜tool▁calls▁begin｜>",
)  # fmt: skip
SECTION_END = (
    "<|tool_calls_section_end|>", "<|tool_call_section_end|>", "<｜tool▁calls▁end｜>",
)  # fmt: skip
CALL_BEGIN = ("<|tool_call_begin|>", "<｜tool▁call▁begin｜>")
ARGUMENTS_BEGIN = ("<|tool_call_argument_begin|>", "<｜tool▁sep｜>")
CALL_END = ("<|tool_call_end|>", "<｜tool▁call▁end｜>")

_TEXTS: dict[Mark, tuple[str, ...]] = {
    "section begin": SECTION_BEGIN,
    "section end": SECTION_END,
    "call begin": CALL_BEGIN,
    "arguments begin": ARGUMENTS_BEGIN,
    "call end": CALL_END,
}
MARKS: dict[str, Mark] = {text: mark for mark, texts in _TEXTS.items() for text in texts}
