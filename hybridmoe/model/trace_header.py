"""Header of a routing trace: the model that it was recorded from."""

from typing import Any

from hybridmoe.config import ModelConfig
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.gguf.fingerprint import fingerprint
from hybridmoe.gguf.reader import GGUFFile

__all__ = ["trace_header"]


def trace_header(
    file: GGUFFile, config: ModelConfig, experts: RoutedExperts, source: str
) -> dict[str, Any]:
    """Describe a model, as `TraceWriter` needs it. source: origin of the trace, for readers."""
    return {
        "source": source,
        "model": fingerprint(file),
        "gate": "sigmoid" if config.routing.is_sigmoid else "softmax",
        "num_layers": experts.num_layers,
        "num_experts": experts.num_experts,
        "top_k": experts.top_k,
        "expert_bytes": [weights.expert_bytes for weights in experts.by_index],
    }
