"""Options and sizes of an engine: context, KV cache, batch, queue."""

from dataclasses import dataclass
from typing import Annotated

from hybridmoe.config.limits import MAX_CONTEXT_TOKENS
from hybridmoe.errors import ConfigError
from hybridmoe.option import (
    AUTO,
    Choice,
    Count,
    FolderLimit,
    FolderSize,
    Number,
    Speculate,
    Speculation,
    check_options,
)

__all__ = [
    "DEVICES",
    "GPU_KV_TYPES",
    "KV_TYPES",
    "PAGE_TOKENS",
    "PREFILL_TOKENS",
    "EngineConfig",
    "EngineOptions",
    "check_gpu_kv_type",
    "kv_row_bytes",
]

KV_TYPES = ("f16", "bf16", "int8", "f32")  # the default first
GPU_KV_TYPES = ("f16", "bf16")
# The KV cache's layout, as csrc/kernels/kernel_table.h has it.
PAGE_TOKENS = 64
_NUMBER_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
_SCALED_CODES = 64  # of int8, for each float32 scale
# A step of more tokens is prefill. Up to this many, kernels read each weight once and unpack it in
# registers (gemv), and CUDA graphs repeat the step.
PREFILL_TOKENS = 16
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Options of an engine that a user may choose before the model is known."""

    kv_type: Annotated[
        str,
        Choice(
            "KV cache type; int8 halves the memory of f16",
            flags=("-ctk", "--kv-type"),
            choices=KV_TYPES,
        ),
    ] = KV_TYPES[0]
    kv_tokens: Annotated[
        int | None,
        Count("KV cache size in tokens, all requests together", unset="by free memory", least=1),
    ] = None
    max_running: Annotated[
        int,
        Count(
            "Requests in one batch", flags=("-np", "--max-running", "--slots"), least=1, most=4096
        ),
    ] = 8
    max_waiting: Annotated[
        int,
        Count(
            "Requests in the queue; further ones are refused (HTTP 429)",
            flags=("--max-waiting", "--queue"),
            most=1 << 20,
        ),
    ] = 64
    speculate: Annotated[
        Speculation,
        Speculate(
            "Draft tokens, which changes the speed alone: N by prompt lookup; mtp, mtp:N by the"
            " model's layer for multi-token prediction; auto: mtp where it is predicted to be"
            " faster",
            metavar="N|mtp|mtp:N|auto|off",
        ),
    ] = AUTO
    kv_disk: Annotated[
        FolderLimit | None,
        FolderSize(
            "Keep the KV cache in a folder too, up to a size, e.g. DIR=20GiB: prompts computed"
            " before are read from it, after a restart too",
            metavar="DIR=SIZE",
            unset="in memory only",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig(EngineOptions):
    """Sizes of an engine: context, KV cache, batch, queue. Raises ConfigError."""

    context_tokens: Annotated[
        int, Count("Prompt and response of one request", least=1, most=MAX_CONTEXT_TOKENS)
    ]
    chunk_tokens: Annotated[int, Count("Prompt tokens of one step", least=1, most=1 << 16)] = 512
    quick_chunk_tokens: Annotated[
        int,
        Count("The same of a step of a second at most, without decoding", least=0, most=1 << 16),
    ] = 0  # fewer than chunk_tokens: as many
    decode_slowdown: Annotated[
        float, Number("Slowdown of decoding while prompts are read, at most", above=1.0, most=1e6)
    ] = 3.0

    def __post_init__(self) -> None:
        check_options(self)
        if self.kv_tokens is not None and self.kv_tokens < self.context_tokens:
            raise ConfigError(
                f"kv_tokens={self.kv_tokens}: expected at least the context, {self.context_tokens}"
            )


def kv_row_bytes(kv_type: str, latent_dim: int) -> int:
    """Bytes that one token takes in one layer of the KV cache."""
    if kv_type in _NUMBER_BYTES:
        return _NUMBER_BYTES[kv_type] * latent_dim
    assert kv_type == "int8", kv_type
    return 4 * -(-latent_dim // _SCALED_CODES) + 4 * -(-latent_dim // 4)


def check_gpu_kv_type(kv_type: str) -> None:
    """Errors: ConfigError for a KV cache type that GPU kernels do not read."""
    if kv_type not in GPU_KV_TYPES:
        raise ConfigError(
            f"kv_type={kv_type}: expected {' or '.join(GPU_KV_TYPES)} on a GPU"
            " (or use --device cpu)"
        )
