"""Sizes of a model's tensors, and the bytes of them that one token reads.

Pure: takes tensors and metadata, touches no data, and works on incomplete files and other
architectures, too. Reads of one token that is decoded alone:

    routed experts   bytes x top_k / experts       (3-D tensors, experts outermost)
    embedding        one row
    everything else  all of it, once
    output           all of it; if it is missing, the whole embedding instead
    layers past the decoder's (multi-token prediction), `names.unused_names`   nothing

Bytes are the file's, before a loader converts any (an old file's `attn_kv_b`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol

from hybridmoe.config import KV_TYPES, kv_row_bytes
from hybridmoe.gguf.header import MetadataValue
from hybridmoe.gguf.names import PARTS, parse_name, part_of, unused_names
from hybridmoe.gguf.quant_types import QuantType

__all__ = ["Account", "Sizes", "TensorLike", "TypeSizes", "take_account"]


class TensorLike(Protocol):
    """The fields of a tensor that the sums need."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> QuantType: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def num_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sums over the tensors of one part of the model."""

    num_params: int = 0
    num_bytes: int = 0
    active_params: int = 0  # read by one token
    token_bytes: int = 0  # read by one token

    def __add__(self, other: "Sizes") -> "Sizes":
        return Sizes(
            self.num_params + other.num_params,
            self.num_bytes + other.num_bytes,
            self.active_params + other.active_params,
            self.token_bytes + other.token_bytes,
        )


@dataclass(frozen=True, slots=True)
class TypeSizes:
    """Sums over the tensors of one type."""

    num_tensors: int = 0
    num_params: int = 0
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Account:
    """Sums over the tensors of a model."""

    parts: dict[str, Sizes]  # by names.PARTS, in that order; empty parts are left out
    types: dict[QuantType, TypeSizes]  # largest first
    total: Sizes
    kv_layers: int  # layers of the decoder, each with a KV cache
    latent_dim: int | None  # numbers in one row of the KV cache; None if not MLA

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.total.num_bytes / self.total.num_params if self.total.num_params else 0.0

    def kv_bytes_per_token(self, kv_type: str = KV_TYPES[0]) -> int | None:
        """KV cache of one token, in all layers; None if not MLA."""
        if self.latent_dim is None:
            return None
        return self.kv_layers * kv_row_bytes(kv_type, self.latent_dim)


def take_account(tensors: Iterable[TensorLike], metadata: Mapping[str, MetadataValue]) -> Account:
    """Sum up a model's tensors. Never raises: unusable metadata counts as absent."""
    architecture = metadata.get("general.architecture")
    prefix = architecture if isinstance(architecture, str) else ""
    top_k = _number(metadata, f"{prefix}.expert_used_count")
    num_layers = _number(metadata, f"{prefix}.block_count")
    nextn = _number(metadata, f"{prefix}.nextn_predict_layers") or 0
    decoder_layers = None if num_layers is None else num_layers - nextn

    parts = dict.fromkeys(PARTS, Sizes())
    types: dict[QuantType, TypeSizes] = {}
    embedding: TensorLike | None = None
    tensors = list(tensors)
    unused = unused_names([tensor.name for tensor in tensors])
    for tensor in tensors:
        layer, role, _ = parse_name(tensor.name)
        part = part_of(role)
        num_params = prod(tensor.shape)
        fraction = (1, 1)
        is_unrun = layer is not None and decoder_layers is not None and layer >= decoder_layers
        if is_unrun or tensor.name in unused:
            fraction = (0, 1)
        elif part == "embedding":
            embedding = tensor
            fraction = (1, prod(tensor.shape[:-1]))
        elif part == "routed experts" and top_k is not None:
            fraction = (min(top_k, tensor.shape[0]), tensor.shape[0])
        active, of = fraction
        parts[part] += Sizes(
            num_params, tensor.num_bytes, num_params * active // of, tensor.num_bytes * active // of
        )
        sums = types.get(tensor.type, TypeSizes())
        types[tensor.type] = TypeSizes(
            sums.num_tensors + 1, sums.num_params + num_params, sums.num_bytes + tensor.num_bytes
        )
    if embedding is not None and not parts["output"].num_bytes:
        parts["output"] += Sizes(0, 0, prod(embedding.shape), embedding.num_bytes)
    return Account(
        parts={part: sizes for part, sizes in parts.items() if sizes != Sizes()},
        types=dict(sorted(types.items(), key=lambda item: -item[1].num_bytes)),
        total=sum(parts.values(), Sizes()),
        kv_layers=decoder_layers or 0,
        latent_dim=_latent_dim(metadata, f"{prefix}.") if decoder_layers is not None else None,
    )


def _latent_dim(metadata: Mapping[str, MetadataValue], prefix: str) -> int | None:
    latent = _number(metadata, prefix + "attention.kv_lora_rank")
    rope = _number(metadata, prefix + "rope.dimension_count")
    return None if latent is None or rope is None else latent + rope


def _number(metadata: Mapping[str, MetadataValue], key: str) -> int | None:
    value = metadata.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return None
