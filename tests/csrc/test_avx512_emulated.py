"""AVX-512 kernels on any machine with AVX2: each 512-bit intrinsic emulated by SIMDe, the results
compared bit for bit with the AVX2 kernels. Finds a wrong lane, shuffle or mask where no CPU can run
the real thing.
"""

import ctypes
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from native_build import ROOT, SETUP
from random_weights import TYPES, activations, block_weights, random_matrix
from waiting import HANG_S

from hybridmoe.hardware import isa
from hybridmoe.kernels import ops
from hybridmoe.kernels.matrix import QuantMatrix

Linear = Callable[[torch.Tensor, QuantMatrix], torch.Tensor]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Linear:
    if "avx2" not in isa.supported():
        pytest.skip("the emulation itself needs AVX2")
    compiler = sysconfig.get_config_var("CXX").split()[0]
    if not shutil.which(compiler):
        pytest.skip(f"needs {compiler}")
    include = subprocess.run(
        [compiler, "-E", "-x", "c++", "-", "-o", "/dev/null"],
        input="#include <simde/x86/avx512.h>", capture_output=True, text=True,
    )  # fmt: skip
    if include.returncode != 0:
        pytest.skip("SIMDe is not installed (Debian: libsimde-dev)")
    library = tmp_path_factory.mktemp("emulated") / "emulated.so"
    sources = [
        str(SETUP.CSRC / name) for name in ("tests/emulated_avx512.cpp", "formats/codebooks.cpp")
    ]
    flags = [*SETUP.ISA_CFLAGS, *SETUP.ISA_FLAGS["avx2"], "-mbmi2", "-O1", "-w", "-shared", "-fPIC"]
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


@pytest.mark.slow  # half a minute of compiling
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_avx512_equals_avx2(emulated: Linear, kind: GGMLQuantizationType) -> None:
    for cols in (block_weights(kind), 512 + block_weights(kind), 2048):
        w = random_matrix(kind, 1, 13, cols)
        x = activations(7, cols)
        with isa.forced("avx2"):
            assert torch.equal(emulated(x, w), ops.linear(x, w))
