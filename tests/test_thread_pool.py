"""The thread pool under fork, threads and resizing: seen from Python, where it is used."""

import os
import threading

import pytest
import torch
from gguf import GGMLQuantizationType
from random_weights import random_matrix

from hybridmoe import _C
from hybridmoe.kernels import ops

W = random_matrix(GGMLQuantizationType.Q8_0, 1, 300, 512)
X = torch.randn(3, 512, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def two_threads() -> object:
    before = ops.num_threads()
    ops.set_num_threads(2)
    yield
    ops.set_num_threads(before)


def test_default_is_within_the_affinity_mask() -> None:
    assert 1 <= _C.default_num_threads() <= len(os.sched_getaffinity(0))


def test_many_small_jobs_all_complete() -> None:
    want = ops.linear(X, W)
    assert all(torch.equal(ops.linear(X, W), want) for _ in range(2000))


def test_python_threads_may_call_at_once() -> None:
    want = ops.linear(X, W)
    results: list[bool] = []

    def call() -> None:
        results.extend(torch.equal(ops.linear(X, W), want) for _ in range(100))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(results) == 400 and all(results)


def test_resizing_between_calls_is_safe() -> None:
    want = ops.linear(X, W)
    for threads in (1, 4, 2, 3, 1, 2):
        ops.set_num_threads(threads)
        assert ops.num_threads() == threads
        assert torch.equal(ops.linear(X, W), want)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_a_pool_of_its_own() -> None:
    want = ops.linear(X, W)  # the parent's workers are running
    child = os.fork()
    if child == 0:
        same = ops.num_threads() == 2 and all(torch.equal(ops.linear(X, W), want) for _ in range(9))
        os._exit(0 if same else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert torch.equal(ops.linear(X, W), want)
