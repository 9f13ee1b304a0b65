"""The state of thoughts at the start of an answer, as its prompt says."""

from collections.abc import Sequence
from typing import Literal

from hybridmoe.text.tokenizer import Tokenizer

__all__ = ["Thinking", "thinking_after"]

Thinking = Literal["none", "may", "open"]  # "open": the prompt has begun them


def thinking_after(prompt_ids: Sequence[int], tokenizer: Tokenizer, *, may_think: bool) -> Thinking:
    """Tell the state of thoughts behind a prompt: some templates open or close `<think>`.

    may_think: whether the file's template knows of thoughts.
    """
    open_id, close_id = (tokenizer.special_id(mark) for mark in ("<think>", "</think>"))
    if open_id is None or close_id is None:
        return "none"
    last = next((i for i in reversed(prompt_ids[-4:]) if i in (open_id, close_id)), None)
    if last is not None:
        return "open" if last == open_id else "none"
    return "may" if may_think else "none"
