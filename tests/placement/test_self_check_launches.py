"""The self-check at load runs every kernel, in every shape, that a model launches.

On a GPU it does so with random weights of each model's sizes, and has to pass.
"""

from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch
from gguf import GGMLQuantizationType
from random_weights import random_matrix

pytest.importorskip("triton", reason="needs triton")

from interpreted_gpu import gpu_device
from model_launches import KV_TYPES, MODELS, NUM_MULTIPROCESSORS, Model, shape_of

from hybridmoe.device.cuda import CudaDevice
from hybridmoe.experts.routed_experts import ExpertWeights, RoutedExperts
from hybridmoe.kernels import ops
from hybridmoe.kernels.matrix import QuantMatrix
from hybridmoe.kernels.triton.launches import record_launches
from hybridmoe.kernels.triton.matrix import DeviceMatrix
from hybridmoe.model.weights import Weights, routed_experts
from hybridmoe.placement import gpu_launches, self_check
from hybridmoe.placement.network_check import network_cases
from hybridmoe.placement.self_check import SelfCheck

# They hold no arithmetic: tests/experts/gpu/test_hand_over.py runs them.
NOT_CHECKED = {"_send_kernel", "_receive_kernel"}

MAX_ROWS = 8192  # of a random matrix; more rows do not change a launch


class Launched(Exception):
    """A comparison, which has no results."""


class LaunchedOnly:
    def __init__(self, *_: object) -> None:
        raise Launched


@pytest.fixture
def without_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the self-check launch all that it compares, and compute nothing on the CPU."""
    monkeypatch.setattr(self_check, "_Product", LaunchedOnly)
    monkeypatch.setattr(self_check, "_rows", lambda *_: None)
    monkeypatch.setattr(ops, "linear", lambda x, w: x.new_zeros(len(x), w.rows))


def matrices(model: Model) -> Iterator[tuple[str, QuantMatrix]]:
    """Matrices that a GPU gets, each type and shape once."""
    seen = set[tuple[GGMLQuantizationType, tuple[int, ...]]]()
    for name, tensor in model.file.tensors.items():
        shape = tensor.shape
        if len(shape) == 1 or "exps" in name or (tensor.type, shape) in seen:
            continue
        seen.add((tensor.type, shape))
        batch = shape[0] if len(shape) == 3 else 1
        yield name, QuantMatrix(tensor.data, tensor.type, batch, *shape[-2:])


def checked_shapes(model: Model, device: CudaDevice) -> set[str]:
    check = SelfCheck(device)
    with record_launches(NUM_MULTIPROCESSORS) as found:
        for kv_type in KV_TYPES:
            for case in network_cases(model.config, kv_type):
                with suppress(RuntimeError):  # where it first looks at results
                    case.run(device, lambda *sizes: torch.zeros(sizes))
        for name, w in matrices(model):
            on_gpu = device.matrix(w, name)
            assert not isinstance(on_gpu, QuantMatrix)
            check.is_right(on_gpu, w, name)
        check.wrong_layers(routed_experts(Weights(model.file), model.config), ())
    problems = {c.problem.split(":")[0] for c in check.found.checks}
    assert problems == {"Launched"}
    return {shape_of(launch) for launch in found.values()}


@pytest.mark.slow
@pytest.mark.usefixtures("without_results")
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_every_launch_of_a_model_is_checked(name: str) -> None:
    with MODELS[name]() as model:
        launches = model.launches()
        checked = checked_shapes(model, gpu_launches._MetaDevice(lambda name: False))
    assert len(launches) > 20
    assert {s for s in launches if launches[s].name not in NOT_CHECKED} - checked == set()


def assert_passes(model: Model, device: CudaDevice) -> None:
    """Check a model of random weights: of each matrix up to MAX_ROWS, of each layer an expert."""
    check = SelfCheck(device)
    for kv_type in KV_TYPES:
        check.check_network(model.config, kv_type)
    for name, w in matrices(model):
        if w.type != GGMLQuantizationType.F32:
            given = random_matrix(w.type, w.batch, min(w.rows, MAX_ROWS), w.cols)
            check.is_right(DeviceMatrix.from_host(given, device.torch), given, name)
    experts = routed_experts(Weights(model.file), model.config)
    for number, weights in experts.layers.items():
        first = ExpertWeights(*(random_matrix(w.type, 1, w.rows, w.cols) for w in weights))
        check.wrong_layers(RoutedExperts({number: first}, experts.top_k), ())
    assert len(check.found.checks) > 20
    assert [str(c) for c in check.found.checks if not c.is_right] == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_every_launch_of_a_model_is_right(name: str) -> None:
    with MODELS[name]() as model:
        assert_passes(model, gpu_device())
