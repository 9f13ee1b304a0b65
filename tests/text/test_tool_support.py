"""Conversations with tools lose nothing, whatever a template leaves out."""

from typing import Any

import pytest
from family_tokenizers import FAMILIES, family

from hybridmoe.text.chat_encoding import encode_chat
from hybridmoe.text.chat_template import ChatTemplate
from hybridmoe.text.response import Response
from hybridmoe.text.response_parser import ResponseParser

PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content or '' }}{% endfor %}"
# As DeepSeek-V3's: calls only of messages without content, no declarations.
V3 = (
    "{% for m in messages %}{% if m.role == 'assistant' and m.content is none %}"
    "{% for c in m.tool_calls %}<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ c.type }}"
    "<｜tool▁sep｜>{{ c.function.name }}\n```json\n{{ c.function.arguments }}\n```"
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>{% endfor %}"
    "{% else %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"
)
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
ARGUMENTS = '{"city": "Oslo", "days": 3}'
MARKER = {"dsml": "{#<｜DSML｜function_calls>#}", "deepseek-v3": "{#```json#}"}


def conversation(content: str | None) -> list[dict[str, Any]]:
    function = {"name": "look_up", "arguments": ARGUMENTS}
    call = {"id": "call_1", "type": "function", "function": function}
    return [
        {"role": "user", "content": "Weather? <tool_call> <｜tool▁sep｜>"},
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "name": "look_up", "content": "sunny"},
        {"role": "tool", "tool_call_id": "call_2", "name": "look_up", "content": "rain"},
    ]


@pytest.mark.parametrize("content", [None, "", "Let me see."])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_template_leaves_out_is_in_the_text(name: str, content: str | None) -> None:
    tokenizer, syntax = family(name)
    template = ChatTemplate(PLAIN + MARKER.get(name, ""))
    ids = encode_chat(template, tokenizer, conversation(content), TOOLS)
    prompt = tokenizer.decode(ids, skip_special=False)
    system, _, rest = prompt.partition("[user]")
    assert system.startswith("[system]# Tools") and '"name": "look_up"' in system
    assert "sunny" in rest and "rain" in rest and (content or "") in rest
    begin = rest.index("[assistant]") + len("[assistant]") + len(content or "")
    written = rest[begin : rest.index("[", begin + 1)]
    response = Response(ResponseParser(tokenizer, syntax=syntax, may_call=True, tools=TOOLS))
    for token_id in tokenizer.encode(written, parse_special=True):
        response.push(token_id)
    (call,) = response.tool_calls
    assert (call.name, call.arguments.replace(" ", "")) == ("look_up", ARGUMENTS.replace(" ", ""))
    # the client's own marks are text, those of calls are tokens
    assert [ids.count(i) for i in syntax.token_ids] == [
        ids_of_marks.count(i)
        for ids_of_marks in [
            tokenizer.encode(prompt.replace("<tool_call> <｜tool▁sep｜>", ""), parse_special=True)
        ]
        for i in syntax.token_ids
    ]


@pytest.mark.parametrize("content", [None, "", "Let me see."])
def test_calls_of_deepseek_v3_are_written_in_any_case(content: str | None) -> None:
    tokenizer, _ = family("deepseek-v3")
    ids = encode_chat(ChatTemplate(V3), tokenizer, conversation(content), TOOLS)
    prompt = tokenizer.decode(ids, skip_special=False)
    written = f"function<｜tool▁sep｜>look_up\n```json\n{ARGUMENTS}\n```<｜tool▁call▁end｜>"
    assert prompt.count(written) == 1
    assert (content or "") in prompt


def test_a_template_with_tools_gets_messages_unchanged() -> None:
    template = ChatTemplate(
        "{{ tools | tojson }}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
        "{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments }}{% endfor %}"
        "{% endfor %}"
    )
    tokenizer, _ = family("deepseek-v3.1")
    prompt = tokenizer.decode(encode_chat(template, tokenizer, conversation("Yes."), TOOLS))
    assert prompt.endswith(f"[assistant]Yes.look_up{ARGUMENTS}[tool]sunny[tool]rain")
    assert "# Tools" not in prompt
