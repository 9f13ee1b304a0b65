"""Outline of a GGUF model from its headers, even if parts, or all weights, are missing.

The first part of a split file has all metadata, and a list of its own tensors. Those of the other
parts follow from the model's sizes; their types, from the types seen and from the file's statement
of its quantization. So a plan for a terabyte model needs the first megabytes of its file.

Source of the mixtures `Q4_K_M` and `Q5_K_M`: llama.cpp, `llama_tensor_get_type`, `use_more_bits`.
"""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf import LlamaFileType

from hybridmoe.config import ModelConfig
from hybridmoe.errors import ConfigError, GGUFError
from hybridmoe.gguf.cursor import printable
from hybridmoe.gguf.header import MetadataValue, TensorInfo, parse_header
from hybridmoe.gguf.names import FUSED_ROLE, is_expert_tensor, parse_name
from hybridmoe.gguf.quant_types import QuantType as Q
from hybridmoe.gguf.quant_types import block_layout, tensor_bytes
from hybridmoe.gguf.reader import map_file
from hybridmoe.gguf.split import check_part, count_parts, part_path
from hybridmoe.gguf.tensor_table import read_config, tensor_shapes

__all__ = ["Outline", "outline_of", "read_outline", "with_expert_type"]

# In these mixtures, half of the down projections have the second type.
_MIXTURES = {
    LlamaFileType.MOSTLY_Q4_K_M: (Q.Q4_K, Q.Q6_K),
    LlamaFileType.MOSTLY_Q5_K_M: (Q.Q5_K, Q.Q6_K),
}
_FALLBACKS = {Q.Q4_K: Q.Q5_0, Q.Q5_K: Q.Q5_1, Q.Q6_K: Q.Q8_0}
_SUFFIX = ("_S", "_M", "_L", "_XL")  # of mixtures named by their main type


@dataclass(frozen=True, slots=True)
class Outline:
    """Tensors of a model, read from headers or derived from its sizes."""

    path: Path
    metadata: Mapping[str, MetadataValue]
    config: ModelConfig
    tensors: tuple[TensorInfo, ...]
    num_parts: int
    missing_parts: tuple[int, ...]  # counted from 1
    num_derived: int  # tensors whose types are an estimate
    has_weights: bool  # all parts exist and are whole


def read_outline(path: str | os.PathLike[str]) -> Outline:
    """Read the headers of a GGUF, or of the existing parts of a split one.

    The first part must exist; each may end after its header.
    Errors: GGUFError, one line, for a damaged header; UnsupportedModelError for another model.
    """
    path = Path(path)
    view, _ = map_file(path)
    name = printable(path.name, 255)
    header = parse_header(view, name, needs_data=False)
    metadata = header.metadata
    count = count_parts(path, metadata)
    found = {tensor.name: tensor for tensor in header.tensors}
    is_whole = _is_whole(header.tensors, len(view))
    missing = []
    for number in range(2, count + 1):
        part = part_path(path, number, count)
        if not part.exists():
            missing.append(number)
            continue
        view, _ = map_file(part, f" (part {number} of {count})")
        other = parse_header(view, printable(part.name, 255), needs_data=False)
        check_part(part, other.metadata, metadata, number)
        is_whole = is_whole and _is_whole(other.tensors, len(view))
        found |= {tensor.name: tensor for tensor in other.tensors}
    config = read_config(metadata, found)
    derived = _derive(found, config, metadata, name) if missing else []
    return Outline(
        path=path,
        metadata=metadata,
        config=config,
        tensors=(*found.values(), *derived),
        num_parts=count,
        missing_parts=tuple(missing),
        num_derived=len(derived),
        has_weights=is_whole and not missing,
    )


def outline_of(metadata: Mapping[str, MetadataValue], quant: str) -> Outline:
    """Outline a file that does not exist, from its metadata and quantization.

    quant: as files are called: `Q4_K_M`, `UD-Q2_K_XL` (its main type), `Q4_0`. Errors: ConfigError.
    """
    name = quant.upper().removeprefix("UD-")
    plain = name.removesuffix("_XL")
    known = [kind for kind in LlamaFileType if _main_type(kind) is not None]
    kinds = {kind.name.partition("_")[2]: kind for kind in known}
    kind = next((kinds[n] for n in (name, plain, f"{plain}_M") if n in kinds), None)
    if kind is None:
        raise ConfigError(f"quant {quant!r:.40} is unknown; known: {', '.join(kinds)}")
    config = read_config(metadata, ())
    types = _Types({}, {"general.file_type": int(kind)}, config.num_layers)
    tensors = tuple(
        _tensor(name, shape, types.of(name, shape)) for name, shape in tensor_shapes(config)
    )
    return Outline(
        path=Path(f"{config.name}.gguf"),
        metadata=metadata,
        config=config,
        tensors=tensors,
        num_parts=1,
        missing_parts=(),
        num_derived=len(tensors),
        has_weights=False,
    )


def with_expert_type(tensors: tuple[TensorInfo, ...], type_name: str) -> tuple[TensorInfo, ...]:
    """Requantize the routed experts on paper: types and sizes only. Errors: ConfigError."""
    try:
        type = Q[type_name.upper()]
    except KeyError:
        known = ", ".join(sorted(type.name for type in Q))
        raise ConfigError(f"type {type_name!r:.40} is unknown; known: {known}") from None
    changed = []
    for tensor in tensors:
        if is_expert_tensor(tensor.name):
            if not _fits(type, tensor.shape):
                raise ConfigError(
                    f"{type.name}: rows of {tensor.shape[-1]} in {printable(tensor.name)} are not"
                    f" a multiple of its {block_layout(type).weights}"
                )
            tensor = _tensor(tensor.name, tensor.shape, type)
        changed.append(tensor)
    return tuple(changed)


def _is_whole(tensors: list[TensorInfo], size: int) -> bool:
    return all(tensor.offset + tensor.num_bytes <= size for tensor in tensors)


def _derive(
    found: Mapping[str, TensorInfo],
    config: ModelConfig,
    metadata: Mapping[str, MetadataValue],
    file: str,
) -> list[TensorInfo]:
    """Derive the tensors of missing parts."""
    types = _Types(found, metadata, config.num_layers)
    roles = {parse_name(name).role for name in found}
    is_old = "attn_kv_b" in roles and "attn_k_b" not in roles
    derived = []
    for name, shape in tensor_shapes(config, is_old=is_old, is_fused=FUSED_ROLE in roles):
        if name in found:
            continue
        derived.append(_tensor(name, shape, types.of(name, shape)))
    promised = metadata.get("split.tensors.count")
    # Fewer are no reason to refuse: a tied output, a missing router bias, extra tensors.
    if isinstance(promised, int) and len(found) > promised:
        raise GGUFError(
            f"{file}: split.tensors.count: found {promised}, "
            f"but the existing parts hold {len(found)} tensors"
        )
    return derived


class _Types:
    """Estimate of the types of tensors that were not seen."""

    def __init__(
        self, found: Mapping[str, TensorInfo], metadata: Mapping[str, MetadataValue], layers: int
    ) -> None:
        self._layers = layers
        self._seen: dict[str, list[tuple[int, Q]]] = {}
        for tensor in found.values():
            layer, role, suffix = parse_name(tensor.name)
            if suffix == "weight":
                self._seen.setdefault(role, []).append((layer or 0, tensor.type))
        number = metadata.get("general.file_type")
        known = {int(kind) for kind in LlamaFileType}
        self._kind = LlamaFileType(number) if number in known else None

    def of(self, name: str, shape: tuple[int, ...]) -> Q:
        layer, role, suffix = parse_name(name)
        if role == "ffn_gate_inp" or suffix == "bias" or len(shape) == 1:
            return Q.F32
        seen = self._seen.get(role, [])
        mixture = _MIXTURES.get(self._kind) if self._kind is not None else None
        if mixture and role.startswith("ffn_down") and layer is not None:
            fits = all(type == mixture[self._has_more(other)] for other, type in seen)
            if fits:
                return mixture[self._has_more(layer)]
        if seen:
            return min(seen, key=lambda entry: abs(entry[0] - (layer or 0)))[1]
        main = self._main(shape)
        # Every K and IQ mixture of llama.cpp spends more bits on the head.
        return Q.Q6_K if role == "output" and _bits(main) < _bits(Q.Q6_K) else main

    def _has_more(self, layer: int) -> bool:
        """Return whether a mixture gives the layer's down projection its better type."""
        eighth = self._layers // 8
        return layer < eighth or layer >= 7 * self._layers // 8 or (layer - eighth) % 3 == 2

    def _main(self, shape: tuple[int, ...]) -> Q:
        """Choose the type that the file states for its quantization; else the most common one."""
        main = None if self._kind is None else _main_type(self._kind)
        if main is not None and (_fits(main, shape) or not self._seen):
            return main
        seen = Counter(type for entries in self._seen.values() for _, type in entries)
        fitting = [type for type, _ in seen.most_common() if type != Q.F32 and _fits(type, shape)]
        return fitting[0] if fitting else Q.Q8_0


def _main_type(kind: LlamaFileType) -> Q | None:
    """Return the type that a quantization is named after; None if it is named otherwise."""
    text = kind.name.removeprefix("MOSTLY_").removeprefix("ALL_")
    names = (text, *(text.removesuffix(end) for end in _SUFFIX))
    return next((Q[name] for name in names if name in Q.__members__), None)


def _fits(type: Q, shape: tuple[int, ...]) -> bool:
    return shape[-1] % block_layout(type).weights == 0


def _bits(type: Q) -> float:
    layout = block_layout(type)
    return 8 * layout.num_bytes / layout.weights


def _tensor(name: str, shape: tuple[int, ...], type: Q) -> TensorInfo:
    if not _fits(type, shape):  # as llama.cpp falls back: rows of 1408 in V2-Lite and Moonlight
        type = _FALLBACKS.get(type, Q.IQ4_NL)
    if not _fits(type, shape):
        type = Q.F16
    return TensorInfo(name, type, shape, tensor_bytes(type, shape), 0)
