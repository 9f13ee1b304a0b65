"""Thinking state at the start of a response, read from the prompt."""

from collections.abc import Sequence
from typing import Literal

from hybridmoe.text.tokenizer import Tokenizer

__all__ = ["Thinking", "thinking_after"]

Thinking = Literal["none", "may", "open"]  # "open": the prompt ends inside `<think>`


def thinking_after(prompt_ids: Sequence[int], tokenizer: Tokenizer, *, may_think: bool) -> Thinking:
    """Read the thinking state from the last tokens of a prompt.

    Some templates open or close `<think>` themselves. may_think: the file's template knows it.
    """
    open_id, close_id = (tokenizer.special_id(mark) for mark in ("<think>", "</think>"))
    if open_id is None or close_id is None:
        return "none"
    last = next((i for i in reversed(prompt_ids[-4:]) if i in (open_id, close_id)), None)
    if last is not None:
        return "open" if last == open_id else "none"
    return "may" if may_think else "none"
