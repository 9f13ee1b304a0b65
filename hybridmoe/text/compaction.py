"""Compaction of a conversation: its oldest messages become a summary that the model writes.

Pure: plans what is summarized, the messages that ask for the summary, and the messages after it.
The request for a summary has the conversation's own beginning, so that its prompt is in the prefix
cache. A cut is never between a call and its result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

__all__ = ["KEPT_SHARES", "Compaction", "most_prompt_tokens", "plan_compaction", "summary_tokens"]

Message = dict[str, Any]

# Of the conversation, in its last turns. The first whose summary the context has room for is taken.
KEPT_SHARES = (0.25, 0.5, 0.75)

_REQUEST = (
    "Summarize our conversation so far, for yourself to go on with it: what I asked for, what was"
    " found and decided, names, numbers and places that matter, and what is still open. Write the"
    " summary alone."
)
_ASKED = "Summarize our conversation so far."  # as it stays in the conversation
_SUMMARY = "Summary of our conversation so far:\n\n"
_HEAD_ROLES = ("system", "developer")
_MIN_SUMMARY, _MAX_SUMMARY = 64, 4096  # tokens


@dataclass(frozen=True, slots=True)
class Compaction:
    """A conversation in three parts, of which the middle one becomes a summary."""

    head: list[Message]  # system messages
    old: list[Message]
    kept: list[Message]

    def request(self, instructions: str | None = None) -> list[Message]:
        """Messages whose response is the summary."""
        asked = {"role": "user", "content": instructions or _REQUEST}
        return [*self.head, *self.old, asked]

    def with_summary(self, summary: str) -> list[Message]:
        """Messages of the conversation with the summary in place of the old ones.

        Roles alternate as before, which some templates insist on.
        """
        if not self.kept or self.kept[0]["role"] != "user":
            said = [{"role": "user", "content": _SUMMARY + summary}]
        else:
            said = [
                {"role": "user", "content": _ASKED},
                {"role": "assistant", "content": summary},
            ]
        return [*self.head, *said, *self.kept]


def plan_compaction(messages: Sequence[Message], keep_share: float) -> Compaction | None:
    """Plan to keep the last turns: at most this share of all text, and at least the last one.

    A turn that is longer itself, such as an agent's, is cut before one of its rounds of calls.
    None: there is nothing before the last turn.
    """
    first = next((i for i, m in enumerate(messages) if m["role"] not in _HEAD_ROLES), len(messages))
    # Of a message and all that follow; the last entry is 0.
    sizes = [*accumulate(map(_size, reversed(messages)), initial=0)][::-1]
    room = keep_share * sizes[first]
    roles = [message["role"] for message in messages]
    turns = [i for i in range(first + 1, len(messages)) if roles[i] == "user"]
    rounds = [
        i for i in range(first + 1, len(messages))
        if roles[i] == "assistant" and roles[i - 1] == "tool"
    ]  # fmt: skip
    cuts = sorted(turns + rounds)
    if not cuts:
        return None
    fitting = (i for i in (*turns, *rounds) if sizes[i] <= room)
    at = next(fitting, cuts[-1])
    return Compaction(list(messages[:first]), list(messages[first:at]), list(messages[at:]))


def most_prompt_tokens(context_tokens: int) -> int:
    """Tokens of a prompt that leaves enough room for a response: seven eighths of the context."""
    return context_tokens - context_tokens // 8


def summary_tokens(context_tokens: int) -> int:
    """Maximum tokens of a summary: a sixteenth of the context."""
    return max(_MIN_SUMMARY, min(_MAX_SUMMARY, context_tokens // 16))


def _size(message: Message) -> int:
    """Characters of a message, about in proportion to its tokens."""
    return sum(len(str(value)) for key, value in message.items() if key != "role")
