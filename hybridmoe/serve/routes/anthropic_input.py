"""Conversion of Anthropic's conversations to OpenAI's, which chat templates expect."""

import json
from typing import Any

from hybridmoe.serve.billing_header import is_billing_header
from hybridmoe.serve.errors import unsupported_value
from hybridmoe.serve.inputs import ChatInput
from hybridmoe.serve.routes.hosted_tools import hosted_text
from hybridmoe.serve.schemas.anthropic import (
    AnthropicMessage,
    AnthropicTool,
    AnthropicToolChoice,
    ContentBlock,
    CountTokensRequest,
)
from hybridmoe.text.content_parts import part_text, result_text

__all__ = ["chat_input"]

_HOSTED_CALLS = ("server_tool_use", "mcp_tool_use")


def chat_input(body: CountTokensRequest) -> ChatInput:
    """Convert a conversation and its tools. Raises ApiError for unsupported content."""
    messages: list[dict[str, Any]] = []
    system = body.system
    if isinstance(system, list):
        system = [block for block in system if not is_billing_header(block.text)]
    if system:
        messages.append({"role": "system", "content": _text(system, "system")})
    for i, message in enumerate(body.messages):
        messages += _messages(message, f"messages[{i}]")
    choice = body.tool_choice or AnthropicToolChoice(type="auto")
    if choice.type == "tool" and choice.name is None:
        raise unsupported_value("tool_choice.name", "is missing; expected a tool's name")
    must_call = choice.type in ("any", "tool")
    return ChatInput(
        messages=messages,
        tools=[_tool(tool, i) for i, tool in enumerate(body.tools or ())],
        tool_choice="required" if must_call else "none" if choice.type == "none" else "auto",
        forced_tool=choice.name if choice.type == "tool" else None,
        call_id_prefix="toolu_",
        is_parallel=not choice.disable_parallel_tool_use,
        thinking=body.thinking_options(),
        template_kwargs=body.template_variables(),
        continue_final=None,
    )


def _tool(tool: AnthropicTool, index: int) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        raise unsupported_value(f"tools[{index}].type", f"{tool.type!r:.60}; supported: 'custom'")
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema or {}}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _messages(message: AnthropicMessage, where: str) -> list[dict[str, Any]]:
    """Convert a message. Tool results in it become messages of their own, before it."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    results, text, thinking, calls = [], [], [], []
    for i, block in enumerate(message.content):
        place = f"{where}.content[{i}]"
        if (own := _own_text(block, message.role)) is not None:
            text.append(own)
        elif block.type == "tool_result" and message.role == "user":
            result = {"role": "tool", "tool_call_id": block.tool_use_id or ""}
            result["content"] = result_text(block.content, "\n")
            results.append(result)
        elif block.type == "tool_use" and message.role == "assistant":
            calls.append(_call(block, place))
        elif block.type == "thinking" and message.role == "assistant":
            thinking.append(block.thinking or "")
        elif block.type != "redacted_thinking":
            raise unsupported_value(
                f"{place}.type",
                f"{block.type!r:.60} in a message of {message.role!r}; supported: text, documents"
                " of text, tool_result (user), tool_use and thinking (assistant)",
            )
    out: dict[str, Any] = {"role": message.role, "content": "\n".join(text)}
    if thinking:
        out["reasoning_content"] = "".join(thinking)
    if calls:
        out["tool_calls"] = calls
    return results if results and not text else [*results, out]


def _own_text(block: ContentBlock, role: str) -> str | None:
    """Get the text that a block adds to its message; None for blocks that are no text."""
    if block.type == "text":
        return block.text or ""
    if block.type == "compaction":  # a summary of what came before
        return block.content if isinstance(block.content, str) else ""
    is_hosted = block.type in _HOSTED_CALLS or block.type.endswith("_tool_result")
    if is_hosted and role == "assistant":
        return hosted_text(block.model_dump(exclude_none=True))
    return part_text(block.model_dump(exclude_none=True)) if role == "user" else None


def _call(block: ContentBlock, where: str) -> dict[str, Any]:
    if block.name is None:
        raise unsupported_value(f"{where}.name", "is missing; expected a tool's name")
    arguments = json.dumps(block.input or {}, ensure_ascii=False, separators=(",", ":"))
    function = {"name": block.name, "arguments": arguments}
    return {"id": block.id or "", "type": "function", "function": function}


def _text(content: str | list[ContentBlock], where: str) -> str:
    if isinstance(content, str):
        return content
    for i, block in enumerate(content):
        if block.type != "text":
            raise unsupported_value(f"{where}[{i}].type", f"{block.type!r:.60}; supported: text")
    return "\n".join(block.text or "" for block in content)
