"""Prompts by AMX tiles, attention and products, on any machine with AVX-512: tiles are emulated."""

import ctypes
import shutil
import subprocess
import sysconfig
from collections.abc import Callable

import closeness
import numpy as np
import pytest
import torch
from attention_cases import BLOCK, SCALE, TILE_SHAPES, Inputs, inputs, paged, stored
from native_build import ROOT, SETUP
from random_weights import TYPES, block_weights, random_matrix
from waiting import HANG_S

from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.hardware import isa
from hybridmoe.kernels import reference
from hybridmoe.kernels.matrix import QuantMatrix

Attention = Callable[[Inputs, str, float], torch.Tensor]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if "avx512" not in isa.supported():
        pytest.skip("the emulation itself needs AVX-512")
    compiler = sysconfig.get_config_var("CXX").split()[0]
    if not shutil.which(compiler):
        pytest.skip(f"needs {compiler}")
    library = tmp_path_factory.mktemp("emulated") / "emulated.so"
    names = ["tests/emulated_amx", "ops/attention", "ops/kv_pages", "ops/linear"]
    names += ["ops/expert_ffn", "ops/expert_tiles"]
    names += ["base/job_trace", "base/runtime", "base/thread_pool", "formats/codebooks"]
    flags = [*SETUP.CFLAGS, *SETUP.ISA_FLAGS["amx"], "-O1", "-w", "-shared", "-fPIC", "-pthread"]
    sources = [str(SETUP.CSRC / f"{name}.cpp") for name in names]
    subprocess.run(
        [compiler, *flags, *sources, "-o", str(library)], cwd=ROOT, check=True, timeout=HANG_S
    )
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module")
def emulated(library: ctypes.CDLL) -> Attention:
    function = library.emulated_attention
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [
        pointer, pointer, size, size, size, size, ctypes.c_float, pointer, ctypes.c_int, size,
        pointer, size, size, pointer,
    ]  # fmt: skip
    function.restype = None

    def attention(x: Inputs, type: str, scale: float) -> torch.Tensor:
        a, b, kv = x
        pages, tables = paged([kv], type)
        table = torch.tensor(tables[0], dtype=torch.int32)
        out = torch.full_like(a, float("nan"))
        heads, tokens, latent = a.shape
        function(
            a.data_ptr(), b.data_ptr(), tokens, heads, latent, b.shape[2], scale,
            pages.data.data_ptr(), type == "f16", len(pages.data), table.data_ptr(), len(table),
            len(kv) - tokens, out.data_ptr(),
        )  # fmt: skip
        return out

    return attention


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).square().mean().sqrt() / want.square().mean().sqrt())


@pytest.mark.slow  # half a minute of compiling
@pytest.mark.parametrize("type", ["f16", "bf16"])
@pytest.mark.parametrize("shape", TILE_SHAPES, ids=str)
def test_only_weights_are_rounded_where_queries_are_bfloat16(
    emulated: Attention, shape: tuple[int, ...], type: str
) -> None:
    """A weight is off by up to u / sqrt(3) of itself, u = 2^-9, and the softmax averages.

    Keys of eight bits where the pages have eleven would be off by more, and so are other scales.
    """
    a, b, kv = inputs(*shape)
    a, b = a.bfloat16().float(), b.bfloat16().float()
    want = reference.latent_attention(a, b, stored(kv, type), SCALE)
    bound = 2.0**-9 / 3**0.5
    assert error(emulated((a, b, kv), type, SCALE), want) <= bound
    coarse = reference.latent_attention(a, b, stored(kv, "bf16"), SCALE)
    assert type == "bf16" or error(coarse, want) > bound
    assert error(reference.latent_attention(a, b, stored(kv, type), 1.02 * SCALE), want) > bound


@pytest.mark.slow
@pytest.mark.parametrize("type", ["f16", "bf16"])
def test_the_first_token_gets_its_own_latent(emulated: Attention, type: str) -> None:
    a, b, kv = inputs(3, 20, 160, 32, 20)
    out = emulated((a, b, kv), type, SCALE)
    assert torch.equal(out[:, 0], stored(kv, type)[0, :160].expand(3, -1))


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_reaches_the_tokens_that_see_it(
    emulated: Attention, value: float
) -> None:
    a, b, kv = inputs(2, 20, 128, 32, BLOCK + 20)
    kv[BLOCK + 7, 3] = value
    out = emulated((a, b, kv), "f16", SCALE)
    assert out[:, 7:].isnan().any(-1).all()


BF16, Q4_K, Q8_0 = QuantType.BF16, QuantType.Q4_K, QuantType.Q8_0
TILED = [kind for kind in TYPES if kind.name not in ("F32", "F16")]


def emulated_linear(library: ctypes.CDLL, x: torch.Tensor, w: QuantMatrix) -> torch.Tensor:
    out = torch.full((len(x), w.rows), float("nan"))
    library.emulated_linear(*_args(x.contiguous(), len(x), *_matrix(w), w.rows, w.cols, out))
    return out


def emulated_ffn(library: ctypes.CDLL, x: torch.Tensor, w: list[QuantMatrix]) -> torch.Tensor:
    """Compute down(silu(gate x) up x) of the matrices gate, up and down."""
    out = torch.full_like(x, float("nan"))
    matrices = [part for matrix in w for part in _matrix(matrix)]
    library.emulated_ffn(*_args(x, len(x), w[0].cols, w[0].rows, *matrices, out))
    return out


def activations(tokens: int, cols: int) -> torch.Tensor:
    x = torch.randn((tokens, cols), generator=torch.Generator().manual_seed(cols))
    x[:, ::37] *= 20
    return x


@pytest.mark.slow
@pytest.mark.parametrize("kind", TILED, ids=lambda kind: kind.name)
def test_products_of_all_types_and_shapes_of_tiles(library: ctypes.CDLL, kind: QuantType) -> None:
    """bfloat16 weights keep 16 bits of an activation; the others round both factors to 8.

    1, 2, 3, 4 and more tiles of tokens take kernels of their own, and the last has columns in
    parts: a token has the same bits in each.
    """
    most = 2.0**-15 if kind == BF16 else 2.0**-8
    block = block_weights(kind)
    for rows, cols in ((27, block), (35, 2816 // block * block)):
        w = random_matrix(kind, 1, rows, cols)
        x = activations(270, cols)
        whole = emulated_linear(library, x, w)
        want = x.double().numpy() @ closeness.weights(w)[0].T
        assert np.linalg.norm(whole.numpy() - want) < most * np.linalg.norm(want)
        for tokens in (17, 40, 64, 81):
            assert torch.equal(emulated_linear(library, x[:tokens], w), whole[:tokens])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [BF16, Q4_K], ids=str)
def test_long_rows_are_multiplied_in_parts(library: ctypes.CDLL, kind: QuantType) -> None:
    w = random_matrix(kind, 1, 40, 70 * 256)
    x = activations(80, w.cols)
    want = x.double().numpy() @ closeness.weights(w)[0].T
    whole = emulated_linear(library, x, w)
    assert np.linalg.norm(whole.numpy() - want) < 2.0**-8 * np.linalg.norm(want)
    assert torch.equal(emulated_linear(library, x[:64], w), whole[:64])


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds, most",
    [
        ((BF16, BF16, BF16), 2.0**-15),
        ((BF16, Q8_0, BF16), 2.0**-7),
        ((Q8_0, BF16, Q8_0), 2.0**-7),
        ((Q8_0, Q8_0, BF16), 2.0**-7),
    ],
    ids=str,
)
def test_experts_of_mixed_types_take_as_many_parts_as_each_wants(
    library: ctypes.CDLL, kinds: tuple[QuantType, ...], most: float
) -> None:
    hidden, inter = 320, 160
    matrices = [random_matrix(kind, 1, inter, hidden, seed=i) for i, kind in enumerate(kinds[:2])]
    matrices.append(random_matrix(kinds[2], 1, hidden, inter, seed=3))
    exact = [torch.from_numpy(closeness.weights(w)[0]) for w in matrices]
    for tokens in (40, 300):  # the latter in two parts
        x = 0.02 * torch.randn((tokens, hidden), generator=torch.Generator().manual_seed(5))
        g, u = (x.double() @ matrix.T for matrix in exact[:2])
        want = (g * torch.sigmoid(g) * u) @ exact[2].T
        assert error(emulated_ffn(library, x, matrices), want) < most


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [40, 64, 300])
def test_threads_do_not_change_a_bit(library: ctypes.CDLL, tokens: int) -> None:
    matrices = [random_matrix(Q4_K, 1, 608, 512, seed=i) for i in range(2)]
    matrices.append(random_matrix(Q8_0, 1, 512, 608, seed=3))
    x = activations(tokens, 512)
    results = []
    for threads in (1, 3, 8):
        library.emulated_threads(ctypes.c_int64(threads))
        ffn = emulated_ffn(library, x, matrices)
        results.append((ffn, emulated_linear(library, x, matrices[0])))
    library.emulated_threads(ctypes.c_int64(1))
    for ffn, linear in results[1:]:
        assert torch.equal(ffn, results[0][0]) and torch.equal(linear, results[0][1])


def _matrix(w: QuantMatrix) -> tuple[ctypes.c_int, ctypes.c_void_p]:
    return ctypes.c_int(w.type), ctypes.c_void_p(w.data.ctypes.data)


def _args(*values: object) -> list[object]:
    """Convert tensors to pointers, whole numbers to int64."""
    pointers = [ctypes.c_void_p(v.data_ptr()) if isinstance(v, torch.Tensor) else v for v in values]
    return [ctypes.c_int64(v) if isinstance(v, int) else v for v in pointers]
