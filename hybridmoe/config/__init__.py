"""Model and engine configuration, read from GGUF metadata or options and checked once.

Knows keys, ranges and defaults, but neither files nor tensors, so that it stays at the bottom of
the import order.
"""

from hybridmoe.config.engine import (
    DEVICES,
    GPU_KV_TYPES,
    KV_TYPES,
    PAGE_TOKENS,
    PREFILL_TOKENS,
    EngineConfig,
    EngineOptions,
    check_gpu_kv_type,
    kv_row_bytes,
)
from hybridmoe.config.expansion import Chunk, Expansion
from hybridmoe.config.indexer import IndexerConfig
from hybridmoe.config.model import SUPPORTED_ARCHITECTURES, AttentionTemperature, ModelConfig
from hybridmoe.config.routing import GATE_SIGMOID, GATE_SOFTMAX, RoutingSpec
from hybridmoe.config.yarn import YarnConfig

__all__ = [
    "DEVICES",
    "GATE_SIGMOID",
    "GATE_SOFTMAX",
    "GPU_KV_TYPES",
    "KV_TYPES",
    "PAGE_TOKENS",
    "PREFILL_TOKENS",
    "SUPPORTED_ARCHITECTURES",
    "AttentionTemperature",
    "Chunk",
    "EngineConfig",
    "EngineOptions",
    "Expansion",
    "IndexerConfig",
    "ModelConfig",
    "RoutingSpec",
    "YarnConfig",
    "check_gpu_kv_type",
    "kv_row_bytes",
]
