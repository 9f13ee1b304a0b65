"""Compile the GPU kernels at Kimi K2's sizes, without a GPU: prints registers, spills, shuffles.

A process of its own (`python tests/support/triton_compile.py 89`), since Triton either interprets
or compiles from its first import on.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from inspect import signature as signature_of
from itertools import product as product_of
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton_layouts import lane_distances, shuffles

from hybridmoe.kernels.expert_groups import FEW_ROWS, MANY_ROWS
from hybridmoe.kernels.triton import decode_attention as attention
from hybridmoe.kernels.triton import elementwise, expert_tiles, expert_vectors, hand_over, router
from hybridmoe.kernels.triton import expert_ffn as experts
from hybridmoe.kernels.triton import expert_prefill as prompts
from hybridmoe.kernels.triton import matmul as product
from hybridmoe.kernels.triton import vector_gemv as vectors
from hybridmoe.kernels.triton.dequant import KINDS
from hybridmoe.kernels.triton.vectors import VECTOR_KINDS

POINTERS = {  # by the name of a kernel's argument; all others ending in _ptr are float32
    "w_ptr": "*u8",
    "data_ptr": "*u8",
    "books_ptr": "*i16",
    "tables_ptr": "*i32",
    "positions_ptr": "*i32",
    "slots_ptr": "*i32",
    "bits_ptr": "*i16",
    "ids_ptr": "*i32",
    "host_ids_ptr": "*i32",
    "counts_ptr": "*i32",
    "sent_ptr": "*i32",
    "done_ptr": "*i32",
}
PROMPT_POINTERS = {
    "x_ptr": "*bf16",
    "w_ptr": "*bf16",
    "act_ptr": "*bf16",
    "pairs_ptr": "*i32",
    "places_ptr": "*i32",
    "tiles_ptr": "*i32",
}
EVEN = re.compile("_ptr$|bytes|num_|stride|offset|^inter$|^hidden$|^n$|^dim$|^(x_)?count$")
UNEVEN = {"top_k", "num_tokens", "limit", "gate_limit", "up_limit", "table_pages", "num_splits"}


def compiled(kernel: Any, constants: dict[str, Any], arch: int, **options: int) -> dict[str, Any]:
    """Compile a kernel; returns ptxas's report. Sizes count as multiples of 16, as K2's are."""
    names = kernel.arg_names
    signature = {}
    for name in names:
        is_number = name in ("scale", "eps")
        pointer = "*bf16" if name == "x_ptr" and constants.get("IS_ONE") is False else "*fp32"
        default = pointer if name.endswith("_ptr") else "fp32" if is_number else "i32"
        signature[name] = "constexpr" if name in constants else POINTERS.get(name, default)
    even = [i for i, n in enumerate(names) if EVEN.search(n) and n not in UNEVEN]
    if constants.get("KIND") in ("BF16", "F16"):
        even.append(names.index("limit"))  # there, columns
    attributes = {(i,): [["tt.divisibility", 16]] for i in even}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    takes_arch = bool(signature_of(get_ptxas).parameters)  # from Triton 3.5 or 3.6 on
    ptxas = get_ptxas(*([arch] if takes_arch else [])).path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(binary.asm["ptx"])
        target = re.search(r"^\.target (\w+)", binary.asm["ptx"], re.MULTILINE)
        assert target
        command = [ptxas, "-v", f"--gpu-name={target[1]}", path, "-o", path.with_suffix(".o")]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr

    def figure(pattern: str) -> int:
        found = re.search(pattern, report)
        assert found, report
        return int(found[1])

    assembly, ttgir = binary.asm["ptx"], binary.asm["ttgir"]
    return {
        "kernel": kernel.__name__,
        "constants": {k: str(v) for k, v in constants.items()},
        "registers": figure(r"Used (\d+) registers"),
        "spilled_bytes": figure(r"(\d+) bytes spill stores"),
        "shared_bytes": binary.metadata.shared,
        "cubin_bytes": len(binary.asm["cubin"]),
        "has_16_byte_loads": "ld.global.v4.b32" in assembly,
        "loads_of_x": assembly.count("ld.global.v4.b32"),
        "barriers": assembly.count("bar.sync"),
        "reduces_a_reshape": '"tt.reduce"' in ttgir and "tt.reshape" in binary.asm["ttir"],
        "warps": binary.metadata.num_warps,
        "wanted": sorted(lane_distances(ttgir)),
        "shuffled": sorted(shuffles(assembly)),
    }


def expert_kernels() -> Iterator[tuple[Any, dict[str, Any], dict[str, int]]]:
    """Of every type as `expert_ffn` launches them, and pairs of types with unlike tiles."""
    gate_plan, down_plan = experts.plan_lanes(7168), experts.plan_lanes(2048)
    for gate, up in (*((kind, kind) for kind in VECTOR_KINDS), ("Q4_K", "Q6_K")):
        constants = {"GATE": gate, "UP": up, "ROWS": experts.VECTOR_ROWS, "T": gate_plan.lanes}
        yield expert_vectors.gate_up_vectors_kernel, constants, {"num_warps": gate_plan.warps}
    for kind in VECTOR_KINDS:
        constants = {"DOWN": kind, "ROWS": experts.VECTOR_ROWS, "T": down_plan.lanes}
        yield expert_vectors.down_vectors_kernel, constants, {"num_warps": down_plan.warps}
    tiled = [kind for kind in KINDS if kind not in VECTOR_KINDS]
    for gate, up in (*((kind, kind) for kind in tiled), ("Q4_K", "Q5_1")):
        constants = {"GATE": gate, "UP": up, "ROWS": experts.GATE_ROWS}
        yield expert_tiles.gate_up_tiles_kernel, constants, {}
    for kind in tiled:
        constants = {"DOWN": kind, "ROWS": experts.DOWN_ROWS}
        yield expert_tiles.down_tiles_kernel, constants, {}


def product_kernels() -> Iterator[tuple[Any, dict[str, Any], dict[str, int]]]:
    for kind in KINDS:
        for is_one in (True, False):
            if is_one and kind in VECTOR_KINDS:
                continue
            constants = {"IS_ONE": is_one, "DOT": tl.bfloat16, "KIND": kind}
            constants["ROWS"] = product.gemv_rows(kind, is_one=is_one)
            constants["IS_PACKED"] = kind in VECTOR_KINDS
            options = {"num_warps": 4 if is_one else 8, "num_stages": 2}
            yield product._gemv_kernel, constants, options
    yield product._dequantize_kernel, {"KIND": "Q4_K", "IS_PACKED": False, "ROWS": 16}, {}
    plans = {vectors.plan_vectors(*sizes) for sizes in ((18432, 7168), (1536, 7168), (512, 128))}
    for kind, plan, tokens in product_of(VECTOR_KINDS, sorted(plans), (1, 4)):
        constants = {"TOKENS": tokens, "KIND": kind, "REPEATS": plan.repeats}
        constants |= {"WARPS": plan.num_warps, "ROW_LANES": plan.row_lanes}
        yield vectors._vector_kernel, constants, {"num_warps": plan.num_warps}


def prompt_kernels() -> Iterator[tuple[Any, dict[str, Any], dict[str, int]]]:
    """Of experts of a prompt."""
    for rows, warps in ((FEW_ROWS, 4), (MANY_ROWS, 8)):
        constants = {"M": rows, "K": 64, "IS_EVEN": True, "DOT": tl.bfloat16}
        options = {"num_warps": warps, "num_stages": 3}
        yield prompts._gate_up_kernel, {**constants, "N": prompts._GATE_COLS}, options
        yield prompts._down_kernel, {**constants, "N": prompts._DOWN_COLS}, options
    sizes = {"TOKENS": prompts._SUM_TOKENS, "BLOCK": prompts._SUM_COLS}
    yield prompts._sum_kernel, sizes, {}


def other_kernels() -> Iterator[tuple[Any, dict[str, Any], dict[str, int]]]:
    constants = {"R": 512, "P": 64, "R_BLOCK": 512, "P_BLOCK": 64, "BLOCK": 32, "PAGE": 64}
    options = {"num_warps": 8, "num_stages": 2}
    for key in (tl.float16, tl.bfloat16):
        yield attention._attention_kernel, {**constants, "KEY": key, "DOT": key}, options
    yield attention._combine_kernel, {"R": 512, "R_BLOCK": 512, "BLOCK": 32}, {}
    for block, warps in ((512, 1), (2048, 4), (8192, 16)):
        constants = {"BLOCK": block}
        yield elementwise._rms_norm_kernel, constants, {"num_warps": warps}
    yield elementwise._rotate_kernel, {"HEADS": 16, "BLOCK": 32}, {"num_warps": 2}
    yield elementwise._silu_mul_kernel, {"BLOCK": 1024}, {}
    for is_half in (True, False):
        yield elementwise._store_kernel, {"IS_HALF": is_half, "BLOCK": 1024}, {}
    yield hand_over._send_kernel, {"BLOCK": 8192, "K_BLOCK": 128}, {"num_warps": 8}
    for has_part in (True, False):
        yield hand_over._receive_kernel, {"HAS_PART": has_part, "BLOCK": 8192}, {"num_warps": 8}
    for num_groups, is_sigmoid, block in ((8, True, 512), (1, False, 64)):  # K2's; Moonlight's
        constants = {"TOP_K": 8, "GROUPS": num_groups, "GROUPS_USED": (num_groups + 1) // 2}
        constants |= {"HAS_BIAS": is_sigmoid, "IS_SIGMOID": is_sigmoid, "IS_NORMALIZED": True}
        constants |= {"BLOCK": block, "K_BLOCK": 8, "GROUP_BLOCK": num_groups}
        yield router._route_kernel, constants, {"num_warps": 2}


def main(arch: int) -> None:
    kernels = (*expert_kernels(), *product_kernels(), *other_kernels(), *prompt_kernels())
    for kernel, constants, options in kernels:
        if kernel.__module__ == prompts.__name__:
            POINTERS.update(PROMPT_POINTERS)  # these kernels come last
        if kernel is elementwise._store_kernel:
            POINTERS["slots_ptr"] = "*i64"  # there, unlike in the kernels of experts
        if "KEY" in constants:
            POINTERS["pages_ptr"] = "*fp16" if constants["KEY"] == tl.float16 else "*bf16"
        print(json.dumps(compiled(kernel, constants, arch, **options)))


if __name__ == "__main__":
    main(int(sys.argv[1]))
