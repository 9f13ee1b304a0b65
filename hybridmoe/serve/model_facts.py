"""Facts about a model's file that model lists show beside its configuration."""

import hashlib
import math
from typing import Any

from hybridmoe.errors import TemplateError
from hybridmoe.gguf.file_types import file_type_name
from hybridmoe.llm.llm import LLM
from hybridmoe.text.chat_template import KIMI_K2_TEMPLATE, ChatTemplate

__all__ = ["chat_template", "file_facts"]


def file_facts(llm: LLM) -> dict[str, Any]:
    """Describe the file: size in bytes, parameters, type, and what the model can do."""
    file = llm.file
    template = chat_template(llm)
    try:
        modified_s = file.path.stat().st_mtime
    except OSError:  # replaced or removed while it is mapped
        modified_s = 0.0
    num_bytes = file.num_bytes
    identity = f"{file.path.name} {num_bytes} {modified_s}"
    has_marks = llm.tokenizer.special_id("<think>") is not None
    can = {"tools": "tools" in template, "thinking": has_marks and "think" in template}
    return {
        "architecture": str(file.metadata.get("general.architecture", "")),
        "ftype": file_type_name(file.metadata.get("general.file_type")) or "unknown",
        "n_embd": llm.config.hidden,
        "n_params": sum(math.prod(tensor.shape) for tensor in file.tensors.values()),
        "size": num_bytes,
        "modified": int(modified_s),
        # Of the file's identity, not of its bytes: those may be hundreds of gigabytes.
        "digest": hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest(),
        "capabilities": ["completion", *(name for name, has in can.items() if has)],
    }


def chat_template(llm: LLM) -> str:
    """Get the source of a model's chat template; "" if it has none."""
    metadata = llm.file.metadata
    source = metadata.get("tokenizer.chat_template")
    if isinstance(source, str):
        return source
    try:
        return KIMI_K2_TEMPLATE if ChatTemplate.is_known(metadata, llm.tokenizer) else ""
    except TemplateError:
        return ""
