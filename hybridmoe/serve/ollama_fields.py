"""Table of the fields of ollama's requests that no schema declares: see serve/field_table.py."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from hybridmoe.serve.field_row import Fate, Row

__all__ = ["OLLAMA_TABLE"]


def _rows(fate: Fate, names: str, why: str, *neutral: Any) -> dict[str, Row]:
    return {name: Row(fate, (), (name,), why, neutral) for name in names.split()}


OLLAMA_TABLE: Final[Mapping[str, Row]] = MappingProxyType(
    {
        **_rows("refused", "template", "conversations are written by the file's template", ""),
        **_rows("refused", "context", "the conversation is not kept as tokens; use /api/chat", []),
        **_rows("refused", "images", "the model reads text only", []),
        **_rows("refused", "width height steps", "the model writes text only"),
        **_rows("refused", "options.mirostat", "this sampler is not there", 0),
        **_rows("refused", "options.tfs_z", "this sampler is not there", 0, 1),
        **_rows("harmless", "truncate shift", "a prompt is never cut: one too long gets 400"),
        **_rows(
            "harmless",
            "options.num_batch options.num_gpu options.main_gpu options.num_thread options.num_keep"
            " options.use_mmap options.use_mlock options.numa options.low_vram options.vocab_only"
            " options.f16_kv options.logits_all options.embedding_only options.draft_num_predict",
            "the server decides how a model runs",
        ),
        **_rows("harmless", "options.mirostat_tau options.mirostat_eta", "only with mirostat"),
        **_rows("harmless", "options.penalize_newline", "penalties count every token"),
        **_rows("harmless", "messages[].* tools[].*", "the model sees text, calls and functions"),
    }
)
