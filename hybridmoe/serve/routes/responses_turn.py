"""The Responses API's items as a conversation of chat messages, which templates know."""

from typing import Any

from hybridmoe.serve.answer import refuse
from hybridmoe.serve.job import Turn
from hybridmoe.serve.schemas.common import ResponseFormat, token_limit
from hybridmoe.serve.schemas.responses import Item, ResponsesRequest, ResponsesTool

__all__ = ["as_turn"]

_TEXT_PARTS = ("input_text", "output_text", "text", "refusal")


def as_turn(body: ResponsesRequest) -> Turn:
    """The conversation, its tools and format. Raises ApiError for what is not supported."""
    sampling: dict[str, Any] = {}
    for name in ("temperature", "top_p"):
        if getattr(body, name) is not None:
            sampling[name] = getattr(body, name)
    limit = token_limit(body.max_output_tokens)
    if limit is not None:
        sampling["max_tokens"] = limit
    wants_logprobs = "message.output_text.logprobs" in (body.include or ())
    choice = body.tool_choice or "auto"
    return Turn(
        messages=_messages(body),
        tools=[_tool(tool, i) for i, tool in enumerate(body.tools or ())],
        tool_choice=choice if isinstance(choice, str) else "required",
        forced_tool=None if isinstance(choice, str) else choice.name,
        is_parallel=body.parallel_tool_calls is not False,
        format=_format(body),
        sampling=sampling,
        top_logprobs=(body.top_logprobs or 0) if wants_logprobs else None,
    )


def _format(body: ResponsesRequest) -> ResponseFormat | None:
    given = body.text.format if body.text is not None else None
    if given is None:
        return None
    if given.type != "json_schema":
        return ResponseFormat(type=given.type)
    if given.schema_ is None:
        raise refuse("text.format.schema", "is missing; expected a JSON schema")
    return ResponseFormat(type="json_schema", json_schema={"schema": given.schema_})


def _tool(tool: ResponsesTool, index: int) -> dict[str, Any]:
    if tool.type != "function":
        raise refuse(f"tools[{index}].type", f"{tool.type!r:.60}; supported: 'function'")
    if tool.name is None:
        raise refuse(f"tools[{index}].name", "is missing; expected a function's name")
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.parameters or {}}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _messages(body: ResponsesRequest) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    if body.instructions:
        out.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*out, {"role": "user", "content": body.input}]
    for i, item in enumerate(body.input):
        _append(out, item, f"input[{i}]")
    return out


def _append(messages: list[dict[str, Any]], item: Item, where: str) -> None:
    """Add an item; what one answer of the assistant consisted of becomes one message again."""
    kind = item.type or "message"
    if kind == "message":
        role = item.role or "user"
        content = _text(item.content or "", f"{where}.content")
        if role == "assistant":
            message = _open_answer(messages, may_have_text=False)
            message["content"] = content
        else:
            messages.append({"role": role, "content": content})
    elif kind == "reasoning":
        content = _text(item.content or "", f"{where}.content")
        if content:
            messages.append({"role": "assistant", "content": "", "reasoning_content": content})
    elif kind == "function_call":
        if item.name is None:
            raise refuse(f"{where}.name", "is missing; expected a function's name")
        function = {"name": item.name, "arguments": item.arguments or "{}"}
        call = {"id": item.call_id or "", "type": "function", "function": function}
        message = _open_answer(messages, may_have_text=True)
        message.setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        content = _text(item.output or "", f"{where}.output")
        result = {"role": "tool", "tool_call_id": item.call_id or "", "content": content}
        messages.append(result)
    else:
        raise refuse(
            f"{where}.type",
            f"{kind!r:.60}; supported: message, reasoning, function_call, function_call_output",
        )


def _open_answer(messages: list[dict[str, Any]], *, may_have_text: bool) -> dict[str, Any]:
    """The assistant's message that is still being put together, or a new one."""
    last = messages[-1] if messages else {}
    is_open = last.get("role") == "assistant" and "tool_calls" not in last and not last["content"]
    if may_have_text:
        is_open = last.get("role") == "assistant"
    if not is_open:
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _text(content: str | list[dict[str, Any]], where: str) -> str:
    if isinstance(content, str):
        return content
    out = []
    for i, part in enumerate(content):
        kind = part.get("type")
        text = part.get("refusal") if kind == "refusal" else part.get("text")
        if kind not in (*_TEXT_PARTS, "reasoning_text") or not isinstance(text, str):
            raise refuse(f"{where}[{i}].type", f"{kind!r:.60}; supported: input_text, output_text")
        out.append(text)
    return "".join(out)
