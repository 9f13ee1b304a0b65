"""Compaction on request: the model summarizes the oldest turns of a conversation.

The Responses API carries the result in an item of type `compaction`, which stands for all items
before it. Its `encrypted_content` is opaque to clients; here it is the JSON of the messages.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hybridmoe.errors import ConfigError
from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.generation import Generation
from hybridmoe.serve.inputs import ChatInput
from hybridmoe.serve.service import Service
from hybridmoe.text.compaction import (
    KEPT_SHARES,
    Compaction,
    most_prompt_tokens,
    plan_compaction,
    summary_tokens,
)
from hybridmoe.text.messages import normalize_messages
from hybridmoe.text.thinking_options import ThinkingOptions

__all__ = ["Compacted", "compact", "compact_above", "compaction_item", "messages_of"]

Messages = list[dict[str, Any]]

_MAX_JSON_VALUES = 1 << 19  # in an item, as in a body
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed")  # that a summary shares


@dataclass(frozen=True, slots=True)
class Compacted:
    """Messages of a conversation with the summary, and what wrote it."""

    messages: Messages
    generation: Generation


async def compact_above(
    service: Service, chat: ChatInput, model: str, threshold: int | None
) -> Compacted | None:
    """Compact a conversation if its prompt has more tokens than the threshold.

    threshold: at most, and by default, seven eighths of the context. None: there is no need, or
    nothing to summarize. Errors: those of `Service.start_chat`.
    """
    async with service.lease(model) as llm:
        most = most_prompt_tokens(llm.context_tokens)
    if await service.count_tokens(chat, model) <= min(threshold or most, most):
        return None
    return await compact(service, chat, model, KEPT_SHARES[0])


async def compact(
    service: Service, chat: ChatInput, model: str, keep_share: float
) -> Compacted | None:
    """Summarize all but the last turns, or as much of it as the context can hold.

    keep_share: of the text, to be kept at most; the last turn always is. None: there is nothing
    before it, it is all too long, or the summary is empty. Errors: those of `Service.start_chat`.
    """
    async with service.lease(model) as llm:
        context = llm.context_tokens
        off = ThinkingOptions(mode="off", budget_tokens=summary_tokens(context) // 4)
        try:
            llm.check_thinking(off)
        except ConfigError:
            off = replace(off, mode=None)
    for share in (keep_share, *KEPT_SHARES):
        plan = plan_compaction(chat.messages, share)
        if plan is None:
            return None
        request = _request(chat, plan, off, summary_tokens(context))
        num_prompt_tokens = await service.count_tokens(request, model)
        if num_prompt_tokens + summary_tokens(context) <= context:
            generation = await service.start_chat(request, model)
            (choice,) = await generation.finish()
            summary = choice.response.text.strip()
            return Compacted(plan.with_summary(summary), generation) if summary else None
    return None


def compaction_item(messages: Messages) -> dict[str, Any]:
    """Make the item that stands for these messages."""
    content = json.dumps({"messages": messages}, ensure_ascii=False, separators=(",", ":"))
    return {"type": "compaction", "id": f"cmp_{uuid.uuid4().hex}", "encrypted_content": content}


def messages_of(item: Mapping[str, Any], where: str) -> Messages:
    """Read the messages that an item stands for. Raises ApiError for another server's."""
    try:
        content = item["encrypted_content"]
        if sum(map(content.count, ",[{")) > _MAX_JSON_VALUES:
            raise ValueError
        return normalize_messages(json.loads(content)["messages"])
    except (ConfigError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        param = f"{where}.encrypted_content"
        message = f"{param}: expected the content of this server's compaction"
        raise ApiError(400, message, param=param) from None


def _request(
    chat: ChatInput, plan: Compaction, thinking: ThinkingOptions, max_tokens: int
) -> ChatInput:
    """Ask for a summary, with the beginning of the conversation's own prompt."""
    sampling = {name: chat.sampling[name] for name in _SAMPLING if name in chat.sampling}
    return replace(
        chat,
        messages=plan.request(),
        tool_choice="none",
        forced_tool=None,
        format=None,
        thinking=thinking,
        continue_final=False,
        sampling={**sampling, "max_tokens": max_tokens},
        num_choices=1,
        top_logprobs=None,
        prompt_logprobs=None,
        expert_trace=False,
    )
