"""Prompt of a conversation, with the request's options on thinking, or the server's."""

from dataclasses import replace

from hybridmoe.errors import ConfigError
from hybridmoe.llm.llm import LLM
from hybridmoe.serve.billing_header import without_billing_header
from hybridmoe.serve.config import ServeConfig
from hybridmoe.serve.errors import ApiError
from hybridmoe.serve.inputs import ChatInput
from hybridmoe.serve.work_pool import CancelToken
from hybridmoe.text.chat_encoding import ChatPrompt
from hybridmoe.text.thinking_options import PromptOptions, ThinkingOptions

__all__ = ["chosen_thinking", "encode_prompt"]


def encode_prompt(llm: LLM, chat: ChatInput, config: ServeConfig, token: CancelToken) -> ChatPrompt:
    """Encode a conversation. Errors: ApiError, ConfigError, TemplateError."""
    if len(chat.messages) > config.max_messages:
        raise ApiError(
            400,
            f"messages has {len(chat.messages)} entries; at most {config.max_messages} are taken",
            param="messages",
        )
    messages = [
        {**message, "role": "system"} if message.get("role") == "developer" else message
        for message in without_billing_header(chat.messages)
    ]
    limit = llm.tokenizer.prompt_limit(llm.context_tokens, token.check)
    options = PromptOptions(
        thinking=chosen_thinking(llm, chat, config),
        variables=chat.template_kwargs,
        continues_final=chat.continue_final,
    )
    return llm.chat_prompt(messages, chat.tools or None, limit, options)


def chosen_thinking(llm: LLM, chat: ChatInput, config: ServeConfig) -> ThinkingOptions:
    """Take the request's options; where it has none, the server's, if the model knows them."""
    given, default = chat.thinking, config.thinking
    budget = default.budget_tokens if given.budget_tokens is None else given.budget_tokens
    if given.mode is None and default.mode is not None:
        try:
            llm.check_thinking(default)
        except ConfigError:
            return replace(given, budget_tokens=budget)
        given = default
    return replace(given, budget_tokens=budget)
