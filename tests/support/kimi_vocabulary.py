"""Kimi K2's real vocabulary as GGUF metadata.

The token bytes come from splintr-rs, which carries them; the merges are rebuilt from the ranks
as GGUF converters do: the last merge of a token is the one that byte-pair encoding with only the
tokens of lower rank ends with.
"""

import functools

import splintr

from hybridmoe.text.vocabulary import byte_symbols

NUM_RANKS = 163_584
NUM_TOKENS = 163_840
SPECIALS = {
    163_584: "[BOS]", 163_585: "[EOS]", 163_586: "<|im_end|>", 163_587: "<|im_user|>",
    163_588: "<|im_assistant|>", 163_590: "<|start_header_id|>", 163_591: "<|end_header_id|>",
    163_593: "[EOT]", 163_594: "<|im_system|>", 163_595: "<|tool_calls_section_begin|>",
    163_596: "<|tool_calls_section_end|>", 163_597: "<|tool_call_begin|>",
    163_598: "<|tool_call_argument_begin|>", 163_599: "<|tool_call_end|>",
    163_601: "<|im_middle|>", 163_606: "<think>", 163_607: "</think>", 163_838: "[UNK]",
    163_839: "[PAD]",
}  # fmt: skip


@functools.cache
def oracle() -> splintr.Tokenizer:
    """An implementation that is neither ours nor llama.cpp's."""
    return splintr.Tokenizer.from_pretrained("kimi_k2")


@functools.cache
def metadata() -> dict[str, object]:
    """The `tokenizer.ggml.*` keys of a converted K2; takes some three seconds."""
    ranks = {oracle().decode_token_bytes(i): i for i in range(NUM_RANKS)}
    symbols = byte_symbols()

    def spell(token: bytes) -> str:
        return "".join(symbols[byte] for byte in token)

    special = [SPECIALS.get(i, f"<|reserved_token_{i}|>") for i in range(NUM_RANKS, NUM_TOKENS)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "kimi-k2",
        "tokenizer.ggml.tokens": [spell(token) for token in ranks] + special,
        "tokenizer.ggml.token_type": [1] * NUM_RANKS + [3] * len(special),
        "tokenizer.ggml.merges": [
            " ".join(map(spell, _last_merge(token, ranks))) for token in ranks if len(token) > 1
        ],
        "tokenizer.ggml.bos_token_id": 163_584,
        "tokenizer.ggml.eos_token_id": 163_585,
        "tokenizer.ggml.padding_token_id": 163_839,
    }


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [parts[i] + parts[i + 1] for i in range(len(parts) - 1)]
        at = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], NUM_RANKS))
        parts[at : at + 2] = [pairs[at]]
    return parts
