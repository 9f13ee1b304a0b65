"""Kernel launches of models: Kimi K2, GLM-5.2, DeepSeek V3, V2, V2-Lite at their sizes; the demo.

Together they have every matrix type in every place that a file can have it in, both types of the KV
cache, and steps of all kinds (`model_launches`).
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from k2_config import K2
from k2_header import k2_tensors

from hybridmoe.config import ModelConfig
from hybridmoe.demo import demo_path
from hybridmoe.gguf.names import parse_name
from hybridmoe.gguf.quant_types import QuantType as T
from hybridmoe.gguf.quant_types import block_layout, tensor_bytes
from hybridmoe.gguf.reader import GGUFFile, Tensor
from hybridmoe.gguf.tensor_table import read_config, tensor_shapes
from hybridmoe.kernels.triton.launches import Launch
from hybridmoe.kernels.triton.matrix import TYPES
from hybridmoe.kernels.triton.vectors import VECTOR_KINDS
from hybridmoe.placement.gpu_launches import GpuPart, model_launches
from hybridmoe.planning.releases import release_named

__all__ = ["KV_TYPES", "MODELS", "NUM_MULTIPROCESSORS", "Model", "launches_of_all", "shape_of"]

KV_TYPES = ("f16", "bf16")
NUM_MULTIPROCESSORS = 132

V3 = {
    **K2, "deepseek2.attention.head_count": 128, "deepseek2.expert_count": 256,
    "deepseek2.expert_group_count": 8, "deepseek2.expert_group_used_count": 4,
}  # fmt: skip
_SOFTMAX = {
    **K2, "deepseek2.expert_gating_func": 1, "deepseek2.expert_weights_norm": False,
    "deepseek2.expert_shared_count": 2, "deepseek2.expert_used_count": 6,
}  # fmt: skip
V2 = {
    **_SOFTMAX, "deepseek2.embedding_length": 5120, "deepseek2.feed_forward_length": 12288,
    "deepseek2.attention.head_count": 128, "deepseek2.expert_count": 160,
    "deepseek2.expert_feed_forward_length": 1536,
}  # fmt: skip
V2_LITE = {
    **_SOFTMAX, "deepseek2.embedding_length": 2048, "deepseek2.feed_forward_length": 10944,
    "deepseek2.attention.head_count": 16, "deepseek2.expert_count": 64,
    "deepseek2.expert_feed_forward_length": 1408,
}  # fmt: skip
del V2_LITE["deepseek2.attention.q_lora_rank"]

_GLM_5_2 = release_named("glm-5.2")
assert _GLM_5_2 is not None
GLM_5_2 = _GLM_5_2.metadata

_SIZED = [T[kind] for kind in VECTOR_KINDS]  # of which launches depend on a matrix's size

# Gate and up of one type in files; of two, in those of other quantizers.
_MIXED = ((T.Q4_K, T.Q6_K, T.Q5_K), (T.Q4_K, T.Q5_1, T.Q8_0))


@dataclass(frozen=True)
class Model:
    """A model whose tensors lie in no memory: zeros, read from a file without blocks."""

    file: GGUFFile
    config: ModelConfig

    def launches(self) -> dict[str, Launch]:
        """One launch of each shape, by shape."""
        found: dict[str, Launch] = {}
        for kv_type in KV_TYPES:
            part = GpuPart(kv_type=kv_type)
            for launch in model_launches(self.file, self.config, part, NUM_MULTIPROCESSORS):
                found.setdefault(shape_of(launch), launch)
        return found


@contextmanager
def _every_type(metadata: dict[str, object], types: Sequence[T] = TYPES) -> Iterator[Model]:
    """A dense layer and one of experts of each type, and mixed experts."""
    same = [(kind,) * 3 for kind in types]
    layers = (*same, *same, *_MIXED)
    architecture = metadata["general.architecture"]
    metadata = {
        **metadata,
        f"{architecture}.block_count": len(layers),
        f"{architecture}.leading_dense_block_count": len(types),
    }
    roles = ("ffn_gate", "ffn_up", "ffn_down")

    def kind_of(name: str) -> T:
        layer, role, _ = parse_name(name)
        if layer is None:
            return T.F16
        which = next((i for i, start in enumerate(roles) if role.startswith(start)), 0)
        return layers[layer][which]

    config = ModelConfig.from_metadata(metadata)
    shapes = tensor_shapes(config)
    tensors = ((name, shape, _fitting(kind_of(name), name, shape)) for name, shape in shapes)
    with _opened(metadata, tensors) as model:
        yield model


def _fitting(kind: T, name: str, shape: tuple[int, ...]) -> T:
    """The type that a quantizer gives a tensor: another where rows are no whole blocks of it."""
    if len(shape) == 1 or ".ffn_gate_inp." in name:
        return T.F32
    fits = (k for k in (kind, T.Q8_0) if shape[-1] % block_layout(k).weights == 0)
    return next(fits, T.F16)


@contextmanager
def _k2() -> Iterator[Model]:
    with _opened(K2, k2_tensors()) as model:
        yield model


@contextmanager
def _embedded() -> Iterator[Model]:
    with GGUFFile.open(demo_path()) as file:
        yield Model(file, read_config(file.metadata, file.tensors))


@contextmanager
def _opened(
    metadata: dict[str, object], shapes: Iterator[tuple[str, tuple[int, ...], T]]
) -> Iterator[Model]:
    sized = []
    for name, shape, kind in shapes:
        sized.append((name, shape, kind, tensor_bytes(kind, shape)))
    with tempfile.NamedTemporaryFile() as holes:
        holes.truncate(max(size for *_, size in sized))
        zeros = np.memmap(holes.name, np.uint8, "r")
        tensors = {
            name: Tensor(name, kind, shape, zeros[:size], size, 0, 0)
            for name, shape, kind, size in sized
        }
        path = Path(holes.name)
        read_only = MappingProxyType(metadata), MappingProxyType(tensors)
        file = GGUFFile(path, (path,), *read_only, (), 3, ())  # type: ignore[arg-type]
        yield Model(file, read_config(metadata, tensors))


MODELS: dict[str, Callable[[], AbstractContextManager[Model]]] = {
    "K2 in Q4_K_M": _k2,
    "embedded": _embedded,
    "V3": lambda: _every_type(V3),
    "GLM-5.2": lambda: _every_type(GLM_5_2, [T.Q4_K]),
    "V2": lambda: _every_type(V2, _SIZED),
    "V2-Lite": lambda: _every_type(V2_LITE, _SIZED),
}


def launches_of_all() -> dict[str, Launch]:
    """One launch of each shape, the first that the models have."""
    found: dict[str, Launch] = {}
    for opened in MODELS.values():
        with opened() as model:
            found = model.launches() | found
    return found


def shape_of(launch: Launch) -> str:
    """Kernel, constants, options and tensors' types: a binary's key but for sizes' divisors."""
    constants = {k: getattr(v, "name", v) for k, v in launch.constants.items()}
    names = launch.kernel.arg_names
    options = {k: v for k, v in launch.options.items() if k not in names}
    types = [str(a.dtype) for a in launch.args if hasattr(a, "dtype")]
    return f"{launch.name} {constants} {options} {types}"
