"""The thread pool under fork, threads and resizing, from Python."""

import os
import threading
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from random_weights import random_matrix
from waiting import HANG_S, eventually

from hybridmoe import _C
from hybridmoe.errors import ShapeError
from hybridmoe.hardware import topology
from hybridmoe.kernels import ops

W = random_matrix(GGMLQuantizationType.Q8_0, 1, 300, 512)
X = torch.randn(3, 512, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def two_threads() -> object:
    before = ops.num_threads()
    ops.set_num_threads(2)
    yield
    ops.set_num_threads(before)


def tasks() -> set[Path]:
    """Threads of this process; libraries of other tests may have pools of their own."""
    return set(Path("/proc/self/task").iterdir())


def worker_cpus(others: set[Path]) -> dict[str, set[int]]:
    """Return the CPUs that each live worker besides `others` may run on, by its name."""
    result = {}
    for task in tasks() - others:
        name = (task / "comm").read_text().strip()
        if name.startswith("hybridmoe-"):
            result[name] = os.sched_getaffinity(int(task.name))
    return result


@pytest.mark.parametrize(("nodes", "pin"), [(1, "1"), (2, "1"), (1, "0")])
def test_workers_are_bound_to_their_cores_and_the_caller_is_not(
    nodes: int, pin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYBRIDMOE_PIN", pin)
    before, others = os.sched_getaffinity(0), tasks()
    with topology.simulated(nodes):
        cores = [core for node in topology.current().nodes for core in node.cores]
        if len(cores) == 1:
            pytest.skip("one core: there are no workers")
        ops.set_num_threads(len(cores) + 1)  # another number first: the same plan changes nothing
        ops.set_num_threads(len(cores))
        ops.linear(X, W)
        sets = [set(core) if pin == "1" else before for core in cores]
        want = {f"hybridmoe-{i}": cpus for i, cpus in enumerate(sets)}
        eventually(lambda: worker_cpus(others) == want)  # one that has not run yet is not bound yet
    assert os.sched_getaffinity(0) == before


def test_a_plan_that_cannot_be_is_refused() -> None:
    for plan in ([], [[]], [[[]]] * 65, [[[]] * 1025], [[[-1]]], [[[8192]]]):
        with pytest.raises(ShapeError, match="expected"):
            _C.set_threads(plan)
    assert ops.num_threads() == 2


@pytest.mark.parametrize("nodes", [2, 3, 5])
def test_every_node_takes_part_in_a_job(nodes: int) -> None:
    want = ops.linear(X, W)
    with topology.simulated(nodes):
        for threads in (1, 2, 4, 7):
            ops.set_num_threads(threads)
            assert len(_C.threads()) == nodes
            assert all(torch.equal(ops.linear(X, W), want) for _ in range(50))


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
        thread.join(HANG_S)
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
