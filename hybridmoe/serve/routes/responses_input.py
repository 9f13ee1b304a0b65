"""Conversion of the Responses API's items to chat messages."""

import json
from typing import Any

from hybridmoe.serve.compaction import messages_of
from hybridmoe.serve.conversation_store import ConversationStore
from hybridmoe.serve.errors import ApiError, unsupported_value
from hybridmoe.serve.inputs import ChatInput
from hybridmoe.serve.response_store import ResponseStore
from hybridmoe.serve.routes.hosted_tools import hosted_text
from hybridmoe.serve.schemas.common import token_limit
from hybridmoe.serve.schemas.output import ResponseFormat
from hybridmoe.serve.schemas.responses import (
    ConversationRef,
    Item,
    ResponsesAllowedTools,
    ResponsesNamedTool,
    ResponsesRequest,
    ResponsesTool,
)
from hybridmoe.serve.stored_items import with_id
from hybridmoe.text.content_parts import result_text

__all__ = ["chat_input", "conversation", "conversation_id", "function_tools", "new_items"]

_TEXT_PARTS = ("input_text", "output_text", "text", "refusal")
# What hosted services are and may do: not shown to the model.
_SKIPPED = ("mcp_list_tools", "mcp_approval_request", "mcp_approval_response")
_CALL_FIELDS = ("input", "action", "operation")  # arguments of calls of other tools


def conversation_id(body: ResponsesRequest) -> str | None:
    """Get the id of the conversation that a request continues, if any."""
    given = body.conversation
    return given.id if isinstance(given, ConversationRef) else given or None


def conversation(
    body: ResponsesRequest, responses: ResponseStore, conversations: ConversationStore
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Collect the items before a request, and its own, which have ids.

    Errors: ApiError for a reference that is not stored.
    """
    before: list[dict[str, Any]] = []
    name = conversation_id(body)
    if body.previous_response_id and name:
        raise ApiError(
            400, "expected conversation or previous_response_id, not both", param="conversation"
        )
    if body.previous_response_id:
        stored = responses.items(body.previous_response_id)
        if stored is None:
            raise ApiError(
                400,
                f"Previous response with id {body.previous_response_id!r:.80} not found: the last"
                " ones are kept, but for those with store: false.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        before = stored
    elif name:
        found = conversations.get(name)
        if found is None:
            raise ApiError(
                404,
                f"Conversation with id {name!r:.80} not found: the last ones are kept.",
                param="conversation",
                code="conversation_not_found",
            )
        before = found.parsed_items()
    if isinstance(body.input, str):
        if not body.input and before:
            return before, []
        return before, [with_id({"type": "message", "role": "user", "content": body.input})]
    return before, new_items(body.input, responses, "input")


def new_items(items: list[Item], store: ResponseStore, where: str) -> list[dict[str, Any]]:
    """Convert items of a request, with stored ones in place of references; each has an id.

    Errors: ApiError for a reference that is not stored, or an item of an unsupported type.
    """
    given = [item.model_dump(exclude_none=True) for item in items]
    wanted = {item.id or "" for item, one in zip(items, given, strict=True) if _refers(item, one)}
    found = store.find(wanted)
    out = []
    for item, one in zip(items, given, strict=True):
        if not _refers(item, one):
            out.append(with_id(one))
        elif item.id in found:
            out.append(found[item.id])
        else:
            raise _not_found(item.id)
    _messages(None, out, where)  # refuses what a later response could not use
    return out


def chat_input(body: ResponsesRequest, items: list[dict[str, Any]]) -> ChatInput:
    """Convert a conversation, its tools and options. Raises ApiError for unsupported ones."""
    sampling = body.sampling()
    limit = token_limit(body.max_output_tokens, body.n_predict)
    if limit is not None:
        sampling["max_tokens"] = limit
    wants_logprobs = "message.output_text.logprobs" in (body.include or ())
    return ChatInput(
        messages=_messages(body.instructions, items),
        tools=[_tool(tool, i) for i, tool in function_tools(body)],
        **_tool_choice(body),
        is_parallel=body.parallel_tool_calls is not False,
        format=body.structured_format(**{"text.format": _text_format(body)}),
        thinking=body.thinking_options(),
        template_kwargs=body.template_variables(),
        sampling=sampling,
        top_logprobs=(body.top_logprobs or 0) if wants_logprobs else None,
    )


def function_tools(body: ResponsesRequest) -> list[tuple[int, ResponsesTool]]:
    """Select the tools shown to the model, with their places in the request."""
    return [(i, tool) for i, tool in enumerate(body.tools or ()) if tool.type == "function"]


def _refers(item: Item, given: dict[str, Any]) -> bool:
    """Test whether an item stands for a stored one."""
    return item.type == "item_reference" or given.keys() == {"id"}


def _not_found(item_id: str | None) -> ApiError:
    return ApiError(
        400,
        f"Item with id {item_id!r:.80} not found. Items are not persisted when `store` is set"
        " to false, and only the last responses' are kept.",
        param="input",
    )


def _tool_choice(body: ResponsesRequest) -> dict[str, Any]:
    choice = body.tool_choice or "auto"
    if isinstance(choice, ResponsesNamedTool):
        return {"tool_choice": "required", "forced_tool": choice.name}
    if isinstance(choice, ResponsesAllowedTools):
        names = [tool.name for tool in choice.tools if tool.type == "function"]
        return {"tool_choice": choice.mode, "allowed_tools": names}
    return {"tool_choice": choice}


def _text_format(body: ResponsesRequest) -> ResponseFormat | None:
    given = body.text.format if body.text is not None else None
    if given is None or given.type == "text":
        return None
    if given.type != "json_schema":
        return ResponseFormat(type=given.type)
    if given.schema_ is None:
        raise unsupported_value("text.format.schema", "is missing; expected a JSON schema")
    return ResponseFormat(type="json_schema", json_schema={"schema": given.schema_})


def _tool(tool: ResponsesTool, index: int) -> dict[str, Any]:
    if tool.name is None:
        raise unsupported_value(f"tools[{index}].name", "is missing; expected a function's name")
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.parameters or {}}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _messages(
    instructions: str | None, items: list[dict[str, Any]], where: str = "input"
) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    if instructions:
        out.append({"role": "system", "content": instructions})
    first = _after_compaction(out, items, where)
    is_after_hosted = False  # work of a hosted tool belongs to the message that follows it
    for i, given in enumerate(items[first:], first):
        item = Item.model_validate(given)
        if _is_hosted(item):
            lines = _open_lines(out, may_have_text=is_after_hosted)
            lines.append(hosted_text(given))
            is_after_hosted = True
        elif item.type not in _SKIPPED:
            _append(out, item, f"{where}[{i}]", is_after_hosted=is_after_hosted)
            is_after_hosted = False
    for message in out:
        if isinstance(message["content"], list):
            message["content"] = "\n".join(filter(None, message["content"]))
    return out or [{"role": "user", "content": ""}]  # some clients send an empty input


def _after_compaction(
    messages: list[dict[str, Any]], items: list[dict[str, Any]], where: str
) -> int:
    """Add the messages of the last compaction. Returns the place behind it."""
    kinds = [item.get("type") for item in items]
    if "compaction" not in kinds:
        return 0
    last = len(kinds) - 1 - kinds[::-1].index("compaction")
    messages += messages_of(items[last], f"{where}[{last}]")
    return last + 1


def _is_hosted(item: Item) -> bool:
    return bool(item.type and item.type.endswith("_call") and not item.call_id) and (
        item.type != "function_call"
    )


def _append(
    messages: list[dict[str, Any]], item: Item, where: str, *, is_after_hosted: bool
) -> None:
    """Add an item. The items of one response of the assistant become one message again.

    The content of the assistant's messages is a list of texts meanwhile: many may join one.
    """
    kind = item.type or "message"
    if kind == "message":
        role = item.role or "user"
        content = _text(item.content or "", f"{where}.content")
        if role == "assistant":
            _open_lines(messages, may_have_text=is_after_hosted).append(content)
        else:
            messages.append({"role": role, "content": content})
    elif kind == "reasoning":
        content = _text(item.content or "", f"{where}.content")
        if content:
            messages.append({"role": "assistant", "content": [], "reasoning_content": content})
    elif kind.endswith("_call"):
        message = _open_message(messages, may_have_text=True)
        message.setdefault("tool_calls", []).append(_call(item, kind, where))
    elif kind.endswith("_output"):
        result = {"role": "tool", "tool_call_id": item.call_id or ""}
        messages.append({**result, "content": result_text(item.output)})
    else:
        raise unsupported_value(
            f"{where}.type",
            f"{kind!r:.60}; supported: message, reasoning, function_call, function_call_output,"
            " compaction, item_reference",
        )


def _call(item: Item, kind: str, where: str) -> dict[str, Any]:
    name = item.name
    if name is None and kind == "function_call":
        raise unsupported_value(f"{where}.name", "is missing; expected a function's name")
    arguments: Any = item.arguments
    if arguments is None:
        given = {key: getattr(item, key, None) for key in _CALL_FIELDS}
        arguments = {key: value for key, value in given.items() if value is not None}
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
    function = {"name": name or kind.removesuffix("_call"), "arguments": arguments}
    return {"id": item.call_id or "", "type": "function", "function": function}


def _open_message(messages: list[dict[str, Any]], *, may_have_text: bool) -> dict[str, Any]:
    """Get the assistant's message that further items may join, or add a new one."""
    last = messages[-1] if messages else {}
    is_open = last.get("role") == "assistant" and (
        may_have_text or ("tool_calls" not in last and not any(last["content"] or ()))
    )
    if not is_open:
        messages.append({"role": "assistant", "content": []})
    return messages[-1]


def _open_lines(messages: list[dict[str, Any]], *, may_have_text: bool) -> list[str]:
    """Get the texts of the assistant's message that a text may join, or of a new one."""
    message = _open_message(messages, may_have_text=may_have_text)
    if not isinstance(message["content"], list):  # of a compaction
        message["content"] = [message["content"] or ""]
    lines: list[str] = message["content"]
    return lines


def _text(content: str | list[dict[str, Any]], where: str) -> str:
    if isinstance(content, str):
        return content
    out = []
    for i, part in enumerate(content):
        kind = part.get("type")
        text = part.get("refusal") if kind == "refusal" else part.get("text")
        if kind not in (*_TEXT_PARTS, "reasoning_text") or not isinstance(text, str):
            raise unsupported_value(
                f"{where}[{i}].type", f"{kind!r:.60}; supported: input_text, output_text"
            )
        out.append(text)
    return "".join(out)
