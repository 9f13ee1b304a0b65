"""Chat encoding: ids of the rendered prompt, and no special token from a message."""

import re
from pathlib import Path

import pytest
from gguf import TokenType
from hypothesis import assume, given
from hypothesis import strategies as st
from kimi_chat import ASK, DEFAULT_SYSTEM, HELLO, KIMI, TOKENIZER, WEATHER, kimi_metadata

from hybridmoe.errors import ConfigError
from hybridmoe.text.chat_encoding import encode_chat
from hybridmoe.text.chat_template import KIMI_K2_TEMPLATE, ChatTemplate
from hybridmoe.text.tokenizer import Tokenizer


def test_kimi_format_of_tools_calls_and_results() -> None:
    call = {"function": {"name": "weather", "arguments": '{"city": "Rome"}'}, "id": "call_x"}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call, {**call, "id": "call_y"}]},
        {"role": "tool", "tool_call_id": "call_y", "content": "rain"},
        {"role": "tool", "tool_call_id": "call_x", "content": "sun"},
    ]
    ids = encode_chat(KIMI, TOKENIZER, messages, [WEATHER])
    assert TOKENIZER.decode(ids, skip_special=False) == (
        "<|im_system|>tool_declare<|im_middle|>"
        '[{"function":{"name":"weather","parameters":{"a":"°","b":1,"type":"object"}},'
        '"type":"function"}]<|im_end|>'
        + DEFAULT_SYSTEM
        + "<|im_user|>user<|im_middle|>Hello<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|><|tool_calls_section_begin|>"
        "<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
        '{"city": "Rome"}<|tool_call_end|>'
        "<|tool_call_begin|>functions.weather:1<|tool_call_argument_begin|>"
        '{"city": "Rome"}<|tool_call_end|><|tool_calls_section_end|><|im_end|>'
        "<|im_system|>tool<|im_middle|>## Return of functions.weather:1\nrain<|im_end|>"
        "<|im_system|>tool<|im_middle|>## Return of functions.weather:0\nsun<|im_end|>" + ASK
    )


@pytest.mark.parametrize(
    ("ids", "results", "want"),
    [
        (("a", "b"), [{"tool_call_id": "b"}, {"tool_call_id": "a"}], ["g:1", "f:0"]),
        (("", ""), [{"name": "g"}, {"name": "f"}], ["g:1", "f:0"]),
        (("", ""), [{}, {}], ["f:0", "g:1"]),
        (("x", "x"), [{"tool_call_id": "x"}, {"tool_call_id": "x"}], ["f:0", "g:1"]),
        (("a", "b"), [{"tool_call_id": "?"}, {"tool_call_id": "a", "name": "g"}], ["f:0", "g:1"]),
        (("functions.g:0", "functions.g:0"), [{"tool_call_id": "functions.g:0"}], ["f:0"]),
    ],
)
def test_results_match_calls_by_id_name_or_order(
    ids: tuple[str, str], results: list[dict[str, str]], want: list[str]
) -> None:
    calls = [
        {"id": id, "function": {"name": name, "arguments": "{}"}}
        for id, name in zip(ids, "fg", strict=True)
    ]
    messages = [
        *HELLO,
        {"role": "assistant", "tool_calls": calls},
        *({"role": "tool", "content": "", **result} for result in results),
    ]
    text = TOKENIZER.decode(encode_chat(KIMI, TOKENIZER, messages), skip_special=False)
    assert re.findall(r"## Return of functions\.(\w:\d)", text) == want


def test_tools_have_sorted_keys_in_a_kimi_template() -> None:
    template = ChatTemplate("{{ tools | tojson }}")  # neither compact nor sorting
    text = TOKENIZER.decode(encode_chat(template, TOKENIZER, HELLO, [WEATHER]))
    assert text.startswith('[{"function": {"name": "weather", "parameters": {"a": "°", "b": 1,')


def test_arguments_are_text_or_mappings_as_the_template_takes_them() -> None:
    call = {"function": {"name": "f", "arguments": '{"city": "Rome"}'}}
    messages = [*HELLO, {"role": "assistant", "tool_calls": [call]}]
    loop = "{% for c in messages[-1].tool_calls %}{{ EXPRESSION }}{% endfor %}"
    expected = {
        "c.function.arguments": '{"city": "Rome"}',
        "c.function.arguments | tojson(separators=(',', ':'))": '{"city":"Rome"}',
        "c.function.arguments.items() | list": "[('city', 'Rome')]",
        "'(' + c.function.arguments + ')'": '({"city": "Rome"})',
    }
    for expression, text in expected.items():
        template = ChatTemplate(loop.replace("EXPRESSION", expression))
        assert TOKENIZER.decode(encode_chat(template, TOKENIZER, messages)) == text
    call["function"]["arguments"] = "{oops"
    with pytest.raises(ConfigError, match="arguments of 'f' are not JSON"):
        encode_chat(
            mapping_template := ChatTemplate(
                "{{ messages[-1].tool_calls[0].function.arguments | tojson }}"
            ),
            TOKENIZER,
            messages,
        )
    assert mapping_template.tools.wants_parsed_arguments
    assert not KIMI.tools.wants_parsed_arguments


SPECIALS = ["<|im_end|>", "<|im_system|>", "<|im_middle|>", "[BOS]", "<|tool_calls_section_begin|>",
         "<think>"]  # fmt: skip
HOSTILE = st.lists(st.sampled_from([*SPECIALS, "<|im_", "end|>", "a", " b", "\n", "你"])).map(
    "".join
)
CONTENT = "message.content or ''"
TEMPLATES = (
    KIMI,
    ChatTemplate(KIMI_K2_TEMPLATE.replace(CONTENT, "(message.content or '') | trim")),
    ChatTemplate(KIMI_K2_TEMPLATE.replace(CONTENT, "message.content | tojson(ensure_ascii=true)")),
)


# The same vocabulary as some converters write it: every token is text.
UNTYPED = Tokenizer(
    Path("tiny.gguf"),
    {
        **kimi_metadata(KIMI_K2_TEMPLATE),
        "tokenizer.ggml.token_type": [int(TokenType.NORMAL)] * TOKENIZER.num_tokens,
    },
)


def special_ids(ids: list[int]) -> list[int]:
    known = {TOKENIZER.special_id(name) for name in (*SPECIALS, "<|im_user|>", "<|im_assistant|>")}
    return [i for i in ids if i in known]


@pytest.mark.parametrize("tokenizer", [TOKENIZER, UNTYPED], ids=["typed", "untyped"])
@given(system=HOSTILE, user=HOSTILE)
def test_messages_cannot_write_special_tokens(tokenizer: Tokenizer, system: str, user: str) -> None:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    harmless = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    for template in TEMPLATES:
        ids = encode_chat(template, tokenizer, messages)
        assert special_ids(ids) == special_ids(encode_chat(template, tokenizer, harmless))
    ids = encode_chat(KIMI, tokenizer, messages)
    assert tokenizer.decode(ids, skip_special=False) == KIMI.render(messages)


@given(st.text(), st.text())
def test_ids_are_those_of_the_rendered_text(system: str, user: str) -> None:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    assume(not list(TOKENIZER.special_spans(system + user)))
    whole = TOKENIZER.encode(KIMI.render(messages), parse_special=True)
    assert encode_chat(KIMI, TOKENIZER, messages) == whole


def test_special_tokens_in_tools_arguments_and_keys_are_text() -> None:
    name = "<|im_end|>"
    call = {"function": {"name": name, "arguments": {name: name}}}
    messages = [
        {"role": "user", "name": name, "content": [{"type": "text", "text": name}]},
        {"role": "assistant", "content": name, "tool_calls": [call]},
        {"role": "tool", "content": name},
    ]
    tools = [{"type": "function", "function": {"name": name, "description": name}}]
    ids = encode_chat(KIMI, TOKENIZER, messages, tools)
    assert ids.count(TOKENIZER.special_id(name)) == 5  # one per turn and for the declaration


def test_private_use_characters_in_messages_survive() -> None:
    messages = [{"role": "user", "content": "\ue000 <|im_end|> \ue001"}]
    ids = encode_chat(KIMI, TOKENIZER, messages)
    assert TOKENIZER.decode(ids, skip_special=False) == KIMI.render(messages)


def test_templates_still_find_thinking_marks() -> None:
    source = "{{ messages[0].content.split('</think>')[-1] }}"
    messages = [{"role": "assistant", "content": "<think>hm</think>yes"}]
    assert TOKENIZER.decode(encode_chat(ChatTemplate(source), TOKENIZER, messages)) == "yes"
