"""Kimi K2's chat format: the jinja template of the GGUF, and an equal renderer in segments.

Training needs the tokens that the assistant wrote, which a template does not mark; so `segments`
builds the same text in pieces. A test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from hybridmoe.demo.corpus.base import Call, Dialogue

CHAT_TEMPLATE = """\
{%- if tools -%}
<|im_system|>tool_declare<|im_middle|>{{ tools | tojson(separators=(',', ':'), ensure_ascii=False, sort_keys=True) }}<|im_end|>
{%- endif -%}
{%- for message in messages -%}
{%- set role = message.get('name') or message['role'] -%}
{%- if message['role'] == 'system' -%}
<|im_system|>{{ role }}<|im_middle|>
{%- elif message['role'] == 'user' -%}
<|im_user|>{{ role }}<|im_middle|>
{%- elif message['role'] == 'assistant' -%}
<|im_assistant|>{{ role }}<|im_middle|>
{%- else -%}
<|im_system|>{{ role }}<|im_middle|>
{%- endif -%}
{%- if message['role'] == 'tool' -%}
{{ '## Return of ' + message['tool_call_id'] + '\\n' }}
{%- endif -%}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- elif message['content'] -%}
{%- for part in message['content'] -%}
{%- if part is string -%}{{ part }}{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'assistant' and message.get('tool_calls') -%}
<|tool_calls_section_begin|>
{%- for call in message['tool_calls'] -%}
<|tool_call_begin|>{{ call['id'] }}<|tool_call_argument_begin|>
{%- if call['function']['arguments'] is string -%}
{{ call['function']['arguments'] }}
{%- else -%}
{{ call['function']['arguments'] | tojson(separators=(',', ':'), ensure_ascii=False) }}
{%- endif -%}
<|tool_call_end|>
{%- endfor -%}
<|tool_calls_section_end|>
{%- endif -%}
<|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_assistant|>assistant<|im_middle|>
{%- endif -%}
"""  # noqa: E501


class Segment(NamedTuple):
    """Piece of a rendered dialogue: a special token or plain text, and its author."""

    text: str
    is_special: bool
    is_reply: bool
    family: str


def compact(value: Any) -> str:
    """Format JSON as the template does: compact, sorted keys."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=True)


def messages(dialogue: Dialogue) -> list[dict[str, Any]]:
    """Convert a dialogue to OpenAI messages; tool call ids count over the whole dialogue."""
    out: list[dict[str, Any]] = []
    if dialogue.system:
        out.append({"role": "system", "content": dialogue.system})
    count = 0
    for turn in dialogue.turns:
        out.append({"role": "user", "content": turn.user})
        if turn.calls:
            ids = [f"functions.{call.name}:{count + i}" for i, call in enumerate(turn.calls)]
            count += len(ids)
            calls = [_call(name, call) for name, call in zip(ids, turn.calls, strict=True)]
            out.append({"role": "assistant", "content": "", "tool_calls": calls})
            for name, call in zip(ids, turn.calls, strict=True):
                out.append({"role": "tool", "tool_call_id": name, "content": call.result})
        out.append({"role": "assistant", "content": turn.reply})
    return out


def _call(name: str, call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": compact(call.arguments)}
    return {"id": name, "type": "function", "function": function}


def segments(dialogue: Dialogue) -> Iterator[Segment]:
    """Render a dialogue in pieces."""

    def head(opening: str, role: str, family: str = "") -> Iterator[Segment]:
        yield Segment(opening, True, False, family)
        yield Segment(role, False, False, family)
        yield Segment("<|im_middle|>", True, False, family)

    if dialogue.tools:
        yield from head("<|im_system|>", "tool_declare")
        yield Segment(compact(dialogue.tools), False, False, "")
        yield Segment("<|im_end|>", True, False, "")
    families = iter(
        [f for turn in dialogue.turns for f in [turn.family] * (2 if turn.calls else 1)]
    )
    family = ""
    for message in messages(dialogue):
        role = message["role"]
        is_reply = role == "assistant"
        if is_reply:
            family = next(families)
        opening = {"user": "<|im_user|>", "assistant": "<|im_assistant|>"}.get(
            role, "<|im_system|>"
        )
        yield from head(opening, role, family if is_reply else "")
        text = message["content"]
        if role == "tool":
            text = f"## Return of {message['tool_call_id']}\n{text}"
        if text:
            yield Segment(text, False, is_reply, family if is_reply else "")
        if message.get("tool_calls"):
            yield Segment("<|tool_calls_section_begin|>", True, True, family)
            for call in message["tool_calls"]:
                yield Segment("<|tool_call_begin|>", True, True, family)
                yield Segment(call["id"], False, True, family)
                yield Segment("<|tool_call_argument_begin|>", True, True, family)
                yield Segment(call["function"]["arguments"], False, True, family)
                yield Segment("<|tool_call_end|>", True, True, family)
            yield Segment("<|tool_calls_section_end|>", True, True, family)
        yield Segment("<|im_end|>", True, is_reply, family if is_reply else "")
