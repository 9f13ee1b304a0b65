"""AVX-512 and AVX-VNNI kernels on any machine with AVX2: 512-bit intrinsics are emulated by SIMDe,
VNNI's one instruction by C, and the results compared bit for bit with the AVX2 kernels. Finds a
wrong lane, shuffle or mask where no CPU can run the real thing.
"""

import ctypes
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from native_build import NOT_INLINED, ROOT, SETUP
from random_weights import TYPES, activations, block_weights, random_matrix
from waiting import HANG_S

from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.hardware import isa
from hybridmoe.kernels import ops
from hybridmoe.kernels.matrix import QuantMatrix

Linear = Callable[[torch.Tensor, QuantMatrix], torch.Tensor]


@pytest.fixture(scope="module")
def compiler() -> str:
    if "avx2" not in isa.supported():
        pytest.skip("the emulation itself needs AVX2")
    compiler = sysconfig.get_config_var("CXX").split()[0]
    if not shutil.which(compiler):
        pytest.skip(f"needs {compiler}")
    return compiler


@pytest.fixture(scope="module")
def emulated_avx512(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Linear:
    include = subprocess.run(
        [compiler, "-E", "-x", "c++", "-", "-o", "/dev/null"],
        input="#include <simde/x86/avx512.h>", capture_output=True, text=True,
    )  # fmt: skip
    if include.returncode != 0:
        pytest.skip("SIMDe is not installed (Debian: libsimde-dev)")
    return _compile(compiler, "emulated_avx512", tmp_path_factory.mktemp("avx512"))


@pytest.fixture(scope="module")
def emulated_avx_vnni(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Linear:
    return _compile(compiler, "emulated_avx_vnni", tmp_path_factory.mktemp("avx_vnni"))


def _compile(compiler: str, name: str, folder: Path) -> Linear:
    library = folder / f"{name}.so"
    sources = [str(SETUP.CSRC / part) for part in (f"tests/{name}.cpp", "formats/codebooks.cpp")]
    flags = [*SETUP.ISA_CFLAGS, *SETUP.ISA_FLAGS["avx2"], "-mbmi2", *NOT_INLINED]
    flags += ["-shared", "-fPIC"]
    subprocess.run(
        [compiler, *flags, *sources, "-o", str(library)], cwd=ROOT, check=True, timeout=HANG_S
    )
    return _bind(library)


def _bind(library: Path) -> Linear:
    function = ctypes.CDLL(str(library)).emulated_linear
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, size, size, size, pointer, size, pointer]
    function.restype = None

    def linear(x: torch.Tensor, w: QuantMatrix) -> torch.Tensor:
        out = torch.empty(x.shape[0], w.rows)
        function(
            w.type, w.data.ctypes.data, w.rows, w.row_bytes, w.cols,
            x.data_ptr(), x.shape[0], out.data_ptr(),
        )  # fmt: skip
        return out

    return linear


def check_equals_avx2(emulated: Linear, kind: QuantType) -> None:
    shapes = [(13, block_weights(kind)), (32, 512 + block_weights(kind)), (13, 2048)]
    for rows, cols in shapes:  # 32 rows go into a panel
        w = random_matrix(kind, 1, rows, cols)
        x = activations(11, cols)
        with isa.forced("avx2"):
            for tokens in (1, 7, 11):
                assert torch.equal(emulated(x[:tokens], w), ops.linear(x[:tokens], w))


@pytest.mark.slow  # compiles
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_avx512_equals_avx2(emulated_avx512: Linear, kind: QuantType) -> None:
    check_equals_avx2(emulated_avx512, kind)


@pytest.mark.slow  # compiles
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_avx_vnni_equals_avx2(emulated_avx_vnni: Linear, kind: QuantType) -> None:
    check_equals_avx2(emulated_avx_vnni, kind)
