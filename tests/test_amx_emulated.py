"""Attention of prompts by AMX tiles on any machine with AVX-512: the tiles are emulated."""

import ctypes
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_attention import BLOCK, SCALE, TILE_SHAPES, Inputs, inputs, paged, stored
from test_isa_objects import ROOT, SETUP
from waiting import HANG_S

from hybridmoe.kernels import isa, reference

Attention = Callable[[Inputs, str, float], torch.Tensor]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Attention:
    if "avx512" not in isa.supported():
        pytest.skip("the emulation itself needs AVX-512")
    compiler = sysconfig.get_config_var("CXX").split()[0]
    if not shutil.which(compiler):
        pytest.skip(f"needs {compiler}")
    library = tmp_path_factory.mktemp("emulated") / "emulated.so"
    names = ["tests/emulated_amx", "ops/attention", "base/runtime", "base/thread_pool"]
    flags = [*SETUP.CFLAGS, *SETUP.ISA_FLAGS["amx"], "-O1", "-w", "-shared", "-fPIC", "-pthread"]
    sources = [str(SETUP.CSRC / f"{name}.cpp") for name in names]
    subprocess.run(
        [compiler, *flags, *sources, "-o", str(library)], cwd=ROOT, check=True, timeout=HANG_S
    )
    return _bind(library)


def _bind(library: Path) -> Attention:
    function = ctypes.CDLL(str(library)).emulated_attention
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [
        pointer, pointer, size, size, size, size, ctypes.c_float, pointer, ctypes.c_int, size,
        pointer, size, size, pointer,
    ]  # fmt: skip
    function.restype = None

    def attention(x: Inputs, type: str, scale: float) -> torch.Tensor:
        a, b, latents = x
        pages, tables = paged([latents], type)
        table = torch.tensor(tables[0], dtype=torch.int32)
        out = torch.full_like(a, float("nan"))
        heads, tokens, latent = a.shape
        function(
            a.data_ptr(), b.data_ptr(), tokens, heads, latent, b.shape[2], scale,
            pages.data.data_ptr(), type == "f16", len(pages.data), table.data_ptr(), len(table),
            len(latents) - tokens, out.data_ptr(),
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
    a, b, latents = inputs(*shape)
    a, b = a.bfloat16().float(), b.bfloat16().float()
    want = reference.latent_attention(a, b, stored(latents, type), SCALE)
    bound = 2.0**-9 / 3**0.5
    assert error(emulated((a, b, latents), type, SCALE), want) <= bound
    coarse = reference.latent_attention(a, b, stored(latents, "bf16"), SCALE)
    assert type == "bf16" or error(coarse, want) > bound
    assert (
        error(reference.latent_attention(a, b, stored(latents, type), 1.02 * SCALE), want) > bound
    )


@pytest.mark.slow
@pytest.mark.parametrize("type", ["f16", "bf16"])
def test_the_first_token_gets_its_own_latent(emulated: Attention, type: str) -> None:
    a, b, latents = inputs(3, 20, 160, 32, 20)
    out = emulated((a, b, latents), type, SCALE)
    assert torch.equal(out[:, 0], stored(latents, type)[0, :160].expand(3, -1))


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_reaches_the_tokens_that_see_it(
    emulated: Attention, value: float
) -> None:
    a, b, latents = inputs(2, 20, 128, 32, BLOCK + 20)
    latents[BLOCK + 7, 3] = value
    out = emulated((a, b, latents), "f16", SCALE)
    assert out[:, 7:].isnan().any(-1).all()
