"""Chat messages and tools in OpenAI's format: checked, and normalized for templates.

Normalized: `role` is a string; `content` a string, or None beside tool calls; tool calls have `id`,
`type` and `function`, with `arguments` as a JSON string (`parse_tool_arguments` parses them for
templates that take mappings). Missing content of an assistant or tool is empty. The older
`function_call` and role "function" become a tool call and its result. Other keys are kept. The
caller's objects are not changed.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hybridmoe.errors import ConfigError
from hybridmoe.text.content_parts import part_text, result_text

__all__ = [
    "copy_json",
    "normalize_messages",
    "normalize_tools",
    "number_tool_calls",
    "parse_tool_arguments",
]

_MAX_JSON_DEPTH = 64


def normalize_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copy messages in normalized form. Raises ConfigError with the place and the value."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise ConfigError(f"messages is {messages!r:.60}; expected a list of messages")
    if not messages:
        raise ConfigError("messages is empty; expected at least one message")
    return [_check_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def normalize_tools(
    tools: Sequence[Mapping[str, Any]] | None, *, sort_keys: bool = False
) -> list[dict[str, Any]] | None:
    """Copy tool declarations; None without any. Raises ConfigError.

    sort_keys: at all depths, as Kimi K2's code does before its template runs.
    """
    if not tools:
        return None
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise ConfigError(f"tools is {tools!r:.60}; expected a list of declarations")
    for i, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise ConfigError(f"tools[{i}] is {tool!r:.60}; expected a mapping")
        function = tool.get("function")
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ConfigError(f"tools[{i}].function.name is missing; expected a string")
    copies = [copy_json(dict(tool), f"tools[{i}]") for i, tool in enumerate(tools)]
    return [_sorted(copy) for copy in copies] if sort_keys else copies


def number_tool_calls(messages: list[dict[str, Any]]) -> None:
    """Rewrite tool call ids to Kimi K2's `functions.NAME:N`; N counts over the conversation.

    The model was trained on these alone, and stops writing them after seeing others. Results are
    matched to calls by id, or else by function name, or else in order.
    """
    count = 0
    pending: list[_PendingCall] = []
    for message in messages:
        for call in message.get("tool_calls", ()):
            name = call["function"]["name"]
            new_id = f"functions.{name}:{count}"
            count += 1
            pending.append(_PendingCall(call["id"], name, new_id))
            call["id"] = new_id
        if message["role"] == "tool" and pending:
            call_of_result = _find_call(message, pending)
            pending.remove(call_of_result)
            message["tool_call_id"] = call_of_result.new_id


class _PendingCall(NamedTuple):
    """A call without its result."""

    client_id: str
    function: str
    new_id: str


def _find_call(result: Mapping[str, Any], pending: Sequence[_PendingCall]) -> _PendingCall:
    client_id, name = result.get("tool_call_id"), result.get("name")
    by_id = (call for call in pending if client_id and call.client_id == client_id)
    by_name = (call for call in pending if name and call.function == name)
    return next(by_id, None) or next(by_name, None) or pending[0]


def parse_tool_arguments(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replace tool call arguments by their parsed JSON. Raises ConfigError if one is not JSON."""
    out = []
    for i, message in enumerate(messages):
        calls = []
        for call in message.get("tool_calls", ()):
            function = call["function"]
            try:
                arguments = json.loads(function["arguments"])
            except (ValueError, RecursionError):
                raise ConfigError(
                    f"messages[{i}].tool_calls: the arguments of {function['name']!r:.60} are not"
                    " JSON, which this model's template needs"
                ) from None
            calls.append({**call, "function": {**function, "arguments": arguments}})
        out.append({**message, "tool_calls": calls} if calls else message)
    return out


def copy_json(value: Any, where: str, depth: int = 0) -> Any:
    """Copy JSON data, so that a template cannot reach the caller's objects."""
    if depth > _MAX_JSON_DEPTH:
        raise ConfigError(f"{where}: nested more than {_MAX_JSON_DEPTH} deep")
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(k): copy_json(v, where, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [copy_json(v, where, depth + 1) for v in value]
    raise ConfigError(f"{where} is {value!r:.60}; expected JSON data")


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def _check_message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ConfigError(f"{where} is {message!r:.60}; expected a mapping with role and content")
    out = {str(key): copy_json(value, f"{where}.{key}") for key, value in message.items()}
    role = out.get("role")
    if not isinstance(role, str) or not role:
        raise ConfigError(f"{where}.role is {role!r:.60}; expected a string such as 'user'")
    if role == "function":
        role = out["role"] = "tool"
    calls = out.pop("tool_calls", None)
    older = out.pop("function_call", None)
    if older and not calls:
        calls = [{"function": older}]
    if calls:
        if role != "assistant" or not isinstance(calls, list):
            raise ConfigError(f"{where}.tool_calls: expected a list, in an assistant's message")
        out["tool_calls"] = [
            _check_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)
        ]
    content = out.get("content")
    out["content"] = _text_of(result_text(content) if role == "tool" else content, where)
    if out["content"] is None and not calls:
        if role not in ("assistant", "tool"):
            raise ConfigError(f"{where}.content is missing; expected a string")
        out["content"] = ""
    if role == "tool":
        out["tool_call_id"] = out.get("tool_call_id") or ""
        if not isinstance(out["tool_call_id"], str):
            raise ConfigError(f"{where}.tool_call_id: expected a string")
    return out


def _text_of(content: object, where: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ConfigError(f"{where}.content is {content!r:.60}; expected a string or text parts")
    texts: list[str] = []
    for i, part in enumerate(content):
        text = part_text(part)
        if text is None:
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise ConfigError(
                f"{where}.content[{i}] is {kind!r:.60}; expected"
                ' {"type": "text", "text": "..."} (this model reads text only)'
            )
        texts.append(text)
    return "".join(texts)


def _check_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ConfigError(f"{where}.function.name is missing; expected a string")
    arguments = function.get("arguments")
    if isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
    if not isinstance(arguments, str | None):
        raise ConfigError(
            f"{where}.function.arguments is {arguments!r:.60}; expected JSON or a mapping"
        )
    written = {"name": function["name"], "arguments": arguments or "{}"}
    return {"id": str(call.get("id") or ""), "type": "function", "function": written}
