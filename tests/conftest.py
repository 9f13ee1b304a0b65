"""Settings and fixtures of every test run."""

import itertools
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, settings

from hybridmoe import _C
from hybridmoe.errors import ShapeError
from hybridmoe.hardware import isa
from hybridmoe.kernels import ops

if TYPE_CHECKING:
    from fake_engine import FakeLLM

# Triton reads this when it is first imported, and again when kernels are defined.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A worker of pytest-xdist takes whole files: the longest first, so that none is left with one of
# them at the end, when the others have nothing more to do.
LONGEST = (
    "kernels/triton/test_compile.py", "csrc/test_vectors_emulated.py", "csrc/test_isa_objects.py",
    "model/test_parity_llama_cpp.py", "placement/test_self_check.py",
    "placement/test_embedded_on_gpu.py", "kernels/triton/test_expert_ffn.py",
    "cachebench/test_simulator.py", "kernels/triton/test_matmul.py",
    "experts/disk/test_cached_experts.py", "placement/test_two_gpus.py", "serve/test_ray_app.py",
    "serve/test_fuzz.py", "csrc/test_amx_emulated.py", "text/test_tokenizer.py",
)  # fmt: skip


def _rank(item: pytest.Item) -> int:
    name = item.path.relative_to(Path(__file__).parent).as_posix()
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=_rank)
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") == "1":
        from fast_interpreter import speed_up  # not for files without Triton

        speed_up()
    if torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("interpreter"):
                item.add_marker(pytest.mark.skip(reason="there is a GPU"))


# Examples are counted, not timed; fixtures that they share only set something.
_UNCHECKED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("untimed", deadline=None, suppress_health_check=_UNCHECKED)
settings.load_profile("untimed")

# A runner in the background ignores SIGINT, one below nohup SIGHUP, and its children would inherit
# that: the tests of Ctrl-C and of closed windows need the defaults.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

_NUMBERS = itertools.count()

# Instruction sets whose results do not depend on the rest of a batch.
EXACT_ISAS = [name for name in isa.supported() if name != "amx"]


@pytest.fixture(autouse=True, scope="session")
def all_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the user's state folder out of the tests, and theirs out of it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("state")
        patch.setenv("XDG_STATE_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def state_folder(all_state: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a state folder of its own: no profile of hot experts of another test."""
    folder = all_state / str(next(_NUMBERS))
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder


@pytest.fixture(params=isa.supported())
def each_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with isa.forced(request.param):
        yield request.param


@pytest.fixture(params=EXACT_ISAS)
def each_exact_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with isa.forced(request.param):
        yield request.param


@pytest.fixture
def amx() -> Iterator[None]:
    """Force AMX; skips on machines without it."""
    if "amx" not in isa.supported():
        pytest.skip("this CPU has no AMX")
    with isa.forced("amx"):
        yield


@pytest.fixture
def exact_kernels() -> Iterator[None]:
    """Force the best instruction set that gives a token the same bits alone and in a prompt."""
    with isa.forced(EXACT_ISAS[0]):
        yield


@pytest.fixture(params=["threads", "uring"])
def each_io(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Force each read backend in turn; skips io_uring where the system refuses it."""
    if request.param == "uring":
        try:
            _C.IoRing(1, 1, 1).close()
        except ShapeError as error:
            pytest.skip(str(error))
    monkeypatch.setenv("HYBRIDMOE_IO", request.param)
    return str(request.param)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = ops.num_threads()
    yield
    ops.set_num_threads(before)


@pytest.fixture(scope="module")
def llm() -> "Iterator[FakeLLM]":
    """A fake LLM for the endpoint's tests; those that need a real model have their own."""
    from fake_engine import FakeLLM  # not for the kernels' tests, which run under sanitizers too

    llm = FakeLLM()
    yield llm
    llm.close()
