"""Pre-tokenizers by their name in GGUF (`tokenizer.ggml.pre`).

A pre-tokenizer splits text into pieces that no merge crosses. It has one pattern, or several: the
matches of each and what is between them are pieces, which the next one splits again. Sources:
Moonshot's `tokenization_kimi.py`; the `tokenizer.json` of DeepSeek-LLM (also V2's), DeepSeek-Coder,
DeepSeek-V3 (also R1's, V3.2's and V4's) and GLM-4 (also 4.7-Flash's and 5.2's); Mistral's
`tekken.json`.

Kimi K2: llama.cpp takes combining marks for punctuation. So it splits words of Hindi, Thai,
Bengali, Tamil and others, and emoji with a variation selector, where the model's tokenizer does
not: 54 tokens instead of 43 for one sentence of Hindi. Text without such marks gets the same ids.
Mistral's: the same, and llama.cpp knows the case of ASCII letters alone.
"""

from collections.abc import Callable, Iterator, Sequence

import regex

from hybridmoe.text.text_splitting import split_long_runs, split_text

__all__ = ["PreTokenizer", "find_pre_tokenizer"]

# Moonshot's code cuts a text at these lengths, and runs of blanks or of non-blanks.
_MOONSHOT_CHARS = 400_000
_RUN_CHARS = 25_000
_CHUNK_CHARS = 1 << 15

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANKS = (r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+")

# Han letters are separate words; a lower case letter before an upper case one ends a word.
_UPPER = r"[[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]&&[^\p{Han}]]"
_LOWER = r"[[\p{Ll}\p{Lm}\p{Lo}\p{M}]&&[^\p{Han}]]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_KIMI_K2 = (
    "|".join(
        (
            r"\p{Han}+",
            f"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTION}?",
            f"{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTION}?",
            r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{N}]+[\r\n]*",
            *_BLANKS,
        )
    ),
)
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",  # Han letters, hiragana, katakana
    "|".join(
        (
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+""",
            r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
            r" ?[\p{P}\p{S}]+[\r\n]*",
            *_BLANKS,
        )
    ),
)
_CASED = (  # letters with case, as DeepSeek lists them
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293"
    "\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c"
    "\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5"
    "\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59"
    "\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc"
    "\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"
    "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e"
    "\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_HAN_TO_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_CASED}]+",
    r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+\Z",
    _HAN_TO_HANGUL,
    r"\p{N}+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_TO_HANGUL, r"\p{N}")
_GLM4 = (
    "|".join(
        (
            _CONTRACTION,
            r"[^\r\n\p{L}\p{N}]?\p{L}+",
            r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{N}]+[\r\n]*",
            *_BLANKS,
        )
    ),
)
_TEKKEN_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    "|".join(
        (
            f"{_LEAD}{_TEKKEN_UPPER}*{_TEKKEN_LOWER}+",
            f"{_LEAD}{_TEKKEN_UPPER}+{_TEKKEN_LOWER}*",
            r"\p{N}",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
            *_BLANKS,
        )
    ),
)
_PATTERNS = {
    "kimi-k2": _KIMI_K2,
    "deepseek-v3": _DEEPSEEK_V3,
    "joyai-llm": _DEEPSEEK_V3,
    "deepseek-llm": _DEEPSEEK_LLM,
    "deepseek-coder": _DEEPSEEK_CODER,
    "glm4": _GLM4,
    "glm5": _GLM4,
    "chatglm-bpe": _GLM4,
    "tekken": _TEKKEN,
}
_WITH_WHOLE_TOKENS = frozenset({"glm4", "glm5", "tekken"})
_WITH_BOS = frozenset({"tekken"})


class PreTokenizer:
    """Splits text by the patterns of one vocabulary family."""

    def __init__(
        self,
        patterns: Sequence[str],
        chunks: Callable[[str], Iterator[str]],
        *,
        has_whole_tokens: bool = False,
        adds_bos: bool = False,
    ) -> None:
        """chunks: cuts a long text first, to bound the work between two checks of its limit.

        has_whole_tokens: a piece that is a token stays whole, also if no merges lead to it.
        adds_bos: a prompt begins with the BOS token unless the file says otherwise.
        """
        self.adds_bos = adds_bos
        self.has_whole_tokens = has_whole_tokens
        self._patterns = [regex.compile(pattern, regex.V1) for pattern in patterns]
        self._chunks = chunks

    def chunks(self, text: str) -> Iterator[str]:
        """Cut text into chunks, and runs of more than 25 000 blanks or non-blanks."""
        for chunk in self._chunks(text):
            yield from split_long_runs(chunk, _RUN_CHARS)

    def split(self, text: str) -> Iterator[str]:
        """Split a chunk into pieces. Joined, they are the text."""
        pieces = iter((text,) if text else ())
        for pattern in self._patterns:
            pieces = _split_each(pattern, pieces)
        return pieces


def find_pre_tokenizer(name: str) -> PreTokenizer | None:
    """Find the pre-tokenizer of a value of `tokenizer.ggml.pre`; None for an unknown one."""
    patterns = _PATTERNS.get(name)
    if patterns is None:
        return None
    return PreTokenizer(
        patterns,
        _moonshot_chunks if name == "kimi-k2" else _chunks,
        has_whole_tokens=name in _WITH_WHOLE_TOKENS,
        adds_bos=name in _WITH_BOS,
    )


def _split_each(pattern: regex.Pattern[str], pieces: Iterator[str]) -> Iterator[str]:
    for piece in pieces:
        start = 0
        for match in pattern.finditer(piece):
            begin, end = match.span()
            if begin > start:
                yield piece[start:begin]
            yield piece[begin:end]
            start = end
        if start < len(piece):
            yield piece[start:]


def _moonshot_chunks(text: str) -> Iterator[str]:
    """Cut where Moonshot's code does."""
    for start in range(0, len(text), _MOONSHOT_CHARS):
        yield text[start : start + _MOONSHOT_CHARS]


def _chunks(text: str) -> Iterator[str]:
    return split_text(text, _CHUNK_CHARS)
