"""llama.cpp's tokenizer for one GGUF file, through llama-cpp-python's C interface.

For pre-tokenizers that text/pre_tokenizers.py lacks. Loads the vocabulary alone, no weights.
Import this module only when it is needed: llama_cpp takes 0.2 s.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from llama_cpp import llama_cpp as llama

from hybridmoe.errors import ConfigError, GGUFError
from hybridmoe.text.text_splitting import split_long_runs, split_text

__all__ = ["LlamaBpe"]

# llama.cpp matches with std::regex, whose recursion overflows the stack at some 25 000 characters
# of one kind in a row. (Kimi's own tokenizer also cuts at 25 000, for other reasons.)
_MAX_RUN_CHARS = 4096
PIECE_CHARS = 1 << 15  # of one native call, which cannot be cancelled

_log_lock = threading.Lock()
_LOG_ERROR = 4  # enum ggml_log_level


class LlamaBpe:
    """Encodes ordinary text as llama.cpp does for this file."""

    def __init__(self, path: Path, num_tokens: int) -> None:
        """Load the vocabulary of `path`. Raises GGUFError if llama.cpp refuses it."""
        self._lock = threading.Lock()
        params = llama.llama_model_default_params()
        params.vocab_only = True
        params.use_extra_bufts = False
        with _captured_errors() as errors:
            self._model = llama.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            reason = errors[0] if errors else "no reason given"
            raise GGUFError(f"{path.name}: llama.cpp refuses the vocabulary: {reason}")
        self._vocab = llama.llama_model_get_vocab(self._model)
        found = llama.llama_vocab_n_tokens(self._vocab)
        if found != num_tokens:
            self.close()
            raise GGUFError(f"{path.name}: llama.cpp finds {found} tokens; expected {num_tokens}")
        self.adds_bos = bool(llama.llama_vocab_get_add_bos(self._vocab))

    def encode(self, text: str) -> Iterator[list[int]]:
        """Encode piece by piece. Tokens of the type "user defined" are found in the text."""
        for piece in split_text(text, PIECE_CHARS):
            for part in split_long_runs(piece, _MAX_RUN_CHARS):
                yield self._encode(part.encode())

    def close(self) -> None:
        """Free the native memory, once no thread uses it. A second call does nothing."""
        with self._lock:
            if self._model:
                llama.llama_model_free(self._model)
                self._model = None

    def _encode(self, raw: bytes) -> list[int]:
        buffer = (llama.llama_token * len(raw))()  # no token is shorter than a byte
        with self._lock:
            if not self._model:
                raise ConfigError("the tokenizer is closed")
            count = llama.llama_tokenize(
                self._vocab, raw, len(raw), buffer, len(buffer), False, False
            )
        assert count >= 0, (count, len(raw))
        return list(buffer[:count])


@contextlib.contextmanager
def _captured_errors() -> Iterator[list[str]]:
    """Redirect llama.cpp's log; the list receives its error lines."""
    lines: list[str] = []

    def record(level: int, text: bytes, _user_data: object) -> None:
        line = text.decode("utf-8", "replace").strip()
        if level == _LOG_ERROR and line:
            lines.append(" ".join(line.split())[:200])

    callback = llama.llama_log_callback(record)
    previous, user_data = llama.llama_log_callback(), ctypes.c_void_p()
    with _log_lock:
        llama.llama_log_get(ctypes.byref(previous), ctypes.byref(user_data))
        llama.llama_log_set(callback, user_data)
        try:
            yield lines
        finally:
            llama.llama_log_set(previous, user_data)
