"""Small tokenizers with the tool call tokens of each family of models."""

import functools
from pathlib import Path
from typing import NamedTuple

from gguf import TokenType
from tiny_vocab import make_vocabulary

from hybridmoe.text.tokenizer import Tokenizer
from hybridmoe.text.tool_syntax import ToolSyntax, choose_syntax

__all__ = ["FAMILIES", "Family", "family"]

_DEEPSEEK = (
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<｜end▁of▁sentence｜>",
)  # fmt: skip
_GLM = (
    "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
    "<|user|>",
)  # fmt: skip
_KIMI = (
    "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|im_end|>",
)  # fmt: skip
# By family: special tokens, the end token last; and what its chat template is known by.
FAMILIES = {
    "kimi": (_KIMI, ""),
    "deepseek-v3": (_DEEPSEEK, "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{}\n```"),
    "deepseek-v3.1": (_DEEPSEEK, "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{}"),
    "dsml": (("｜DSML｜", *_DEEPSEEK), "<｜DSML｜function_calls>"),
    "glm": (_GLM, "<tool_call>"),
}


class Family(NamedTuple):
    """A family's tokenizer and tool call syntax."""

    tokenizer: Tokenizer
    syntax: ToolSyntax


@functools.cache
def family(name: str) -> Family:
    """Make the tokenizer of a family; its text is cut as Kimi's is."""
    specials, template = FAMILIES[name]
    specials = ("<think>", "</think>", *specials)
    words = make_vocabulary("kimi-k2")
    tokens = words.tokens[: 256 + len(words.merges)]
    types = [int(TokenType.NORMAL)] * len(tokens) + [int(TokenType.USER_DEFINED)] * len(specials)
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "kimi-k2",
        "tokenizer.ggml.tokens": [*tokens, *specials],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": words.merges,
        "tokenizer.ggml.eos_token_id": len(types) - 1,
    }
    tokenizer = Tokenizer(Path("tiny.gguf"), metadata)
    syntax = choose_syntax(tokenizer, template)
    assert syntax is not None, name
    return Family(tokenizer, syntax)
