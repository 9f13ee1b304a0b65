"""Compaction in the chat: when the context nears its end, the oldest turns become a summary."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hybridmoe.cli.session import Session
from hybridmoe.errors import ConfigError, ContextLengthError
from hybridmoe.text.compaction import (
    KEPT_SHARES,
    Compaction,
    most_prompt_tokens,
    plan_compaction,
    summary_tokens,
)
from hybridmoe.text.thinking_options import ThinkingOptions

if TYPE_CHECKING:
    from hybridmoe import LLM, Result

__all__ = ["Compactor", "Respond"]

# Messages, thinking and sampling parameters to a response; None: interrupted.
Respond = Callable[[list[dict[str, Any]], ThinkingOptions, dict[str, Any]], "Result | None"]

_MESSAGE_BYTES = 64  # of the template, around each message


class Compactor:
    """Summarizes the oldest turns of a session with the model itself."""

    def __init__(
        self, model: "LLM", session: Session, respond: Respond, say: Callable[[str], None]
    ) -> None:
        self._model = model
        self._session = session
        self._respond = respond
        self._say = say

    def is_needed(self) -> bool:
        """True if little room is left for a response to the last message, and a summary helps."""
        context = self._model.context_tokens
        most = most_prompt_tokens(context)
        prompt = self._session.prompt()
        if sum(len(str(m).encode()) + _MESSAGE_BYTES for m in prompt) <= most:
            return False  # no token is shorter than a byte
        alone = [*self._head(), *prompt[-1:]]
        return self._count(prompt) > most and self._count(alone) + summary_tokens(context) <= most

    def compact(self, num_pending: int = 0, *, keeps_last: bool = False) -> bool:
        """Put a summary in place of the oldest turns. Returns False if interrupted.

        num_pending: last messages that are not answered yet, kept. keeps_last: the last turn alone.
        Errors: ConfigError if nothing can be summarized; those of a response. The session is then
        as it was.
        """
        messages = self._session.messages
        done = messages[: len(messages) - num_pending]
        num_tokens = summary_tokens(self._model.context_tokens)
        plan = self._plan(done, 0.0 if keeps_last else KEPT_SHARES[0], num_tokens)
        self._say(f"summarizing the first {len(plan.old)} of {len(done)} messages ...")
        params = {**self._session.params, "max_tokens": num_tokens}
        params.pop("stop", None)
        result = self._respond([*self._head(), *plan.request()], self._thinking(num_tokens), params)
        if result is None:
            return False
        if not result.text.strip():
            raise ConfigError("the model wrote no summary; the conversation stays as it was")
        pending = messages[len(done) :]
        messages[:] = [*plan.with_summary(result.text.strip()), *pending]
        self._say(
            f"(a summary of {len(result.token_ids)} tokens replaces them: the conversation has"
            f" {self._count(self._session.prompt())} tokens, the context"
            f" {self._model.context_tokens})"
        )
        return True

    def _plan(
        self, messages: Sequence[dict[str, Any]], keep_share: float, num_tokens: int
    ) -> Compaction:
        """Plan to keep as little as the context allows: the rest must be read once more."""
        for share in (keep_share, *KEPT_SHARES):
            plan = plan_compaction(messages, share)
            if plan is None:
                raise ConfigError("nothing to summarize before the last turn")
            prompt = [*self._head(), *plan.request()]
            if self._count(prompt) + num_tokens <= self._model.context_tokens:
                return plan
        raise ConfigError("the oldest turns are longer than the context")

    def _head(self) -> list[dict[str, Any]]:
        """The session's system message."""
        prompt = self._session.prompt()
        return prompt[: len(prompt) - len(self._session.messages)]

    def _count(self, messages: Sequence[dict[str, Any]]) -> float:
        """Tokens of a prompt; infinite for one of many contexts."""
        try:
            return len(self._model.encode_chat(messages))
        except ContextLengthError:
            return math.inf

    def _thinking(self, num_tokens: int) -> ThinkingOptions:
        """No thoughts, or few where the model cannot do without."""
        off = ThinkingOptions(mode="off")
        try:
            self._model.check_thinking(off)
        except ConfigError:
            return ThinkingOptions(budget_tokens=num_tokens // 4)
        return off
