"""llama.cpp's own tokenizer, called directly, and files of which it can load the vocabulary."""

import ctypes
from collections.abc import Mapping
from pathlib import Path

import gguf
import llama_cpp.llama_cpp as llama

__all__ = ["LlamaVocabulary", "write_vocabulary"]

_SILENT = llama.llama_log_callback(lambda level, text, user_data: None)


def write_vocabulary(path: Path, metadata: Mapping[str, object]) -> None:
    """Write metadata to a GGUF file without tensors."""
    writer = gguf.GGUFWriter(path, "deepseek2")
    for key in ("block_count", "context_length", "embedding_length", "feed_forward_length"):
        writer.add_uint32(f"deepseek2.{key}", 64)
    writer.add_uint32("deepseek2.attention.head_count", 1)
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, str(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaVocabulary:
    """llama.cpp's own tokenizer, called directly."""

    def __init__(self, path: Path) -> None:
        params = llama.llama_model_default_params()
        params.vocab_only = True
        llama.llama_log_set(_SILENT, ctypes.c_void_p())
        self.model = llama.llama_model_load_from_file(str(path).encode(), params)
        self.vocab = llama.llama_model_get_vocab(self.model)

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        raw = text.encode()
        buffer = (llama.llama_token * (len(raw) + 1))()
        count = llama.llama_tokenize(
            self.vocab, raw, len(raw), buffer, len(buffer), False, parse_special
        )
        return list(buffer[:count])

    def piece(self, token_id: int) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        count = llama.llama_token_to_piece(self.vocab, token_id, buffer, 256, 0, True)
        return buffer.raw[:count]

    def close(self) -> None:
        llama.llama_model_free(self.model)
