"""Train a tiny but real byte-level BPE vocabulary, with the special tokens of Kimi K2 or DeepSeek.

256 byte tokens, merges trained on the sentences below, special tokens by their exact text, and
unused padding up to a multiple of 16. The merges obey the pre-tokenizers `kimi-k2`,
`deepseek-v3` and `deepseek-llm`, because none crosses a space.
"""

import functools
import itertools
from collections import Counter
from typing import NamedTuple

from gguf import TokenType

NUM_MERGES = 96

K2_SPECIALS = (
    "[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|start_header_id|>",
    "<|end_header_id|>", "[EOT]", "<|im_system|>", "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>",
    "<|tool_call_end|>", "<|im_middle|>", "<think>", "</think>", "[UNK]", "[PAD]",
)  # fmt: skip
DEEPSEEK_SPECIALS = (
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<｜User｜>",
    "<｜Assistant｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>",
)  # fmt: skip

_TEXT = (
    "the model reads the file and the file holds the model . the router sends the token to the "
    "experts and the experts send the sum back . hello world ! how are you ? i am here to help . "
    "what is the answer to the question ? the answer is that the tokens are in the file and "
    "that the layers and heads are small . 你好 世界 你好 模型 café naïve über 🙂 🙂"
)


class Vocabulary(NamedTuple):
    """The arrays of `tokenizer.ggml.*`; a token is written with GPT-2's stand-ins for bytes."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    bos_id: int
    eos_id: int
    pad_id: int


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-in for each of the 256 bytes."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(b if b in printable else next(spare)) for b in range(256)]


@functools.cache
def make_vocabulary(pre: str = "kimi-k2") -> Vocabulary:
    """Train the merges and lay the tokens out: bytes, merges, padding, special tokens."""
    symbols = byte_symbols()
    merges = _train(symbols)
    tokens = symbols + [left + right for left, right in merges]
    types = [int(TokenType.NORMAL)] * len(tokens)
    is_k2 = pre == "kimi-k2"
    specials = K2_SPECIALS if is_k2 else DEEPSEEK_SPECIALS
    while (len(tokens) + len(specials)) % 16:
        types.append(int(TokenType.UNUSED))
        tokens.append(f"[PAD{len(tokens)}]")
    first = len(tokens)
    tokens += specials
    types += [int(TokenType.CONTROL)] * len(specials)
    for text in ("<think>", "</think>"):
        if text in tokens:
            types[tokens.index(text)] = int(TokenType.USER_DEFINED)
    return Vocabulary(
        tokens=tokens,
        types=types,
        merges=[f"{left} {right}" for left, right in merges],
        bos_id=first,
        eos_id=tokens.index("<|im_end|>") if is_k2 else first + 1,
        pad_id=tokens.index("[PAD]") if is_k2 else first + 2,
    )


def _train(symbols: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges of `_TEXT`: the commonest pair first, ties by the pair itself."""
    words = [
        [symbols[b] for b in (word if i == 0 else " " + word).encode()]
        for i, word in enumerate(_TEXT.split(" "))
    ]
    known = set(symbols)
    merges: list[tuple[str, str]] = []
    while len(merges) < NUM_MERGES:
        pairs = Counter(pair for word in words for pair in itertools.pairwise(word))
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        if best[0] + best[1] not in known:
            known.add(best[0] + best[1])
            merges.append(best)
        words = [_merge(word, best) for word in words]
    return merges


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged
