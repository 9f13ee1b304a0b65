"""Templates give the text that models were trained on; hostile ones end in one line, soon."""

import datetime
import json
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from parsed_response import parse_response
from tiny_vocab import make_vocabulary

from hybridmoe.errors import ConfigError, TemplateError
from hybridmoe.text.chat_encoding import encode_chat
from hybridmoe.text.chat_template import KIMI_K2_TEMPLATE, ChatTemplate
from hybridmoe.text.tokenizer import Tokenizer

HELLO = [{"role": "user", "content": "Hello"}]
ASK = "<|im_assistant|>assistant<|im_middle|>"
DEFAULT = (
    "<|im_system|>system<|im_middle|>"
    "You are Kimi, an AI assistant created by Moonshot AI.<|im_end|>"
)
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "b": 1, "a": "°"}},
}


def metadata(template: object = None) -> dict[str, object]:
    vocabulary = make_vocabulary("kimi-k2")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "kimi-k2",
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.token_type": vocabulary.types,
        "tokenizer.ggml.merges": vocabulary.merges,
        "tokenizer.ggml.bos_token_id": vocabulary.bos_id,
        "tokenizer.ggml.eos_token_id": vocabulary.eos_id,
    } | ({} if template is None else {"tokenizer.chat_template": template})


TOKENIZER = Tokenizer(Path("tiny.gguf"), metadata())
KIMI = ChatTemplate(KIMI_K2_TEMPLATE)


def render(source: str, **context: Any) -> str:
    return ChatTemplate(source).render([context], tools=None)


# Kimi K2's format


def test_kimi_format_of_a_plain_question() -> None:
    turn = "<|im_user|>user<|im_middle|>Hello<|im_end|>"
    assert KIMI.render(HELLO) == DEFAULT + turn + ASK
    assert KIMI.render(HELLO, add_generation_prompt=False) == DEFAULT + turn


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
        '"type":"function"}]<|im_end|>' + DEFAULT + "<|im_user|>user<|im_middle|>Hello<|im_end|>"
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
def test_results_find_their_calls_by_id_name_or_order(
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


def test_a_file_without_template_falls_back_to_kimi_or_says_why_not() -> None:
    template = ChatTemplate.from_metadata(metadata(), TOKENIZER)
    assert template.render(HELLO) == KIMI.render(HELLO)
    deepseek = make_vocabulary("deepseek-v3")
    keys = {**metadata(), "tokenizer.ggml.tokens": deepseek.tokens, "tokenizer.ggml.pre": "kimi-k2"}
    keys |= {
        "tokenizer.ggml.token_type": deepseek.types,
        "tokenizer.ggml.merges": deepseek.merges,
        "tokenizer.ggml.bos_token_id": deepseek.bos_id,
        "tokenizer.ggml.eos_token_id": deepseek.eos_id,
    }
    with pytest.raises(TemplateError, match="no chat template"):
        ChatTemplate.from_metadata(keys, Tokenizer(Path("x"), keys))


def test_the_files_own_template_comes_first_and_gets_its_tokens() -> None:
    template = ChatTemplate.from_metadata(metadata("{{ bos_token }}|{{ eos_token }}"), TOKENIZER)
    assert template.render(HELLO) == "[BOS]|<|im_end|>"


def test_named_templates() -> None:
    keys = metadata() | {
        "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.chat_template.tool_use": "tools",
        "tokenizer.chat_template.default": "plain",
    }
    assert ChatTemplate.from_metadata(keys, TOKENIZER).render(HELLO) == "plain"
    assert ChatTemplate.from_metadata(keys, TOKENIZER, has_tools=True).render(HELLO) == "tools"
    keys["tokenizer.chat_template"] = "main"
    assert ChatTemplate.from_metadata(keys, TOKENIZER).render(HELLO) == "main"
    with pytest.raises(TemplateError, match="expected a string"):
        ChatTemplate.from_metadata(metadata([1]), TOKENIZER)


# Conventions of Hugging Face's templates


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


def test_tools_reach_kimis_own_template_with_sorted_keys() -> None:
    template = ChatTemplate("{{ tools | tojson }}")  # neither compact nor sorting
    text = TOKENIZER.decode(encode_chat(template, TOKENIZER, HELLO, [WEATHER]))
    assert text.startswith('[{"function": {"name": "weather", "parameters": {"a": "°", "b": 1,')


def test_arguments_have_the_form_that_the_template_takes() -> None:
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
            template_of_mappings := ChatTemplate(
                "{{ messages[-1].tool_calls[0].function.arguments | tojson }}"
            ),
            TOKENIZER,
            messages,
        )
    assert template_of_mappings.wants_parsed_arguments and not KIMI.wants_parsed_arguments


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


# Escapes


@pytest.mark.parametrize(
    "source",
    ["{{ ''.__class__.__mro__ }}", "{{ ''['__class__']['__mro__'][1].__subclasses__() }}",
     "{{ '' | attr('__class__') }}", "{{ cycler.__init__.__globals__.os }}",
     "{{ lipsum.__globals__['os'].popen('id').read() }}", "{{ self.__init__.__globals__ }}",
     "{{ range.__init__ }}", "{{ namespace.__init__.__globals__ }}",
     "{{ raise_exception.__globals__ }}", "{{ strftime_now.__globals__.re }}",
     "{{ '{0.__class__.__mro__}'.format('') }}", "{{ '{x.__class__}'.format_map({'x': ''}) }}",
     "{{ '%s' | format(raise_exception.__globals__) }}", "{{ messages.sort() }}",
     "{{ messages[0].update({'a': 1}) }}", "{{ messages | map(attribute='__class__') | first }}",
     "{{ (messages | map('attr', '__class__') | list)[0].mro() }}",
     "{{ messages | groupby('__class__') | first | first }}", "{{ dict.mro() }}",
     "{{ dict.fromkeys([1]) }}",
     "{% macro m() %}{% endmacro %}{{ m.__call__.__globals__ }}", "{{ loop.__class__ }}",
     "{{ messages | sum(start=[].__class__) }}", "{{ [].__reduce__() }}",
     "{{ messages[0].append(1) }}", "{{ messages.append(1) }}", "{{ messages.clear() }}",
     "{{ (1).__class__.__base__.__subclasses__() }}", "{{ (1).to_bytes(9, 'big') }}",
     "{{ environment.globals }}{{ messages.pop() }}", "{{ caller.__globals__ }}"],
)  # fmt: skip
def test_no_way_out_of_the_sandbox(source: str) -> None:
    messages = [{"role": "user"}]
    try:
        text = ChatTemplate(source).render(messages)
    except TemplateError as error:
        assert "\n" not in str(error)
    else:  # an undefined value prints nothing
        assert text in ("", "None")  # what append returns
    assert messages == [{"role": "user"}]


# Running away


@pytest.fixture
def little_memory() -> Iterator[None]:
    """One GiB more than now, so that what asks for too much shows as a MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


DOUBLING = (
    "{% set ns = namespace(x=START) %}{% for i in range(200) %}{% set ns.x = STEP %}{% endfor %}"
)


# What a limit says; not a MemoryError, and not a mistake in the template.
LIMITS = re.compile(
    "too large|longer than|too deeply|is unsafe|No filter named|too big|a format with a width"
    "|unusual length|plain conversions|expected at most|300 digits|more than 16384 names"
)


def doubling(start: str, step: str) -> str:
    return DOUBLING.replace("START", start).replace("STEP", step)


@pytest.mark.parametrize(
    "source",
    ["{% for i in range(10**9) %}{% endfor %}", "{{ 'a' * 10**10 }}", "{{ [0] * 10**10 }}",
     "{{ 10 ** 99999 }}", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
     "{% endfor %}", "{{ range(99999) | map('string') | join('x' * 99999) }}",
     "{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
     "{% set s %}{% for a in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endset %}",
     "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
     "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(80) }}",
     "{% for x in [1, 2] recursive %}{% if loop.depth < 80 %}{{ loop([1, 2]) }}{% endif %}"
     "{% endfor %}", "{% block b %}{{ self.b() }}{% endblock %}",
     doubling("'ab'", "ns.x ~ ns.x"), doubling("'ab'", "ns.x + ns.x"), doubling("[1]", "ns.x * 2"),
     doubling("[1]", "[ns.x, ns.x]"), doubling("[1]", "(ns.x, ns.x)"),
     doubling("[1]", "{'a': ns.x, 'b': ns.x}"), doubling("[1]", "dict(a=ns.x, b=ns.x)"),
     doubling("3", "ns.x * ns.x"), doubling("'ab'", "ns.x.replace('a', ns.x)"),
     doubling("'ab'", "ns.x | replace('b', ns.x)"), doubling("'ab'", "[ns.x, ns.x] | join"),
     doubling("'ab'", "ns.x.join([ns.x, ns.x])"), doubling("'ab'", "'%s%s' % (ns.x, ns.x)"),
     doubling("'ab'", "'%s%s' | format(ns.x, ns.x)"), 
     doubling("namespace()", "namespace(a=ns.x, b=ns.x)") + "{{ ns.x }}",
     "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
     "{% set ns = namespace() %}{% set ns.a = [ns, ns] %}{{ ns.a }}",
     "{% set top = [[], []] %}{% for side in top %}{% set ns = namespace(at=side) %}"
     "{% for i in range(60) %}{% set new = [] %}{% set _ = ns.at.append(new) %}"
     "{% set _ = ns.at.append(new) %}{% set ns.at = new %}{% endfor %}{% endfor %}"
     "{{ COMPARISON }}".replace("COMPARISON", "top[0] == top[1]"),
     "{% set a = [] %}{% set _ = a.append(a) %}{{ a }}",
     "{{ '%1000000000d' % 1 }}", "{{ '%.1000000000f' % 1 }}", "{{ '%*d' % (10**9, 1) }}",
     "{{ '%9999999999s' | format('x') }}", "{{ '{:>9999999999}'.format(1) }}",
     "{{ '{:>{}}'.format(1, 10**9) }}", "{{ ('{0}' * 99999).format('x' * 99999) }}",
     "{{ ('%(a)s' * 99999) % {'a': 'x' * 99999} }}",
     "{{ 'x'.center(10**10) }}", "{{ 'x'.zfill(10**10) }}", "{{ '\t'.expandtabs(10**10) }}",
     "{{ 'x' | center(10**10) }}", "{{ 'a\nb' | indent(10**10) }}", 
     "{{ [1] | batch(10**9, 0) | list }}",
     "{{ [[1]] | tojson(indent=10**9) }}", "{{ strftime_now('%999999999d') }}",
     "{{ 1.5 | round(10**9, 'ceil') }}", "{{ 1.5 | round(precision=10**9, method='floor') }}",
     "{{ ('a' * 9999999).rfind('b' + 'a' * 4999999) }}",
     "{% set top = [[], []] %}{% for side in top %}{% set ns = namespace(at=side) %}"
     "{% for i in range(60) %}{% set new = [] %}{% set _ = ns.at.append(new) %}"
     "{% set _ = ns.at.append(new) %}{% set ns.at = new %}{% endfor %}{% endfor %}"
     "{% for side in top %}{{ loop.changed(side) }}{% endfor %}",
     "{{ 'x' | wordwrap(1) }}", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
     "{{ 1" + " + 1" * 20_000 + " }}", "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
     "x" * 300_000, "{{ [[]]" + "[0:]" * 5000 + " }}"],
)  # fmt: skip
@pytest.mark.usefixtures("little_memory")
def test_no_template_runs_away(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybridmoe.text.template_sandbox._DEADLINE_S", 0.5)
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source).render(HELLO)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert LIMITS.search(str(caught.value)), caught.value


def test_copies_of_a_long_message_are_paid_for() -> None:
    slices = "".join(f"{{% set a{i} = messages[0].content[{i}:] %}}" for i in range(1000))
    with pytest.raises(TemplateError, match="too large"):
        ChatTemplate(slices).render([{"role": "user", "content": "x" * 1_000_000}])


def test_long_conversations_are_within_the_budget() -> None:
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": "word " * 500} for i in range(2000)
    ]
    assert len(KIMI.render(messages)) > 5_000_000


# No special token from a message

NAMES = ["<|im_end|>", "<|im_system|>", "<|im_middle|>", "[BOS]", "<|tool_calls_section_begin|>",
         "<think>"]  # fmt: skip
HOSTILE = st.lists(st.sampled_from([*NAMES, "<|im_", "end|>", "a", " b", "\n", "你"])).map("".join)
CONTENT = "message.content or ''"
TEMPLATES = (
    KIMI,
    ChatTemplate(KIMI_K2_TEMPLATE.replace(CONTENT, "(message.content or '') | trim")),
    ChatTemplate(KIMI_K2_TEMPLATE.replace(CONTENT, "message.content | tojson(ensure_ascii=true)")),
)


def special_ids(ids: list[int]) -> list[int]:
    known = {TOKENIZER.special_id(name) for name in (*NAMES, "<|im_user|>", "<|im_assistant|>")}
    return [i for i in ids if i in known]


@given(HOSTILE, HOSTILE)
def test_messages_cannot_write_special_tokens(system: str, user: str) -> None:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    harmless = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    for template in TEMPLATES:
        ids = encode_chat(template, TOKENIZER, messages)
        assert special_ids(ids) == special_ids(encode_chat(template, TOKENIZER, harmless))
    ids = encode_chat(KIMI, TOKENIZER, messages)
    assert TOKENIZER.decode(ids, skip_special=False) == KIMI.render(messages)


@given(st.text(), st.text())
def test_ids_are_those_of_the_rendered_text(system: str, user: str) -> None:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    assume(not list(TOKENIZER.special_spans(system + user)))
    whole = TOKENIZER.encode(KIMI.render(messages), parse_special=True)
    assert encode_chat(KIMI, TOKENIZER, messages) == whole


def test_names_in_tools_arguments_and_keys_are_text_too() -> None:
    name = "<|im_end|>"
    call = {"function": {"name": name, "arguments": {name: name}}}
    messages = [
        {"role": "user", "name": name, "content": [{"type": "text", "text": name}]},
        {"role": "assistant", "content": name, "tool_calls": [call]},
        {"role": "tool", "content": name},
    ]
    tools = [{"type": "function", "function": {"name": name, "description": name}}]
    ids = encode_chat(KIMI, TOKENIZER, messages, tools)
    assert ids.count(TOKENIZER.special_id(name)) == 5  # one for each turn and the declaration


def test_private_use_characters_in_messages_survive() -> None:
    messages = [{"role": "user", "content": "\ue000 <|im_end|> \ue001"}]
    ids = encode_chat(KIMI, TOKENIZER, messages)
    assert TOKENIZER.decode(ids, skip_special=False) == KIMI.render(messages)


def test_templates_still_find_the_marks_of_thinking() -> None:
    source = "{{ messages[0].content.split('</think>')[-1] }}"
    messages = [{"role": "assistant", "content": "<think>hm</think>yes"}]
    assert TOKENIZER.decode(encode_chat(ChatTemplate(source), TOKENIZER, messages)) == "yes"


# Messages


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        ("hi", "messages is 'hi'"),
        ([7], r"messages\[0\] is 7"),
        ([{"content": "x"}], r"messages\[0\].role is None"),
        ([{"role": 3, "content": "x"}], "role is 3"),
        ([{"role": "user"}], "content is missing"),
        ([{"role": "user", "content": 5}], "content is 5"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "'image_url'; expected"),
        ([{"role": "user", "content": "x", "tool_calls": [{}]}], "in an assistant's message"),
        ([{"role": "assistant", "tool_calls": [{}]}], "function.name is missing"),
        ([{"role": "assistant", "tool_calls": 7}], "expected a list"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 3}}]}],
            "arguments is 3",
        ),
        ([{"role": "user", "content": "x", "extra": object()}], "extra is <object"),
    ],
)
def test_unusable_messages_are_one_line(messages: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        encode_chat(KIMI, TOKENIZER, messages)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tools", ["x", [1], [{}], [{"function": {"name": 3}}]])
def test_unusable_tools_are_one_line(tools: Any) -> None:
    with pytest.raises(ConfigError, match="tools"):
        encode_chat(KIMI, TOKENIZER, HELLO, tools)


def test_the_callers_messages_are_not_changed() -> None:
    messages = [{"role": "assistant", "tool_calls": [{"id": "x", "function": {"name": "f"}}]}]
    before = json.dumps(messages)
    encode_chat(KIMI, TOKENIZER, messages)
    assert json.dumps(messages) == before


# Tool calls in responses


def parsed(text: str) -> tuple[str, list[tuple[str, str]]]:
    response = parse_response(TOKENIZER.encode(text, parse_special=True), TOKENIZER)
    return response.text, [(call.name, call.arguments) for call in response.tool_calls]


CALL = (
    '<|tool_call_begin|>functions.get_time:0<|tool_call_argument_begin|> {"a": 1} <|tool_call_end|>'
)
SECTION = f"<|tool_calls_section_begin|>{CALL}<|tool_calls_section_end|>"


def test_calls_are_split_from_the_text() -> None:
    assert parsed(f"Look: {SECTION} done") == ("Look:  done", [("get_time", '{"a": 1}')])
    ids = TOKENIZER.encode(SECTION, parse_special=True)
    (call,) = parse_response(ids, TOKENIZER).tool_calls
    assert call.to_openai() == {
        "id": "functions.get_time:0",
        "type": "function",
        "function": {"name": "get_time", "arguments": '{"a": 1}'},
    }


@pytest.mark.parametrize(
    ("text", "visible", "calls"),
    [
        ("no calls", "no calls", []),
        (f"<|tool_calls_section_begin|>{CALL}{CALL}", "", [("get_time", '{"a": 1}')] * 2),
        (f"a{CALL}b", "ab", [("get_time", '{"a": 1}')]),
        (SECTION.replace("functions.", "").replace(":0", ""), "", [("get_time", '{"a": 1}')]),
        (SECTION.replace("get_time", "get-time"), "", [("get-time", '{"a": 1}')]),
        (SECTION.replace('{"a": 1}', ""), "", [("get_time", "{}")]),
        (SECTION.replace("<|tool_call_end|>", ""), "", [("get_time", '{"a": 1}')]),
        ("a" + SECTION[: SECTION.index("1}")], "a", [("get_time", '{"a":')]),
        ("<|tool_calls_section_begin|>junk<|tool_calls_section_end|>b", "b", []),
        ("<|tool_call_end|>x<|tool_call_argument_begin|>y", "xy", []),
    ],
)
def test_strays_that_the_model_is_known_for(
    text: str, visible: str, calls: list[tuple[str, str]]
) -> None:
    assert parsed(text) == (visible, calls)


def test_names_written_as_text_are_no_calls() -> None:
    ids = TOKENIZER.encode(SECTION)
    response = parse_response(ids, TOKENIZER)
    assert (response.text, response.tool_calls) == (SECTION, [])
