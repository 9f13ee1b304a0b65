"""The public surface: every name in `__all__` exists, and importing the package is free."""

import subprocess
import sys

import pytest

import hybridmoe


def test_every_public_name_resolves() -> None:
    assert sorted(hybridmoe.__all__, key=str) == sorted(set(hybridmoe.__all__))
    for name in hybridmoe.__all__:
        assert getattr(hybridmoe, name).__name__ == name


def test_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(hybridmoe, "no_such_name")


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, hybridmoe; print([m for m in ('torch', 'numpy', 'click') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_gpu_half_loads_no_compiler_of_torch() -> None:
    """`torch.nn.attention.bias` did: seconds of every start on a GPU."""
    pytest.importorskip("triton", reason="needs triton")
    code = "import sys, hybridmoe.placement.gpu; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
