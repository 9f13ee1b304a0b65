"""Chat templates: Kimi K2's format, selection by metadata, Hugging Face's conventions, errors."""

import datetime
from pathlib import Path
from typing import Any

import pytest
from kimi_chat import ASK, DEFAULT_SYSTEM, HELLO, KIMI, TOKENIZER, kimi_metadata
from tiny_vocab import make_vocabulary

from hybridmoe.errors import TemplateError
from hybridmoe.text.chat_template import ChatTemplate
from hybridmoe.text.tokenizer import Tokenizer


def render(source: str, **context: Any) -> str:
    return ChatTemplate(source).render([context], tools=None)


def test_kimi_format_of_a_plain_question() -> None:
    turn = "<|im_user|>user<|im_middle|>Hello<|im_end|>"
    assert KIMI.render(HELLO) == DEFAULT_SYSTEM + turn + ASK
    assert KIMI.render(HELLO, add_generation_prompt=False) == DEFAULT_SYSTEM + turn


def test_kimi_format_of_names_and_an_own_system_message() -> None:
    messages = [
        {"role": "system", "content": " Be brief.\n"},
        {"role": "user", "name": "Ann", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
    ]
    assert KIMI.render(messages) == (
        "<|im_system|>system<|im_middle|> Be brief.\n<|im_end|>"
        "<|im_user|>Ann<|im_middle|>Hi<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|>Hello!<|im_end|>" + ASK
    )


def test_a_file_without_template_falls_back_to_kimi_or_says_why_not() -> None:
    template = ChatTemplate.from_metadata(kimi_metadata(), TOKENIZER)
    assert template.render(HELLO) == KIMI.render(HELLO)
    deepseek = make_vocabulary("deepseek-v3")
    keys = {
        **kimi_metadata(),
        "tokenizer.ggml.tokens": deepseek.tokens,
        "tokenizer.ggml.pre": "kimi-k2",
    }
    keys |= {
        "tokenizer.ggml.token_type": deepseek.types,
        "tokenizer.ggml.merges": deepseek.merges,
        "tokenizer.ggml.bos_token_id": deepseek.bos_id,
        "tokenizer.ggml.eos_token_id": deepseek.eos_id,
    }
    with pytest.raises(TemplateError, match="no chat template"):
        ChatTemplate.from_metadata(keys, Tokenizer(Path("x"), keys))


def test_the_files_own_template_comes_first_and_gets_its_tokens() -> None:
    template = ChatTemplate.from_metadata(
        kimi_metadata("{{ bos_token }}|{{ eos_token }}"), TOKENIZER
    )
    assert template.render(HELLO) == "[BOS]|<|im_end|>"


def test_named_templates() -> None:
    keys = kimi_metadata() | {
        "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.chat_template.tool_use": "tools",
        "tokenizer.chat_template.default": "plain",
    }
    assert ChatTemplate.from_metadata(keys, TOKENIZER).render(HELLO) == "plain"
    assert ChatTemplate.from_metadata(keys, TOKENIZER, has_tools=True).render(HELLO) == "tools"
    keys["tokenizer.chat_template"] = "main"
    assert ChatTemplate.from_metadata(keys, TOKENIZER).render(HELLO) == "main"
    with pytest.raises(TemplateError, match="expected a string"):
        ChatTemplate.from_metadata(kimi_metadata([1]), TOKENIZER)


def test_conventions_that_real_templates_rely_on() -> None:
    assert render("{% if true %}\n  a\n  {% endif %}\nb") == "  a\nb"  # trim and lstrip blocks
    loop = "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert render(loop) == "01"
    assert render("{{ strftime_now('%Y') }}") == str(datetime.datetime.now().year)
    assert (
        render("{{ messages[0].x | tojson }}", x={"b": "é<", "a": [1]}) == '{"b": "é<", "a": [1]}'
    )
    options = "ensure_ascii=True, separators=(',', ':'), sort_keys=True"
    assert (
        render("{{ messages[0].x|tojson(" + options + ") }}", x={"b": "é", "a": 1})
        == '{"a":1,"b":"\\u00e9"}'
    )
    assert render("{{ messages[0].x | tojson(indent=2) }}", x=[1]) == "[\n  1\n]"
    assert render("{{ 'a{}b{x:>4}'.format(1, x=2.5) }}") == "a1b 2.5"
    source = """
    {%- set ns = namespace(text='', found=false) -%}
    {%- for m in messages[::-1] if m.role != 'x' -%}
      {%- set ns.text = ns.text + m.role ~ loop.index0 ~ ('!' if loop.last else '') -%}
    {%- endfor -%}
    {%- macro shout(what, times=2) -%}{{ (what | upper) * times }}{%- endmacro -%}
    {{- ns.text }} {{ shout('ab') }} {{ 'a</think>b'.split('</think>')[-1].strip() -}}
    {{- ' %s-%d' | format('x', 3) }} {{ '%05.1f' % 2.5 }} {{ ['b', 'a'] | sort | join(', ') -}}
    {{- {'k': 1}.items() | list }} {{ messages | map(attribute='role') | list | length }}"""
    assert render(source, role="user") == ("user0! ABAB b x-3 002.5 a, b[('k', 1)] 1")


def test_raise_exception_reaches_the_user() -> None:
    with pytest.raises(TemplateError, match="line 2: roles must alternate"):
        render("\n{{ raise_exception('roles must\nalternate') }}")


@pytest.mark.parametrize(
    "source",
    ["{% if %}", "{{ 1 +", "{% for %}", "{{ nope() }}", "{{ messages[0].a.b }}", "{{ 1/0 }}",
     "{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as x %}", "{{ lipsum(5) }}",
     "{{ 'x' | nofilter }}", "{{ messages | tojson | fromjson }}", "{{ {} | tojson(default=1) }}",
     "{{ ns | tojson }}"],
)  # fmt: skip
def test_faulty_templates_are_one_line(source: str) -> None:
    with pytest.raises(TemplateError) as caught:
        render(source)
    assert str(caught.value).startswith("chat template") and "\n" not in str(caught.value)
