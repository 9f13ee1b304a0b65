"""Fields on thinking, in the dialects of all APIs, as one `ThinkingOptions`.

What agents send unasked (an effort, Anthropic's `thinking`) is a wish: without effect on a model
that does not think. A switch that somebody wrote (`enable_thinking`) is not.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from hybridmoe.serve.schemas.common import Request, Whole
from hybridmoe.text.thinking_options import ThinkingOptions

__all__ = ["ChatThinkingFields", "Effort", "MessagesThinkingFields", "ResponsesThinkingFields"]

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Budget = Annotated[Whole, Field(ge=-1, le=2**31 - 1)]  # -1: no limit
_TYPES = {"enabled": "on", "adaptive": "on", "auto": "on", "disabled": "off"}


class ThinkingSwitch(Request):
    """Anthropic's `thinking`; `budget_tokens` of reasoning, then `</think>` is forced."""

    type: Literal["enabled", "adaptive", "auto", "disabled"]
    budget_tokens: Budget | None = None

    def options(self) -> ThinkingOptions:
        return _options(_TYPES[self.type], "thinking", self.budget_tokens, is_wish=True)


class Reasoning(Request):
    """Responses' and OpenRouter's `reasoning`."""

    effort: Effort | None = None
    enabled: bool | None = None
    max_tokens: Budget | None = Field(default=None, description="Budget of reasoning, in tokens.")

    def options(self) -> ThinkingOptions:
        if self.enabled is None or (self.enabled and self.effort):
            return _effort(self.effort, "reasoning.effort", self.max_tokens)
        return _options("on" if self.enabled else "off", "reasoning.enabled", self.max_tokens)


class ThinkingFields(Request):
    """Fields that every chat API takes."""

    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None,
        description="Variables for the model's chat template: up to 32 numbers, booleans, texts."
        " A name that it does not read gets 400.",
    )
    preserve_thinking: bool | None = Field(
        default=None, description="true: keep the thoughts of earlier responses in the prompt."
    )

    def template_variables(self) -> dict[str, Any]:
        """Variables for the template, by name."""
        kept = self.preserve_thinking
        given = {} if kept is None else {"preserve_thinking": kept}
        return {**given, **(self.chat_template_kwargs or {})}


class ChatThinkingFields(ThinkingFields):
    """Fields of /v1/chat/completions: OpenAI's, and those of other servers."""

    reasoning_effort: Effort | None = Field(
        default=None, description="none: off. A model without levels thinks, or not."
    )
    reasoning: Reasoning | None = None
    enable_thinking: bool | None = Field(
        default=None, description="400 if the model's chat template knows no such switch."
    )
    thinking: ThinkingSwitch | bool | None = None
    think: Effort | bool | None = None
    thinking_budget: Budget | None = Field(
        default=None, description="Tokens of reasoning, then `</think>` is forced; -1: no limit."
    )
    thinking_budget_tokens: Budget | None = Field(
        default=None, description="Same as `thinking_budget`."
    )
    thinking_token_budget: Budget | None = Field(
        default=None, description="Same as `thinking_budget`."
    )
    reasoning_budget: Budget | None = Field(default=None, description="Same as `thinking_budget`.")
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = Field(
        default=None,
        description="Continue the assistant's last message. Default: if it has text and no tool"
        " calls, unless `add_generation_prompt` is true.",
    )

    def thinking_options(self) -> ThinkingOptions:
        """Join the fields; of several, what is written as a switch comes first."""
        given: list[ThinkingOptions] = []
        for name in ("enable_thinking", "thinking", "think"):
            value = getattr(self, name)
            if isinstance(value, bool):
                given.append(ThinkingOptions(mode="on" if value else "off", name=name))
        given += [part.options() for part in (self.thinking, self.reasoning)
                  if isinstance(part, ThinkingSwitch | Reasoning)]  # fmt: skip
        given.append(_effort(self.think if isinstance(self.think, str) else None, "think"))
        given.append(_effort(self.reasoning_effort, "reasoning_effort"))
        for name in (
            "thinking_budget", "thinking_budget_tokens", "thinking_token_budget",
            "reasoning_budget",
        ):  # fmt: skip
            given.append(_options(None, name, getattr(self, name)))
        return _first(given)


class ResponsesThinkingFields(ThinkingFields):
    """Fields of /v1/responses."""

    reasoning: Reasoning | None = None

    def thinking_options(self) -> ThinkingOptions:
        """Read the fields."""
        return self.reasoning.options() if self.reasoning else ThinkingOptions()


class MessagesThinkingFields(ThinkingFields):
    """Fields of /v1/messages."""

    thinking: ThinkingSwitch | None = None

    def thinking_with(self, effort: Effort | None) -> ThinkingOptions:
        """Join with `output_config.effort`, which alone does not turn thinking on."""
        thinking = self.thinking.options() if self.thinking else ThinkingOptions()
        if thinking.mode == "on" and effort not in (None, "none"):
            return _effort(effort, "output_config.effort", thinking.budget_tokens)
        return thinking


def _effort(effort: Effort | None, name: str, budget_tokens: int | None = None) -> ThinkingOptions:
    mode = "off" if effort == "none" else effort
    return _options(mode, name, budget_tokens, is_wish=mode != "off")


def _options(
    mode: str | None, name: str, budget_tokens: int | None, *, is_wish: bool = False
) -> ThinkingOptions:
    budget = None if budget_tokens is None or budget_tokens < 0 else budget_tokens
    return ThinkingOptions(mode=mode, budget_tokens=budget, is_wish=is_wish, name=name)


def _first(given: list[ThinkingOptions]) -> ThinkingOptions:
    """Take the first mode, and the first budget."""
    chosen = next((one for one in given if one.mode is not None), ThinkingOptions())
    budgets = (one.budget_tokens for one in given if one.budget_tokens is not None)
    return ThinkingOptions(
        mode=chosen.mode,
        budget_tokens=next(budgets, None),
        is_wish=chosen.is_wish,
        name=chosen.name,
    )
