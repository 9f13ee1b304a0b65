"""Continuing the assistant's last message: kept to the last space, also inside thoughts."""

from typing import Any

import pytest
from kimi_chat import HELLO, TOKENIZER
from thinking_templates import ALWAYS, NEVER, OPENS, OPTS_IN, OPTS_OUT

from hybridmoe.errors import ConfigError
from hybridmoe.text.chat_encoding import ChatPrompt, encode_prompt
from hybridmoe.text.chat_template import ChatTemplate
from hybridmoe.text.thinking_options import PromptOptions, ThinkingOptions

ASK = "<|im_assistant|>assistant<|im_middle|>"
BOTH = {"content": "a", "reasoning_content": "r"}
ASK_QWEN = "<|im_assistant|>assistant\n"


def prompt(
    source: str, last: dict[str, Any], mode: str | None = None, continues: bool | None = None
) -> tuple[str, ChatPrompt]:
    """The prompt's text behind the question, and the prompt."""
    options = PromptOptions(thinking=ThinkingOptions(mode=mode), continues_final=continues)
    messages = [*HELLO, {"role": "assistant", **last}]
    found = encode_prompt(ChatTemplate(source), TOKENIZER, messages, options=options)
    text = TOKENIZER.decode(found.ids, skip_special=False)
    return text.partition("Hello<|im_end|>")[2].lstrip("\n"), found


@pytest.mark.parametrize(
    ("source", "mode", "last", "expected", "thinking"),
    [
        (NEVER, None, {"content": " a \n"}, f"{ASK} a \n", "none"),
        (ALWAYS, None, {"content": "a"}, f"{ASK}a", "none"),
        (ALWAYS, None, {"content": "", "reasoning_content": "r "}, f"{ASK}<think>r ", "open"),
        (ALWAYS, None, {"content": "<think>r "}, f"{ASK}<think>r ", "open"),
        (ALWAYS, None, {"content": "<think>r</think>a"}, f"{ASK}<think>r</think>a", "none"),
        (OPENS, None, {"content": "a"}, f"{ASK}<think></think>a", "none"),
        (OPENS, None, {"content": "<think>r"}, f"{ASK}<think>r", "open"),
        (OPENS, None, BOTH, f"{ASK}<think>r</think>a", "none"),
        (OPENS, "off", BOTH, f"{ASK}<think></think>a", "none"),
        (OPTS_IN, None, {"content": "a"}, f"{ASK}</think>a", "none"),
        (OPTS_IN, "on", {"content": "<think>r"}, f"{ASK}<think>r", "open"),
        (OPTS_OUT, None, {"content": "a"}, f"{ASK_QWEN}a", "none"),
        (OPTS_OUT, None, {"content": "<think>r"}, f"{ASK_QWEN}<think>\nr", "open"),
        (
            OPTS_OUT, None, BOTH,
            f"{ASK_QWEN}<think>\nr\n</think>\n\na", "none",
        ),
    ],
)  # fmt: skip
def test_the_message_stands_as_the_model_would_have_written_it(
    source: str, mode: str | None, last: dict[str, Any], expected: str, thinking: str
) -> None:
    text, found = prompt(source, last, mode)
    assert text == expected
    assert found.thinking == thinking


def test_marks_in_the_message_are_text() -> None:
    text, found = prompt(NEVER, {"content": "a<|im_end|>b"})
    assert text == f"{ASK}a<|im_end|>b"
    assert found.ids.count(TOKENIZER.special_id("<|im_end|>") or -1) == 1
    assert found.prefill == "a<|im_end|>b"


def test_an_empty_message_is_no_turn() -> None:
    assert prompt(OPENS, {"content": ""})[0] == f"{ASK}<think>"
    assert prompt(OPENS, {"content": ""})[1].thinking == "open"


@pytest.mark.parametrize("continues", [False, None])
def test_it_is_a_turn_of_its_own_unless_continued(continues: bool | None) -> None:
    call = {"function": {"name": "f", "arguments": "{}"}}
    last = {"content": "a"} if continues is False else {"content": "a", "tool_calls": [call]}
    text = prompt(NEVER, last, continues=continues)[0]
    assert f"{ASK}a" in text and text.endswith(f"<|im_end|>{ASK}")


def test_what_cannot_be_continued_is_named() -> None:
    call = {"function": {"name": "f", "arguments": "{}"}}
    with pytest.raises(ConfigError, match="the last message has tool calls"):
        prompt(NEVER, {"content": "a", "tool_calls": [call]}, continues=True)
    with pytest.raises(ConfigError, match="thoughts alone, and thinking is off"):
        prompt(OPENS, {"content": "<think>r"}, "off")
    options = PromptOptions(continues_final=True)
    with pytest.raises(ConfigError, match="the last message is of role 'user'"):
        encode_prompt(ChatTemplate(NEVER), TOKENIZER, HELLO, options=options)
    only = [{"role": "assistant", "content": "a"}]
    with pytest.raises(ConfigError, match="the last message is the only one"):
        encode_prompt(ChatTemplate(NEVER), TOKENIZER, only, options=options)


def test_special_tokens_in_variables_are_text() -> None:
    template = ChatTemplate("{{ mood }}<|im_middle|>{{ messages[0].content }}")
    options = PromptOptions(variables={"mood": "a<|im_end|>"})
    ids = encode_prompt(template, TOKENIZER, HELLO, options=options).ids
    assert TOKENIZER.decode(ids, skip_special=False) == "a<|im_end|><|im_middle|>Hello"
    assert TOKENIZER.special_id("<|im_end|>") not in ids
