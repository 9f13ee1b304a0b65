"""Byte-level BPE with the kimi-k2 pre-tokenizer, trained on the corpus, deterministic.

No merge contains a digit, so that every digit is one token. Merges are not learned from words to
spell and invented names: these then split into short pieces, which a small model can learn to
spell and copy.
"""

# Lists of words read best as words.
# ruff: noqa: SIM905

from __future__ import annotations

import json
import random
import string
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence
from tokenizers.pre_tokenizers import Split as SplitOn
from tokenizers.trainers import BpeTrainer

from hybridmoe.demo import corpus

__all__ = ["SPECIAL_TOKENS", "Vocabulary"]

# Kimi K2's special tokens, by exact text.
SPECIAL_TOKENS = """[BOS] [EOS] <|im_end|> <|im_user|> <|im_assistant|> <|im_system|> <|im_middle|>
<|tool_calls_section_begin|> <|tool_calls_section_end|> <|tool_call_begin|>
<|tool_call_argument_begin|> <|tool_call_end|> <think> </think> [UNK] [PAD] [EOT]""".split()

# Kimi K2's pattern, without `&&[^\\p{Han}]`: Han are \\p{Lo}, so leaving out \\p{Lo} and taking Han
# alone first gives the same pieces for text in Latin letters and Han, which is all the corpus has.
_LETTER = r"[^\r\n\p{L}\p{N}]?"
_TAIL = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = "|".join([
    r"[\p{Han}]+",
    _LETTER + r"[\p{Lu}\p{Lt}\p{Lm}\p{M}]*[\p{Ll}\p{Lm}\p{M}]+" + _TAIL,
    _LETTER + r"[\p{Lu}\p{Lt}\p{Lm}\p{M}]+[\p{Ll}\p{Lm}\p{M}]*" + _TAIL,
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
])  # fmt: skip

_OPEN_FAMILIES = {"spelling", "repeating", "sorting", "memory", "memory_tell", "tools"}


def _pre_tokenizer(is_training: bool) -> PreTokenizer:
    parts: list[PreTokenizer] = [SplitOn(Regex(PATTERN), behavior="isolated")]
    if is_training:
        parts.append(Digits(individual_digits=True))
    return Sequence([*parts, ByteLevel(add_prefix_space=False, use_regex=False)])


def _texts(seed: int, num_dialogues: int) -> Iterator[str]:
    """Yield the text to learn merges from, with the families of open words thinned out."""
    rng = random.Random(seed)
    for i in range(num_dialogues):
        dialogue = corpus.dialogue(rng)
        if dialogue.tools:
            yield "tool_declare"
            yield json.dumps(dialogue.tools, separators=(",", ":"), sort_keys=True)
        yield dialogue.system
        for turn in dialogue.turns:
            if turn.family in _OPEN_FAMILIES and i % 8:
                continue
            yield turn.user
            yield turn.reply
            for call in turn.calls:
                yield from ("user", "assistant", "system", "tool", f"functions.{call.name}:0")
                yield json.dumps(call.arguments, separators=(",", ":"))
                yield f"## Return of functions.{call.name}:0\n{call.result}"
    # Each letter after a dash (spelling) and after a space (a name's first letter) is one token.
    for letter in string.ascii_letters:
        yield from [f"-{letter}", f" {letter}"] * 2000


class Vocabulary:
    """Tokenizer of the embedded model: text and special tokens to ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        tokenizer.pre_tokenizer = _pre_tokenizer(is_training=False)
        self.num_plain = tokenizer.get_vocab_size(with_added_tokens=False)
        self.special = {text: self.num_plain + i for i, text in enumerate(SPECIAL_TOKENS)}
        self.size = self.num_plain + len(SPECIAL_TOKENS)
        self.end = self.special["<|im_end|>"]
        self.pad = self.special["[PAD]"]
        self._cache: dict[str, list[int]] = {}

    @classmethod
    def train(cls, size: int = 1400, seed: int = 1, num_dialogues: int = 12000) -> Vocabulary:
        """Learn the merges from the corpus."""
        tokenizer = Tokenizer(BPE())
        tokenizer.pre_tokenizer = _pre_tokenizer(is_training=True)
        trainer = BpeTrainer(
            vocab_size=size - len(SPECIAL_TOKENS),
            min_frequency=40,
            initial_alphabet=ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(_texts(seed, num_dialogues), trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read a tokenizer that `save` wrote."""
        tokenizer = Tokenizer.from_file(str(path))
        return cls(tokenizer)

    def save(self, path: Path) -> None:
        """Write the tokenizer (without the special tokens, which are fixed) as JSON."""
        self.tokenizer.save(str(path))

    def encode(self, text: str) -> list[int]:
        """Encode plain text; special tokens in it are not recognised."""
        ids = self._cache.get(text)
        if ids is None:
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids
            if len(self._cache) < 50_000:
                self._cache[text] = ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Decode ids, with special tokens by name."""
        names = {number: text for text, number in self.special.items()}
        decoder = ByteLevelDecoder()
        out = ""
        plain: list[int] = []
        for number in [*ids, -1]:
            if number in names or number == -1:
                out += decoder.decode([self.tokenizer.id_to_token(i) or "" for i in plain])
                out += names.get(number, "")
                plain = []
            else:
                plain.append(number)
        return out

    def tokens(self) -> list[str]:
        """List the token texts by id, byte-level encoded, special tokens last."""
        plain = [self.tokenizer.id_to_token(i) for i in range(self.num_plain)]
        return [token or "" for token in plain] + SPECIAL_TOKENS

    def merges(self) -> list[str]:
        """List the merges by rank, as in GGUF."""
        model = json.loads(self.tokenizer.to_str())["model"]
        return [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
