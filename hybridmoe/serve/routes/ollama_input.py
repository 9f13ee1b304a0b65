"""Conversion of ollama's requests to inputs."""

import json
from collections import deque
from dataclasses import replace
from typing import Any

from hybridmoe.serve.errors import unsupported_value
from hybridmoe.serve.inputs import ChatInput
from hybridmoe.serve.schemas.ollama import (
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaMessage,
    OllamaRequest,
    OllamaToolCall,
)
from hybridmoe.text.thinking_options import ThinkingOptions

__all__ = ["chat_input", "generate_input"]


def chat_input(body: OllamaChatRequest) -> ChatInput:
    """Convert a conversation. Raises ApiError for images."""
    messages = [_message(one, f"messages[{i}]") for i, one in enumerate(body.messages or ())]
    _match_results(messages)
    tools = [
        {"type": "function", "function": tool.function.model_dump(exclude_none=True)}
        for tool in body.tools or ()
    ]
    return _input(body, messages, tools)


def generate_input(body: OllamaGenerateRequest) -> ChatInput:
    """Convert a prompt and its system message."""
    system = [{"role": "system", "content": body.system}] if body.system else []
    return _input(body, [*system, {"role": "user", "content": body.prompt}], [])


def _input(
    body: OllamaRequest, messages: list[dict[str, Any]], tools: list[dict[str, Any]]
) -> ChatInput:
    return ChatInput(
        messages=messages,
        tools=tools,
        format=body.response_format(),
        thinking=replace(ThinkingOptions.of_argument(body.think), name="think"),
        continue_final=None,
        sampling=body.sampling(),
        top_logprobs=body.num_top_logprobs,
    )


def _message(message: OllamaMessage, where: str) -> dict[str, Any]:
    if message.images:
        raise unsupported_value(f"{where}.images", "the model reads text only")
    out: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.thinking:
        out["reasoning_content"] = message.thinking
    if message.tool_calls:
        out["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.role == "tool":
        out["tool_call_id"] = message.tool_call_id or ""
        out["name"] = message.tool_name
    return {key: value for key, value in out.items() if value is not None}


def _call(call: OllamaToolCall) -> dict[str, Any]:
    arguments = call.function.arguments or {}
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id or "", "type": "function", "function": function}


def _match_results(messages: list[dict[str, Any]]) -> None:
    """Give calls without an id one, and results the id of their call: by name, else in order."""
    waiting: deque[dict[str, Any]] = deque()  # those of `matched` are left in both
    by_name: dict[str, deque[dict[str, Any]]] = {}
    matched: set[int] = set()  # calls by identity
    count = 0
    for message in messages:
        for call in message.get("tool_calls", ()):
            count += 1
            call["id"] = call["id"] or f"call_{count}"
            waiting.append(call)
            by_name.setdefault(call["function"]["name"], deque()).append(call)
        if message["role"] != "tool":
            continue
        name = message.pop("name", None)
        if message["tool_call_id"]:
            continue
        for queue in (by_name.get(name, deque()), waiting):
            while queue and id(queue[0]) in matched:
                queue.popleft()
            if queue:
                matched.add(id(queue[0]))
                message["tool_call_id"] = queue.popleft()["id"]
                break
