"""Conversion of OpenAI's chat completions to inputs."""

from typing import Any

from hybridmoe.serve.errors import unsupported_value
from hybridmoe.serve.inputs import ChatInput
from hybridmoe.serve.schemas.chat import (
    AllowedToolChoice,
    ChatCompletionRequest,
    NamedFunction,
    NamedToolChoice,
    Tool,
    ToolChoiceMode,
)
from hybridmoe.serve.schemas.common import token_limit

__all__ = ["chat_input"]


def chat_input(body: ChatCompletionRequest) -> ChatInput:
    """Convert a request. Raises ApiError for options that contradict each other."""
    has_logprobs = bool(body.logprobs or body.n_probs)
    if body.top_logprobs and not has_logprobs:
        raise unsupported_value("top_logprobs", "needs logprobs: true")
    if body.stream and body.prompt_logprobs is not None:
        raise unsupported_value("prompt_logprobs", "not available with stream: true")
    sampling = body.sampling()
    limit = token_limit(body.max_completion_tokens, body.max_tokens, body.n_predict)
    if limit is not None:
        sampling["max_tokens"] = limit
    return ChatInput(
        messages=[message.to_template() for message in body.messages],
        tools=_tools(body),
        **_tool_choice(body),
        is_parallel=body.parallel_tool_calls is not False and not body.functions,
        format=body.structured_format(),
        thinking=body.thinking_options(),
        template_kwargs=body.template_variables(),
        continue_final=_continue_final(body),
        sampling=sampling,
        num_choices=body.n or body.n_cmpl or 1,
        top_logprobs=(body.top_logprobs or body.n_probs or 0) if has_logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
        expert_trace=body.return_experts,
    )


def _continue_final(body: ChatCompletionRequest) -> bool | None:
    """Read whether the last message is continued; None: if it is the assistant's, with text."""
    last = body.messages[-1]
    continues, adds = body.continue_final_message, body.add_generation_prompt
    if continues and adds:
        raise unsupported_value(
            "continue_final_message", "excludes add_generation_prompt: give one of them"
        )
    if adds is False and continues is not True and last.role != "assistant":
        raise unsupported_value(
            "add_generation_prompt",
            "false is supported only with an assistant's last message, to continue it",
        )
    if continues is None and (adds is False or last.prefix or last.partial):
        return True
    return False if continues is None and adds else continues


def _tools(body: ChatCompletionRequest) -> list[dict[str, Any]]:
    if body.functions and body.tools:
        raise unsupported_value("functions", "is the older name of tools; give one of them")
    older = ({"type": "function", "function": f} for f in body.functions or ())
    given = (Tool.model_validate(tool) for tool in older) if body.functions else body.tools or ()
    return [tool.model_dump(exclude_none=True) for tool in given]


def _tool_choice(body: ChatCompletionRequest) -> dict[str, Any]:
    """Convert any form of tool_choice to fields of `ChatInput`."""
    older = body.function_call if body.functions else None
    if isinstance(older, NamedFunction):
        return {"tool_choice": "required", "forced_tool": older.name}
    choice = body.tool_choice or older or "auto"
    if isinstance(choice, NamedToolChoice):
        return {"tool_choice": "required", "forced_tool": choice.function.name}
    if isinstance(choice, AllowedToolChoice):
        names = [tool.function.name for tool in choice.allowed_tools.tools]
        return {"tool_choice": choice.allowed_tools.mode, "allowed_tools": names}
    mode = choice.type if isinstance(choice, ToolChoiceMode) else choice
    return {"tool_choice": "required" if mode == "any" else mode}
