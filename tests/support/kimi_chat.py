"""Kimi K2's chat format in tests: a tiny vocabulary with its special tokens, and its template."""

from pathlib import Path

from tiny_vocab import make_vocabulary

from hybridmoe.text.chat_template import KIMI_K2_TEMPLATE, ChatTemplate
from hybridmoe.text.tokenizer import Tokenizer

__all__ = ["ASK", "DEFAULT_SYSTEM", "HELLO", "KIMI", "TOKENIZER", "WEATHER", "kimi_metadata"]

HELLO = [{"role": "user", "content": "Hello"}]
ASK = "<|im_assistant|>assistant<|im_middle|>"
DEFAULT_SYSTEM = (
    "<|im_system|>system<|im_middle|>"
    "You are Kimi, an AI assistant created by Moonshot AI.<|im_end|>"
)
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "b": 1, "a": "°"}},
}


def kimi_metadata(template: object = None) -> dict[str, object]:
    """Make GGUF metadata of the tiny vocabulary, with or without a chat template."""
    vocabulary = make_vocabulary("kimi-k2")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "kimi-k2",
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.token_type": vocabulary.types,
        "tokenizer.ggml.merges": vocabulary.merges,
        "tokenizer.ggml.bos_token_id": vocabulary.bos_id,
        "tokenizer.ggml.eos_token_id": vocabulary.eos_id,
    } | ({} if template is None else {"tokenizer.chat_template": template})


TOKENIZER = Tokenizer(Path("tiny.gguf"), kimi_metadata())
KIMI = ChatTemplate(KIMI_K2_TEMPLATE)
