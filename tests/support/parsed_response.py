"""Whole responses, parsed as the Python API and the endpoint do; a tiny Kimi K2 tokenizer."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tiny_vocab import make_vocabulary

from hybridmoe.text.response import Response
from hybridmoe.text.response_parser import ResponseParser
from hybridmoe.text.tokenizer import Tokenizer

__all__ = ["parse_response", "tiny_kimi_tokenizer"]


def parse_response(
    token_ids: Iterable[int], tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]] = ()
) -> Response:
    """Parse a response that the model ended itself. tools: the declared ones; any without."""
    response = Response(ResponseParser(tokenizer, may_call=True, tools=tools))
    for token_id in token_ids:
        response.push(token_id)
    response.finish("stop")
    return response


def tiny_kimi_tokenizer() -> Tokenizer:
    """Make a tokenizer with Kimi K2's marks, and the singular section name that it strays to."""
    vocabulary = make_vocabulary("kimi-k2")
    tokens = [*vocabulary.tokens, "<|tool_call_section_begin|>"]
    return Tokenizer(
        Path("tiny.gguf"),
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "kimi-k2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [*vocabulary.types, 3],
            "tokenizer.ggml.merges": vocabulary.merges,
            "tokenizer.ggml.eos_token_id": vocabulary.eos_id,
        },
    )
