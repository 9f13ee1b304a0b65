"""Tool support of chat templates, and messages for those that leave a part of it out.

Templates do not declare it, so that samples are rendered. DeepSeek-V3's writes no declarations, and
calls only of messages without content; many write neither calls nor results. What is left out is
written into the messages' text, in the form of the model's family, so that nothing is lost.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybridmoe.errors import TemplateError
from hybridmoe.text.tool_syntax import ToolSyntax

__all__ = ["ToolSupport", "complete_messages", "probe_tools"]

Message = dict[str, Any]

_NAME = "sample_function"
_USER = {"role": "user", "content": "x"}


@dataclass(frozen=True, slots=True)
class ToolSupport:
    """Parts of a conversation with tools that a template writes."""

    declares: bool
    writes_calls: bool
    writes_calls_beside_text: bool
    writes_results: bool
    wants_parsed_arguments: bool  # mappings; else JSON text
    empty_content: str | None  # of a message with calls alone


def probe_tools(
    render: Callable[[Sequence[Message], Sequence[Message] | None], str],
) -> ToolSupport:
    """Render samples. render: of messages and tools; raises TemplateError."""

    def has(*texts: str, of: Sequence[Message], tools: Sequence[Message] | None = None) -> bool:
        try:
            rendered = render(of, tools)
        except TemplateError:
            return False
        return any(text in rendered for text in texts)

    def response(content: str | None, arguments: Any) -> Message:
        function = {"name": _NAME, "arguments": arguments}
        call = {"id": "call00000", "type": "function", "function": function}
        return {"role": "assistant", "content": content, "tool_calls": [call]}

    tool = {"type": "function", "function": {"name": _NAME, "description": "x", "parameters": {}}}
    written, parsed = '{"a":"sample_value"}', {"a": "sample_value"}
    wants_parsed = not any(has(written, of=[_USER, response(c, written)]) for c in ("", None))
    arguments = parsed if wants_parsed else written
    call = (_NAME, "sample_value")
    contents = [c for c in ("", None) if has(*call, of=[_USER, response(c, arguments)])]
    result = {
        "role": "tool",
        "tool_call_id": "call00000",
        "name": _NAME,
        "content": "sample_result",
    }
    before = response(contents[0] if contents else "", arguments)
    return ToolSupport(
        declares=has(_NAME, of=[_USER], tools=[tool]),
        writes_calls=bool(contents),
        writes_calls_beside_text=has(*call, of=[_USER, response("y", arguments)]),
        writes_results=has("sample_result", of=[_USER, before, result]),
        wants_parsed_arguments=wants_parsed,
        empty_content=contents[0] if contents else "",
    )


def complete_messages(
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    support: ToolSupport,
    syntax: ToolSyntax | None,
) -> list[Message]:
    """Write into the messages what the template would leave out. Copies what it changes.

    Arguments of calls are JSON text. Without a syntax, calls of messages are in no known form: they
    are left as they are.
    """
    out: list[Message] = []
    count = 0
    for message in messages:
        calls = message.get("tool_calls") or []
        if calls and syntax is not None:
            message = _with_calls(message, support, syntax, count)
        if message["role"] == "tool" and not support.writes_results:
            text = (
                f"Result of {message.get('name') or message['tool_call_id']}:\n{message['content']}"
            )
            if out and out[-1].get("is_result"):
                out[-1]["content"] += f"\n\n{text}"
                continue
            message = {"role": "user", "content": text, "is_result": True}
        count += len(calls)
        out.append(message)
    out = [{k: v for k, v in m.items() if k != "is_result"} if "is_result" in m else m for m in out]
    if tools and not support.declares and syntax is not None:
        text = _declaration(tools, syntax)
        if out and out[0]["role"] == "system":
            out[0] = {**out[0], "content": f"{out[0]['content'] or ''}\n\n{text}".lstrip("\n")}
        else:
            out.insert(0, {"role": "system", "content": text})
    return out


def _with_calls(message: Message, support: ToolSupport, syntax: ToolSyntax, number: int) -> Message:
    content = message["content"] or ""
    if not content and support.writes_calls:
        return {**message, "content": support.empty_content}
    if content and support.writes_calls_beside_text:
        return message
    calls = [call["function"] for call in message["tool_calls"]]
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "content": content + syntax.write(calls, number)}


def _declaration(tools: Sequence[Mapping[str, Any]], syntax: ToolSyntax) -> str:
    """Tell of the tools, and of the form of their calls."""
    lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
    sample = syntax.write([{"name": "NAME", "arguments": '{"ARGUMENT": "VALUE"}'}], 0)
    return "\n".join(
        ["# Tools", "", "You can call these functions, each declared in JSON:", "", *lines, "",
         "Write a call in this form, and end the response behind it:", "", sample]
    )  # fmt: skip
