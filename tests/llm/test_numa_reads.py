"""No thread reads weights of another node, in prompts and in decode, on simulated nodes: counted.

The node of a read is the one whose threads may take that chunk; the node of a weight is the one
whose threads touched its page first, row by row.
"""

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from hybridmoe import _C
from hybridmoe.demo import demo_path
from hybridmoe.errors import ShapeError
from hybridmoe.experts.disk.arena import Arena
from hybridmoe.gguf.accounting import take_account
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.hardware import topology
from hybridmoe.hardware.disk import BLOCK_BYTES
from hybridmoe.kernels import ops
from hybridmoe.llm.load import load

TOUCH, READ, FETCH = range(3)
DECODED = 6


class Access(NamedTuple):
    address: int
    num_bytes: int
    node: int
    kind: int

    @property
    def end(self) -> int:
        return self.address + self.num_bytes


class Homes:
    """Nodes by address."""

    def __init__(self, touches: list[Access]) -> None:
        first: dict[int, Access] = {}
        for touch in touches:
            first.setdefault(touch.address, touch)
        self._touches = [first[address] for address in sorted(first)]
        self._starts = [touch.address for touch in self._touches]

    def of(self, access: Access) -> Iterator[tuple[int, int | None]]:
        """Yield the bytes of an access, piece by piece, and the node of each; None: no touch."""
        at, i = access.address, max(0, bisect_right(self._starts, access.address) - 1)
        for touch in self._touches[i:]:
            if at >= access.end or touch.address >= access.end:
                break
            if touch.end <= at:
                continue
            if touch.address > at:
                yield touch.address - at, None
                at = touch.address
            end = min(touch.end, access.end)
            yield end - at, touch.node
            at = end
        if at < access.end:
            yield access.end - at, None


def run_logged(nodes: int, threads: int, *, with_tiles: bool, **options: str) -> list[Access]:
    """Load the embedded model, compute a prompt and decode, on simulated nodes."""
    before = ops.num_threads()
    try:
        with topology.simulated(nodes):
            ops.set_num_threads(threads)
            _C.begin_read_log(with_tiles)
            try:
                with load(
                    device="cpu",
                    context_tokens=256,
                    num_threads=threads,
                    progress=lambda progress: None,
                    **options,
                ) as llm:
                    llm.generate("one two three four " * 6, max_tokens=DECODED, temperature=0.0)
            finally:
                log = _C.end_read_log()
    finally:
        ops.set_num_threads(before)
    return [Access(*entry) for entry in log]


@pytest.mark.parametrize("with_tiles", [False, True], ids=["panels", "tiles"])
@pytest.mark.parametrize(("nodes", "threads"), [(2, 2), (2, 5), (4, 4)])
def test_mapped_weights_are_read_by_their_own_nodes(
    nodes: int, threads: int, with_tiles: bool
) -> None:
    log = run_logged(nodes, threads, with_tiles=with_tiles)
    homes = Homes([access for access in log if access.kind == TOUCH])
    reads = [access for access in log if access.kind != TOUCH]
    assert {access.node for access in reads} == set(range(nodes))
    remote = [access for access in reads if {node for _, node in homes.of(access)} != {access.node}]
    assert remote == []
    with GGUFFile.open(demo_path()) as file:
        token_bytes = take_account(file.tensors.values(), file.metadata).total.token_bytes
    read = sum(access.num_bytes for access in reads if access.kind == READ)
    assert read > 0.9 * DECODED * token_bytes  # else a kernel is not noted


@pytest.mark.parametrize(("nodes", "threads"), [(2, 2), (4, 4)])
def test_slots_and_private_weights_are_read_by_their_own_nodes(nodes: int, threads: int) -> None:
    log = run_logged(nodes, threads, with_tiles=False, expert_ram="2MiB")
    homes = Homes([access for access in log if access.kind == TOUCH])
    reads = [access for access in log if access.kind != TOUCH]
    assert {access.node for access in reads} == set(range(nodes))
    for access in reads:
        # A slot's experts begin at different bytes of a disk block: that much lies beside a border.
        remote = sum(size for size, node in homes.of(access) if node != access.node)
        assert remote < BLOCK_BYTES, access


def test_a_log_ends_once() -> None:
    with pytest.raises(ShapeError, match="no reads are being logged"):
        _C.end_read_log()
    _C.begin_read_log(False)
    with pytest.raises(ShapeError, match="already"):
        _C.begin_read_log(False)
    assert _C.end_read_log() == []


def vm_flags(address: int) -> list[str]:
    """Flags of this process's mapping at an address."""
    is_there = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0]:
            first, last = (int(word, 16) for word in words[0].split("-"))
            is_there = first <= address < last
        elif is_there and words[0] == "VmFlags:":
            return words[1:]
    raise AssertionError(f"no mapping at {address:x}")


@pytest.mark.parametrize(("nodes", "flag"), [(1, "hg"), (2, "nh")])
def test_huge_pages_are_for_machines_of_one_node(nodes: int, flag: str) -> None:
    with topology.simulated(nodes), load(device="cpu", context_tokens=64) as llm:
        address = next(iter(llm.file.tensors.values())).data.ctypes.data
        assert flag in vm_flags(address)
        arena = Arena(4 << 20)
        assert flag in vm_flags(arena.address)
