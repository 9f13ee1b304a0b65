"""The /proc and /sys of another machine, as files in a folder."""

from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["FakeMachine"]


@dataclass(frozen=True, kw_only=True)
class FakeMachine:
    """Nodes of as many cores each, distributed over sockets; hardware threads as Intel numbers."""

    num_nodes: int = 1
    num_sockets: int = 1
    cores_per_node: int = 2
    threads_per_core: int = 1
    node_bytes: int = 64 << 30
    files: dict[str, str] = field(default_factory=dict)  # besides, or instead of, the others

    @property
    def num_cpus(self) -> int:
        return self.num_nodes * self.cores_per_node * self.threads_per_core

    def write(self, root: Path) -> Path:
        """Write all files below `root`, and return it."""
        cores = self.num_nodes * self.cores_per_node
        system = "sys/devices/system"
        files = {
            f"{system}/cpu/online": f"0-{self.num_cpus - 1}",
            f"{system}/node/online": f"0-{self.num_nodes - 1}",
            "proc/meminfo": f"MemTotal: {self.num_nodes * self.node_bytes >> 10} kB",
        }
        cpus: dict[int, list[int]] = {}
        for cpu in range(self.num_cpus):
            core = cpu % cores
            node = core // self.cores_per_node
            cpus.setdefault(node, []).append(cpu)
            siblings = [core + cores * i for i in range(self.threads_per_core)]
            folder = f"{system}/cpu/cpu{cpu}/topology"
            files[f"{folder}/thread_siblings_list"] = ",".join(map(str, siblings))
            files[f"{folder}/physical_package_id"] = str(node * self.num_sockets // self.num_nodes)
        for node, numbers in cpus.items():
            folder = f"{system}/node/node{node}"
            files[f"{folder}/cpulist"] = ",".join(map(str, numbers))
            kib = self.node_bytes >> 10
            files[f"{folder}/meminfo"] = (
                f"Node {node} MemTotal: {kib} kB\nNode {node} MemFree: 9 kB"
            )
        for name, text in (files | self.files).items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return root
