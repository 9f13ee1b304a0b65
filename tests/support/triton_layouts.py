"""The lanes of a warp that a compiled kernel must shuffle to reduce, and those that it does.

A layout (TTGIR) says which elements each lane holds: the bits of a lane's number that move along
the reduced axis are those that butterfly shuffles (PTX) must exchange. Triton 3.4 to 3.6 got that
wrong for axes that a reshape had made, and nothing but numbers on a GPU showed it.
"""

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["lane_bits", "lane_distances", "reduction_fault", "shuffles"]

_REDUCE = re.compile(
    r'"tt\.reduce"\(.*?\) <\{axis = (\d+) : i32\}>.*?'
    r"\}\) : \(tensor<((?:\d+x)+)\w+(?:, (.*?))?>[,)]",
    re.DOTALL,
)
_ALIAS = re.compile(r"^(#\w+) = (#ttg\..*)$", re.MULTILINE)
_BUTTERFLY = re.compile(r"shfl\.sync\.bfly\.b32\s+[^;]*?, (\d+), 31, -1;")


def lane_distances(ttgir: str) -> set[int]:
    """Distances between the lanes that a kernel's reductions put together."""
    aliases = dict(_ALIAS.findall(ttgir))
    found = _REDUCE.findall(ttgir)
    assert len(found) == ttgir.count('"tt.reduce"'), "a reduction was not understood"
    bits: set[int] = set()
    for axis, sizes, layout in found:
        shape = tuple(int(size) for size in sizes.rstrip("x").split("x"))
        bits |= lane_bits(layout, shape, int(axis), aliases)
    return {1 << bit for bit in bits}


def reduction_fault(report: Mapping[str, Any]) -> str | None:
    """Describe what is wrong with the reductions of a kernel (triton_compile.py's report)."""
    if report["reduces_a_reshape"]:
        return f"{report['kernel']} reduces a reshape"
    wanted, shuffled = set(report["wanted"]), set(report["shuffled"])
    of_warps = {1 << bit for bit in range(5) if 1 << bit < report["warps"]}
    if wanted <= shuffled <= wanted | of_warps:
        return None
    return f"{report['kernel']} shuffles {sorted(shuffled)}, its layout wants {sorted(wanted)}"


def lane_bits(layout: str, shape: tuple[int, ...], axis: int, aliases: dict[str, str]) -> set[int]:
    """The bits of a lane's number along an axis, without those that repeat elements."""
    layout = aliases.get(layout, layout)
    if layout.startswith("#ttg.slice"):
        found = re.fullmatch(r"#ttg\.slice<\{dim = (\d+), parent = (.*)\}>", layout)
        assert found, layout
        dim = int(found[1])
        parent_shape = (*shape[:dim], 1, *shape[dim:])
        return lane_bits(found[2], parent_shape, axis + (axis >= dim), aliases)
    if layout.startswith("#ttg.linear"):
        found = re.search(r"lane = \[(\[.*?\])\]", layout)
        assert found, layout
        bases = [list(map(int, base.split(","))) for base in re.findall(r"\[(.*?)\]", found[1])]
        return {bit for bit, base in enumerate(bases) if base[axis]}
    if layout.startswith("#ttg.nvidia_mma"):  # four lanes share a row of the result
        return {0, 1} if axis == len(shape) - 1 else {2, 3, 4}
    assert layout.startswith("#ttg.blocked"), layout
    order, each = _numbers(layout, "order"), _numbers(layout, "sizePerThread")
    threads = _numbers(layout, "threadsPerWarp")
    first = sum(threads[dim].bit_length() - 1 for dim in order[: order.index(axis)])
    count = threads[axis].bit_length() - 1
    return {first + i for i in range(count) if each[axis] << i < shape[axis]}


def shuffles(ptx: str) -> set[int]:
    """Distances of all butterfly shuffles; every one, for a sum of integers over a warp."""
    of_warps = {1, 2, 4, 8, 16} if "redux.sync" in ptx else set()
    return of_warps | {int(distance) for distance in _BUTTERFLY.findall(ptx)}


def _numbers(layout: str, key: str) -> list[int]:
    found = re.search(rf"{key} = \[(.*?)\]", layout)
    assert found, layout
    return [int(number) for number in found[1].split(",")]
