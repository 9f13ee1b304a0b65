"""Cores, quotas and memory as sysfs and the control groups of other machines would show them."""

from pathlib import Path

import pytest
from subprocesses import run_python

from hybridmoe.env import MAX_THREADS
from hybridmoe.errors import ConfigError
from hybridmoe.hardware import topology
from hybridmoe.hardware.topology import Node, Topology, detect, plan_threads

GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """Two nodes of two cores of two hardware threads; CPU n + 4 is the sibling of CPU n."""
    devices = "sys/devices/system"
    files = {
        f"{devices}/node/online": "0-1",
        f"{devices}/node/node0/cpulist": "0-1,4-5",
        f"{devices}/node/node1/cpulist": "2-3,6-7",
    }
    for cpu in range(8):
        files[f"{devices}/cpu/cpu{cpu}/topology/thread_siblings_list"] = f"{cpu % 4},{cpu % 4 + 4}"
    return write(tmp_path, files)


def test_hardware_threads_of_a_core_count_once(server: Path) -> None:
    assert detect(server, range(8)) == Topology(
        (Node(0, ((0, 4), (1, 5))), Node(1, ((2, 6), (3, 7))))
    )


def test_cpus_outside_the_affinity_mask_do_not_count(server: Path) -> None:
    assert detect(server, [3, 6, 7]).nodes == (Node(1, ((3, 7), (6,))),)


def test_without_sysfs_every_cpu_is_a_core(tmp_path: Path) -> None:
    assert detect(tmp_path, [0, 3]).nodes == (Node(0, ((0,), (3,))),)


def test_a_thread_for_every_core_is_bound_to_it(server: Path) -> None:
    found = detect(server, range(8))
    assert plan_threads(found, 4) == [[[0, 4], [1, 5]], [[2, 6], [3, 7]]]
    assert plan_threads(found.divided(1), 4) == [[[0, 4], [1, 5], [2, 6], [3, 7]]]


def test_other_numbers_of_threads_are_bound_to_nodes_only(server: Path) -> None:
    found = detect(server, range(8))
    assert plan_threads(found, 3) == [[[0, 4, 1, 5]], [[2, 6, 3, 7]] * 2]
    assert plan_threads(found, 8) == [[[0, 4, 1, 5]] * 4, [[2, 6, 3, 7]] * 4]
    assert plan_threads(found.divided(1), 3) == [[[]] * 3]


def test_pinning_can_be_turned_off(server: Path) -> None:
    assert plan_threads(detect(server, range(8)), 4, pin=False) == [[[], []], [[], []]]


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("threads", [1, 2, 5, 64])
def test_a_plan_has_every_node_and_every_thread(server: Path, nodes: int, threads: int) -> None:
    plan = plan_threads(detect(server, range(8)).divided(nodes), threads)
    assert len(plan) == nodes and sum(map(len, plan)) == threads
    assert max(map(len, plan)) <= max(1, 2 * -(-threads // nodes))


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"}, 2.5),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/cpu.max": "150000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "200000 100000",
            },
            1.5,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/x\n4:cpu,cpuacct:/docker/1\n1:cpuset:/y",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            3.0,
        ),
        ({"proc/self/cgroup": "4:cpu:/", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1"}, None),
    ],
    ids=["no limit", "v2", "v2 parent", "v1 in a container", "v1 no limit"],
)
def test_cpu_quota(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert topology.cpu_quota(write(tmp_path, files)) == quota


def test_the_quota_caps_the_default_number_of_threads() -> None:
    cores = tuple((cpu,) for cpu in range(8))
    for quota, threads in ((None, 8), (2.5, 2), (0.5, 1), (16.0, 8)):
        assert Topology((Node(0, cores),), quota).default_threads == threads
    huge = Topology((Node(0, tuple((cpu,) for cpu in range(2000))),))
    assert huge.default_threads == MAX_THREADS


def test_available_memory_is_the_least_of_what_may_be_used(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/meminfo": f"MemTotal: 99 kB\nMemAvailable: {8 * GIB // 1024} kB",
            "proc/self/cgroup": "0::/a",
        },
    )
    assert topology.available_bytes(root) == 8 * GIB
    group = {"memory.max": "max", "memory.current": str(5 * GIB)}
    write(root / "sys/fs/cgroup/a", group)
    assert topology.available_bytes(root) == 8 * GIB
    group |= {"memory.max": str(7 * GIB), "memory.stat": f"anon 9\nfile {4 * GIB}\nkernel 1"}
    write(root / "sys/fs/cgroup/a", group)
    assert topology.available_bytes(root) == 6 * GIB  # the page cache gives way


def test_simulated_nodes_are_left_again() -> None:
    before, threads = topology.current(), topology.num_threads()
    with pytest.raises(ZeroDivisionError), topology.simulated(3):
        topology.set_num_threads(threads + 2)
        assert len(topology.current().nodes) == 3
        raise ZeroDivisionError
    assert topology.current() is before and topology.num_threads() == threads


def test_environment_divides_the_machine() -> None:
    code = "from hybridmoe.hardware import topology as t; print(len(t.current().nodes))"
    assert run_python(code, HYBRIDMOE_NUMA_NODES="3").stdout.strip() == "3"


@pytest.mark.parametrize(("name", "value"), [("HYBRIDMOE_NUMA_NODES", "0"), ("HYBRIDMOE_PIN", "2")])
def test_environment_refuses_what_cannot_be(name: str, value: str) -> None:
    result = run_python("import hybridmoe.kernels", **{name: value})
    assert result.returncode != 0 and f"{ConfigError.__name__}: {name}='{value}'" in result.stderr
