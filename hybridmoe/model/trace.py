"""Routing traces of a model: the header, and a writer for a run."""

from pathlib import Path
from typing import Any

from hybridmoe.config import ModelConfig
from hybridmoe.errors import ConfigError
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.experts.routing_trace import TraceWriter
from hybridmoe.gguf.fingerprint import fingerprint
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.model.weights import Weights, routed_experts

__all__ = ["open_trace", "trace_header"]


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


def open_trace(path: Path, file: GGUFFile, config: ModelConfig) -> TraceWriter:
    """Begin the trace of a run. Errors: ConfigError without routed experts, or a file error."""
    experts = routed_experts(Weights(file), config)
    if not experts.layers:
        raise ConfigError(f"{file.path.name} has no routed experts to trace")
    header = trace_header(file, config, experts, f"requests to {file.path.name}")
    try:
        return TraceWriter(path, header)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
