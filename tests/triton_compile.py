"""Compile the CUDA kernels at Kimi K2's sizes, without a card: prints registers, spills and so on.

A process of its own (`python tests/triton_compile.py 89`), since Triton is either an interpreter or
a compiler from its first import on.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hybridmoe.kernels.triton import attention, elementwise, experts, product, router
from hybridmoe.kernels.triton.decode import KINDS

POINTERS = {  # by the name of a kernel's argument; all others ending in _ptr are float32
    "w_ptr": "*u8",
    "data_ptr": "*u8",
    "pages_ptr": "*bf16",
    "tables_ptr": "*i32",
    "positions_ptr": "*i32",
    "slots_ptr": "*i32",
    "bits_ptr": "*i16",
    "ids_ptr": "*i32",
}
EVEN = re.compile("_ptr$|bytes|num_|stride|offset|^inter$|^n$|^dim$|^count$")
UNEVEN = {"top_k", "num_tokens", "limit", "gate_limit", "up_limit", "table_pages", "num_splits"}


def compiled(kernel: Any, constants: dict[str, Any], arch: int, **options: int) -> dict[str, Any]:
    """What ptxas says of one kernel. Sizes count as multiples of 16, as those of K2 are."""
    names = kernel.arg_names
    signature = {}
    for name in names:
        is_number = name in ("scale", "eps")
        default = "*fp32" if name.endswith("_ptr") else "fp32" if is_number else "i32"
        signature[name] = "constexpr" if name in constants else POINTERS.get(name, default)
    even = [i for i, n in enumerate(names) if EVEN.search(n) and n not in UNEVEN]
    if constants.get("KIND") in ("BF16", "F16"):
        even.append(names.index("limit"))  # there, columns
    attributes = {(i,): [["tt.divisibility", 16]] for i in even}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
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

    return {
        "kernel": kernel.__name__,
        "constants": {k: str(v) for k, v in constants.items()},
        "registers": figure(r"Used (\d+) registers"),
        "spilled_bytes": figure(r"(\d+) bytes spill stores"),
        "shared_bytes": binary.metadata.shared,
        "cubin_bytes": len(binary.asm["cubin"]),
        "has_16_byte_loads": "ld.global.v4.b32" in binary.asm["ptx"],
    }


def main(arch: int) -> None:
    bf16 = tl.bfloat16
    for kind in KINDS:
        for is_one in (True, False):
            constants = {"IS_ONE": is_one, "DOT": bf16, "KIND": kind, "ROWS": 16}
            warps = 4 if is_one else 8
            print(json.dumps(compiled(product._gemv_kernel, constants, arch, num_warps=warps)))
    constants = {"R": 512, "P": 64, "R_BLOCK": 512, "P_BLOCK": 64, "BLOCK": 32, "PAGE": 64}
    options = {"num_warps": 8, "num_stages": 2}
    attend = attention._attention_kernel
    print(json.dumps(compiled(attend, {**constants, "DOT": bf16}, arch, **options)))
    print(json.dumps(compiled(attention._combine_kernel, {"R": 512, "R_BLOCK": 512}, arch)))
    for gate, down in (("Q4_K", "Q6_K"), ("Q2_K", "Q3_K"), ("Q3_K", "Q4_K"), ("MXFP4", "MXFP4")):
        constants = {"GATE": gate, "UP": gate, "ROWS": 8}
        print(json.dumps(compiled(experts._gate_up_kernel, constants, arch)))
        print(json.dumps(compiled(experts._down_kernel, {"DOWN": down, "ROWS": 16}, arch)))
    print(json.dumps(compiled(product._dequantize_kernel, {"KIND": "Q4_K", "ROWS": 16}, arch)))
    constants = {"HAS_DELTA": True, "BLOCK": 8192}
    print(json.dumps(compiled(elementwise._rms_norm_kernel, constants, arch, num_warps=16)))
    constants = {"HEADS": 16, "BLOCK": 32}
    print(json.dumps(compiled(elementwise._rotate_kernel, constants, arch, num_warps=2)))
    print(json.dumps(compiled(elementwise._silu_mul_kernel, {"BLOCK": 1024}, arch)))
    POINTERS["slots_ptr"] = "*i64"  # there, unlike in the kernels of experts
    print(json.dumps(compiled(elementwise._store_kernel, {"BLOCK": 1024}, arch)))
    constants = {"TOP_K": 8, "GROUPS": 8, "GROUPS_USED": 4, "HAS_BIAS": True, "IS_SIGMOID": True}
    constants |= {"IS_NORMALIZED": True, "BLOCK": 512, "K_BLOCK": 8, "GROUP_BLOCK": 8}
    print(json.dumps(compiled(router._route_kernel, constants, arch, num_warps=2)))


if __name__ == "__main__":
    main(int(sys.argv[1]))
