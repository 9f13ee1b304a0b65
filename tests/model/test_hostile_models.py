"""Files whose header is sound and whose model is not: each is refused by one line that names it.

Cases are a model's tensors and metadata with one thing changed: shapes, types, numbers, lists. A
model is bound as `load` does it, without its tokenizer.
"""

from collections.abc import Iterator
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import NamedTuple

import pytest
from raw_gguf import RawFile, RawTensor, V, array, key, laid_out, scalar
from tiny_gguf import write_tiny

from hybridmoe.errors import GGUFError
from hybridmoe.gguf.outline import read_outline
from hybridmoe.gguf.quant_types import QuantType as Q
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.gguf.tensor_table import read_config
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.weights import Weights
from hybridmoe.planning.model_sizes import sizes_of

SMALL = {
    "layers": 3, "hidden": 64, "heads": 2, "q_lora": 64, "kv_lora": 64, "rope": 32, "nope": 32,
    "v": 32, "dense_width": 64, "experts": 4, "expert_width": 64,
}  # fmt: skip
MODELS: dict[str, dict[str, object]] = {
    "fused": {"variant": "v3", "type": Q.NVFP4, "scaled": True, "fused_gate_up": True},
    "glm": {"variant": "glm5", "index_types": (True, False, True), "index_heads": 4},
    "v32": {"variant": "v32", "index_heads": 4},
    "mistral": {"variant": "mistral4"},
    "flat": {"variant": "k2", "flat_kv_b": True},
}
SAME = (Q.F32, Q.F16, Q.BF16)  # of a matrix, that change nothing but its bytes


class Model(NamedTuple):
    """Metadata and tensors of a file; data is made when it is written."""

    metadata: dict[str, object]
    tensors: dict[str, RawTensor]

    @property
    def prefix(self) -> str:
        return f"{self.metadata['general.architecture']}."

    def write(self, path: Path) -> Path:
        tensors, num_bytes = laid_out(list(self.tensors.values()))
        keys = [_key(name, value) for name, value in self.metadata.items()]
        return RawFile(keys, tensors, bytes(num_bytes)).write(path)  # zeros: valid in any type

    def with_key(self, name: str, value: object) -> "Model":
        metadata = {**self.metadata, self.prefix + name: value}
        return self._replace(metadata={k: v for k, v in metadata.items() if v is not None})

    def with_tensor(self, name: str, tensor: RawTensor | None) -> "Model":
        tensors = {**self.tensors, name: tensor}
        return self._replace(tensors={k: v for k, v in tensors.items() if v is not None})


class Case(NamedTuple):
    """A model with one thing changed, and what the refusal names."""

    model: Model
    named: str


def _key(name: str, value: object) -> bytes:
    if isinstance(value, list):
        kind = _kind(value[0]) if value else V.INT32
        return key(name, V.ARRAY, array(kind, value))
    return key(name, _kind(value), scalar(_kind(value), value))


def _kind(value: object) -> V:
    if isinstance(value, bool):
        return V.BOOL
    if isinstance(value, int):
        return V.INT64 if value < 2**63 else V.UINT64
    return V.FLOAT64 if isinstance(value, float) else V.STRING


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    found = {}
    for name, given in MODELS.items():
        path = tmp_path_factory.mktemp("models") / "x.gguf"
        write_tiny(path, **{**SMALL, **given})
        with GGUFFile.open(path) as file:
            metadata = {k: v for k, v in file.metadata.items() if not k.startswith("tokenizer.")}
            tensors = {
                t.name: RawTensor(t.name, t.shape[::-1], t.type) for t in file.tensors.values()
            }
        found[name] = Model(metadata, tensors)
    return found


def bind(path: Path) -> None:
    """Open a file as `load`, `plan` and `inspect` do."""
    outline = read_outline(path)
    sizes_of(outline.tensors, outline.config)
    with GGUFFile.open(path) as file:
        config = read_config(file.metadata, file.tensors)
        Decoder(Weights(file), config)


def refusal(path: Path) -> str | None:
    try:
        bind(path)
    except GGUFError as error:
        return str(error)
    return None


def wrong_tensors(model: Model, *parts: str) -> Iterator[Case]:
    """Each tensor with one of these in its name: missing, misshapen, of an integer type."""
    for name, tensor in model.tensors.items():
        if not any(part in name for part in parts) or name.endswith(".input_scale"):  # not used
            continue
        layer = ".".join(name.split(".")[:2])  # a missing stack is named by its layer
        if not name.endswith("scale"):  # which may be missing
            yield Case(model.with_tensor(name, None), layer)
        dims = list(tensor.dims)
        shapes = [[*dims[:-1], dims[-1] + 1], [*dims[:-1], 2 * dims[-1]], [*dims, 2], [dims[0]]]
        if len(dims) > 1:
            shapes += [[*dims[:-2], dims[-2] * dims[-1]], [dims[0], 2, *dims[1:]]]
        for shape in shapes:
            is_flat = "attn_k_b" in name or "attn_v_b" in name
            same = [d for d in shape if d != 1] == [d for d in dims if d != 1]
            if same or len(shape) > 4 or (is_flat and len(shape) == len(dims) - 1):
                continue
            yield Case(model.with_tensor(name, replace(tensor, dims=shape)), name)
        yield Case(model.with_tensor(name, replace(tensor, type=Q.I32)), name)


def test_tensors_of_other_shapes_are_refused_by_name(
    models: dict[str, Model], tmp_path: Path
) -> None:
    cases = [
        *wrong_tensors(models["fused"], "_exps.", "exp_probs_b", "attn_output.", "shexp.weight"),
        *wrong_tensors(models["glm"], "indexer."),
        *wrong_tensors(models["v32"], "blk.0.indexer."),
        *wrong_tensors(models["flat"], "blk.1.attn_k_b", "blk.1.attn_v_b"),
    ]
    assert len(cases) > 150
    refused_by_name(cases, tmp_path)


# Of a count: none of these is one.
NO_COUNTS = (-1, 2**63, 2**32, 1.5, "4", [], [4], [4, 4], [4, 4, 5], ["4"] * 3, [-1] * 3, True)
NO_NUMBERS = (-1.0, nan, inf, 1e9, "1", [1.0], True)
WRONG_VALUES: dict[str, dict[str, tuple[object, ...]]] = {
    "fused": {
        "expert_count": (0, 8, *NO_COUNTS),
        "expert_used_count": (0, 5, *NO_COUNTS),
        "expert_feed_forward_length": (0, 63, 128, *NO_COUNTS),
        "expert_group_count": (3, 8, *NO_COUNTS),
        "expert_group_used_count": (0, 5, *NO_COUNTS),
        "attention.head_count": (0, 1, 3, *NO_COUNTS),
        "block_count": ([1] * 500, "x" * 500),
        "feed_forward_length": (0, 65, *NO_COUNTS),
        "nextn_predict_layers": (3, 4, *NO_COUNTS),
        "expert_gating_func": (1, 3, 4, *NO_COUNTS[:5]),
        "rope.scaling.attn_factor": (0.0, 2.0, *NO_NUMBERS[:-1]),
        "rope.scaling.yarn_attn_factor": (0.0, 2.0, *NO_NUMBERS[:-1]),
        "rope.scaling.yarn_ext_factor": (0.0, -1.0, *NO_NUMBERS[:-1]),
    },
    "glm": {
        "attention.indexer.head_count": (0, 3, *NO_COUNTS),
        "attention.indexer.key_length": (0, 31, 129, *NO_COUNTS),
        "attention.indexer.top_k": (0, *NO_COUNTS),
        "attention.indexer.types": ([], [True, True], [False] * 3, [2, 0, 0], [nan] * 3, "1", 1),
        "attention.temperature_scale": (0.1, nan, "1"),
    },
    "mistral": {
        "attention.temperature_scale": NO_NUMBERS,
        "attention.temperature_length": (0, 2**31, *NO_COUNTS),
    },
}


def test_values_of_the_metadata_are_refused_by_key(
    models: dict[str, Model], tmp_path: Path
) -> None:
    cases = [
        Case(models[model].with_key(name, value), _of_key(name))
        for model, keys in WRONG_VALUES.items()
        for name, values in keys.items()
        for value in values
    ]
    assert len(cases) > 150
    refused_by_name(cases, tmp_path)


def _of_key(name: str) -> str:
    """Sizes that do not fit are seen in the first tensor: any name will do there."""
    return name.rpartition(".")[2]


def refused_by_name(cases: list[Case], tmp_path: Path) -> None:
    path, wrong = tmp_path / "x.gguf", list[str]()
    for number, (model, named) in enumerate(cases):
        message = refusal(model.write(path))
        if message is None or (named not in message and "tensor " not in message):
            wrong.append(f"{number} {named}: {message}")
        elif not message.isprintable() or len(message) > 400:
            wrong.append(f"{number} {named}: {message!r:.500}")
    assert not wrong, "\n".join(wrong)


def test_the_models_are_sound_without_a_change(models: dict[str, Model], tmp_path: Path) -> None:
    for model in models.values():
        bind(model.write(tmp_path / "x.gguf"))


@pytest.mark.parametrize("kind", SAME, ids=lambda kind: kind.name)
def test_other_types_of_a_matrix_are_sound(
    models: dict[str, Model], tmp_path: Path, kind: Q
) -> None:
    model = models["v32"]
    for name in ("blk.0.indexer.proj.weight", "blk.1.ffn_up_exps.weight", "blk.1.attn_k_b.weight"):
        model = model.with_tensor(name, replace(model.tensors[name], type=kind))
    bind(model.write(tmp_path / "x.gguf"))


NEW = [kind for kind in Q if kind.name.startswith(("IQ", "Q6_0", "Q2_0", "Q1_0"))]


@pytest.mark.parametrize("kind", NEW, ids=lambda kind: kind.name)
def test_rows_of_broken_blocks_are_refused(
    models: dict[str, Model], tmp_path: Path, kind: Q
) -> None:
    """A width of 64 holds no whole block of 256; one of 96 none of 64; a cut file lacks bytes."""
    name = "blk.1.ffn_down_exps.weight"
    model = models["mistral"]
    for width in (64, 96, 33):
        placed, num_bytes = laid_out([t for t in model.tensors.values() if t.name != name])
        last = RawTensor(name, [width, 64, 4], kind, offset=-(-num_bytes // 32) * 32)
        keys = [_key(n, value) for n, value in model.metadata.items()]
        path = RawFile(keys, [*placed, last], bytes(num_bytes + 40)).write(tmp_path / "x.gguf")
        message = refusal(path)
        assert message is not None and name in message, (width, message)


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_a_factor_that_is_not_finite_is_refused(
    models: dict[str, Model], tmp_path: Path, value: float
) -> None:
    path = models["fused"].write(tmp_path / "x.gguf")
    with GGUFFile.open(path) as file:
        tensor = file.tensors["blk.1.ffn_down_exps.scale"]
    data = bytearray(path.read_bytes())
    data[tensor.offset + 4 : tensor.offset + 8] = scalar(V.FLOAT32, value)
    path.write_bytes(data)
    with pytest.raises(GGUFError, match=r"blk\.1\.ffn_down_exps\.scale holds NaN or infinity"):
        bind(path)
