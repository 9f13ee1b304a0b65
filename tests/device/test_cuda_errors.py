"""CUDA errors: out of memory ends a step, anything else the GPU; both are one line."""

import re
from pathlib import Path

import pytest
import torch
from engine_run import Running, request, run
from gguf import GGMLQuantizationType as Type
from tiny_gguf import write_tiny

from hybridmoe.config import EngineConfig, ModelConfig
from hybridmoe.device.cuda_errors import CudaErrorGuard, loading_onto_gpu
from hybridmoe.engine.engine import Engine
from hybridmoe.errors import ConfigError, DeviceError
from hybridmoe.experts.backend import CpuExperts
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.weights import Weights

GIB = 1 << 30
OUT_OF_MEMORY = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 23.64 GiB of"
    " which 512.00 MiB is free. Process 7 has 1.10 GiB memory in use. Of the allocated memory 20.1"
    " GiB is allocated by PyTorch, and 3.00 MiB is reserved by PyTorch but unallocated."
)
IN_PIECES = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 256.00 MiB. GPU 0 has a total capacity of 23.64 GiB of"
    " which 1.00 GiB is free."
)
LOST = torch.AcceleratorError(
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported"
    " asynchronously.\nCompile with `TORCH_USE_CUDA_DSA`."
)


def test_no_memory_in_a_step_says_how_much_lower_the_budget_is_to_be() -> None:
    guard = CudaErrorGuard(20 * GIB)
    with pytest.raises(DeviceError) as caught, guard.watch(512):
        raise OUT_OF_MEMORY
    text = str(caught.value)
    assert text.startswith(
        "the GPU is out of memory for a step of 512 tokens (1.50 GiB requested, 512.00 MiB free):"
        " lower --vram to "
    )
    match = re.search(r"--vram to ([0-9.]+)GiB", text)
    assert match is not None
    assert 1.0 < 20 - float(match[1]) < 1.1 and "\n" not in text
    guard.check()  # the next step may be smaller
    with guard.watch(1):
        pass


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OUT_OF_MEMORY, "lower --vram by 1.07GiB"),
        (IN_PIECES, "lower --vram by 320.00MiB"),
        (torch.OutOfMemoryError("CUDA out of memory"), "lower --vram"),
        (torch.AcceleratorError("CUDA error: out of memory"), "lower --vram"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`"), "lower --vram"),
        (RuntimeError("Triton Error [CUDA]: out of memory"), "lower --vram"),
    ],
)
def test_no_memory_while_loading_is_of_the_configuration(error: Exception, remedy: str) -> None:
    told = pytest.raises(ConfigError, match=rf"out of memory for experts.*{remedy}$")
    with told, loading_onto_gpu("experts"):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        LOST,
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
        RuntimeError("Triton Error [CUDA]: device-side assert triggered"),
        RuntimeError("CUDA driver error: unknown error"),
    ],
)
def test_any_other_cuda_error_loses_the_gpu(error: Exception) -> None:
    guard = CudaErrorGuard()
    told = pytest.raises(DeviceError, match=r"the GPU failed: .*; restart to use it")
    with told as caught, guard.watch(1):
        raise error
    assert "\n" not in str(caught.value)
    for again in (guard.check, guard.watch(1).__enter__):
        with pytest.raises(DeviceError, match=re.escape(str(caught.value))):
            again()
    with pytest.raises(DeviceError, match="the GPU failed"), loading_onto_gpu("experts"):
        raise error


def test_other_errors_come_through() -> None:
    guard = CudaErrorGuard()
    for error in (
        RuntimeError("Expected all tensors to be on the same device, cuda:0 and cpu"),
        ValueError("CUDA error"),
    ):
        with pytest.raises(type(error), match=r"device|CUDA"), guard.watch(1):
            raise error
        with pytest.raises(type(error), match=r"device|CUDA"), loading_onto_gpu("x"):
            raise error
    guard.check()


@pytest.fixture
def model(tmp_path: Path) -> Decoder:
    path = tmp_path / "tiny.gguf"
    write_tiny(path, variant="k2", type=Type.Q8_0)
    with GGUFFile.open(path) as file:
        return Decoder(Weights(file), ModelConfig.from_metadata(file.metadata))


def test_a_lost_gpu_ends_all_requests_and_refuses_new_ones(
    model: Decoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Decoder, "decode", lambda *_: None)  # as on a GPU: all steps by `forward`
    engine = Engine(model, frozenset(), EngineConfig(context_tokens=128, max_running=1))
    assert run(engine, request([1, 2, 3], 2))[0].end.reason == "length"
    assert engine.device_failure is None

    def fail(*_: object, **__: object) -> torch.Tensor:
        raise LOST

    first = Running(engine, request([5] * 70))
    first.token()
    second = Running(engine, request([5] * 70))  # waits for the first one's place
    monkeypatch.setattr(CpuExperts, "begin_step", fail)
    ends = [running.wait().end for running in (first, second)]
    assert [end.reason for end in ends] == ["error", "error"]
    wanted = "the GPU failed: CUDA error: an illegal memory access was encountered; restart"
    assert all(str(end.error).startswith(wanted) for end in ends)
    assert engine.device_failure == ends[0].error
    for asked in (
        lambda: engine.submit(request([1]), lambda event: None),
        lambda: engine.logits([1, 2]),
        lambda: engine.save(tmp_path / "kv", [5] * 70, "model"),
    ):
        with pytest.raises(DeviceError, match="the GPU failed"):
            asked()
    engine.close()


def test_a_gpu_lost_between_steps_is_noticed(
    model: Decoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = Engine(model, frozenset(), EngineConfig(context_tokens=128))

    def fail(*_: object) -> int:
        raise LOST

    monkeypatch.setattr("hybridmoe.engine.kv_cache.KvCache.acquire_prefix", fail)
    end = run(engine, request([1, 2, 3]))[0].end
    assert end.reason == "error" and "the GPU failed" in str(end.error)
    with pytest.raises(DeviceError):
        engine.submit(request([1]), lambda event: None)
    engine.close()


def test_no_memory_ends_one_step_only(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model, frozenset(), EngineConfig(context_tokens=128))
    with monkeypatch.context() as patch:

        def fail(*_: object) -> torch.Tensor:
            raise OUT_OF_MEMORY

        patch.setattr(model.device, "to_host", fail, raising=False)
        end = run(engine, request([1, 2, 3]))[0].end
    assert end.reason == "error" and "out of memory for a step of" in str(end.error)
    assert run(engine, request([1, 2, 3], 4))[0].end.reason == "length"
    engine.close()
