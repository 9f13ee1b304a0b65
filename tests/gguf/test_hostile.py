"""Hostile GGUF headers: each is refused by one line that names the field, for little memory.

`refusal` runs each case under tracemalloc; a subprocess repeats all of them under RLIMIT_AS.
"""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from raw_gguf import RawFile, RawTensor, V, array, key, string, text_key, u32, u32_key, u64
from refusal import refusal
from waiting import HANG_S

from hybridmoe.errors import GGUFError
from hybridmoe.gguf import GGUFFile
from hybridmoe.gguf.quant_types import QuantType as Q

HUGE = (2**31, 2**32, 2**60, 2**63, 2**64 - 1)
A = RawTensor("a", [32])
HOSTILE: dict[str, tuple[RawFile, str]] = {
    "magic": (RawFile(magic=b"GGML"), "magic: found b'GGML'"),
    "big endian": (RawFile(version=3 << 24), "version: the file is big-endian"),
    "version 0": (RawFile(version=0), "version: found 0, expected 2 or 3"),
    "version 1": (RawFile(version=1), "version: found 1"),
    "version 4": (RawFile(version=4), "version: found 4"),
    **{
        f"{what} count {n}": (RawFile(**{f"num_{field}": n}), f"{what} count: found {n}")
        for what, field in (("tensor", "tensors"), ("metadata key", "keys"))
        for n in (1, 2**16 + 1, *HUGE)
    },
    **{
        f"key length {n}": (RawFile([u64(n) + b"abc" + bytes(30)]), "key 1 of 1: truncated")
        for n in (100, *HUGE)
    },
    "key length 0": (RawFile([key("", V.UINT8, b"\0" * 9)]), "key 1 of 1: name of 0 bytes"),
    "key too long": (RawFile([u32_key("k" * 70_000, 1)]), "name of 70000 bytes"),
    "key not utf-8": (RawFile([key(b"\xff", V.UINT8, b"\0")]), "name is not UTF-8"),
    "key twice": (RawFile([u32_key("k", 1), text_key("k", "v")]), "k: duplicate metadata key"),
    "key with escapes": (RawFile([key("\x1b[2J\n", 99, u64(0))]), "\\x1b[2J\\n: value type 99"),
    "value type 13": (RawFile([key("k", 13, u64(0))]), "k: value type 13, expected 0 to 12"),
    "value type 2^32-1": (RawFile([key("k", 2**32 - 1, u64(0))]), "k: value type 4294967295"),
    "bool of 7": (RawFile([key("k", V.BOOL, b"\7")]), "k: found a BOOL of 7, expected 0 or 1"),
    "bool in array": (
        RawFile([key("k", V.ARRAY, u32(V.BOOL) + u64(2) + b"\1\2")]), "k: found a BOOL of 2"
    ),
    "array of arrays": (
        RawFile([key("k", V.ARRAY, u32(V.ARRAY) + u64(1) + array(V.UINT8, [1]))]), "array of arrays"
    ),
    "array type 77": (RawFile([key("k", V.ARRAY, u32(77) + u64(0))]), "k: value type 77"),
    **{
        f"{kind.name} array of {n}": (
            RawFile([key("k", V.ARRAY, u32(kind) + u64(n) + bytes(64))]), f"k: length: found {n}"
        )
        for kind in (V.UINT8, V.FLOAT64, V.STRING)
        for n in (2**23 + 1, *HUGE)
    },
    **{
        f"string of {n}": (RawFile([key("k", V.STRING, u64(n) + b"abc")]), "k: truncated")
        for n in (40, *HUGE)
    },
    **{
        f"string in array of {n}": (
            RawFile([key("k", V.ARRAY, u32(V.STRING) + u64(2) + string("a") + u64(n))]),
            "k[1]: truncated",
        )
        for n in (99, *HUGE)
    },
    **{
        f"alignment {n}": (RawFile([u32_key("general.alignment", n)]), f"alignment: found {n}")
        for n in (0, 1, 4, 12, 33, 2**21, 2**31, 2**32 - 1)
    },
    "alignment as string": (
        RawFile([text_key("general.alignment", "32")]), "general.alignment: value type STRING"
    ),
    "alignment as array": (
        RawFile([key("general.alignment", V.ARRAY, array(V.UINT32, [32]))]), "value type ARRAY"
    ),
    **{
        f"{n} dims": (RawFile(tensors=[RawTensor("a", [1], num_dims=n)]), f"a: {n} dimensions")
        for n in (0, 5, 2**31, 2**32 - 1)
    },
    **{
        f"dims {dims}": (RawFile(tensors=[RawTensor("a", dims)], data=bytes(64)), f"a: {problem}")
        for dims, problem in (
            ([0], "dimensions [0], expected all above 0"),
            ([4, 0, 2], "dimensions [4, 0, 2]"),
            ([2**63], "dimensions [9223372036854775808] make 2^63 bytes"),
            ([2**32, 2**32], "dimensions [4294967296, 4294967296] make"),
            ([2**33, 2**33, 2**33, 2**33], "dimensions [8589934592,"),
            ([2**64 - 1] * 4, "dimensions [18446744073709551615,"),
            ([2**60], "data ends at byte"),
            ([17], "data ends at byte"),
        )
    },
    **{
        f"row of {n} {kind.name}": (
            RawFile(tensors=[RawTensor("a", [n, 4], kind)], data=bytes(4096)),
            f"a: row length {n}, expected a multiple of {kind.name}'s",
        )
        for n, kind in (
            (31, Q.Q8_0), (33, Q.Q4_0), (128, Q.Q4_K), (300, Q.IQ1_S), (32, Q.NVFP4),
            (128, Q.IQ4_KS),
        )
    },
    **{
        f"tensor type {n}": (RawFile(tensors=[RawTensor("a", [32], n)], data=bytes(999)), problem)
        for n, problem in (
            (4, "a: type 4 (Q4_2) was removed"), (31, "type 31 (Q4_0_4_4) was removed"),
            (38, "type 38 (IQ4_NL_8_8) was removed"), (99, "type 99 is unknown"),
            (155, "type 155 (IQ4_KT of ik_llama.cpp) is not supported"),
            (212, "type 212 (Q4_K_R4 of ik_llama.cpp) is not supported: quantise to Q4_K instead"),
            (2**31, "type 2147483648 is unknown"), (2**32 - 1, "is unknown"),
        )
    },
    **{
        f"offset {n}": (RawFile(tensors=[RawTensor("a", [32], offset=n)], data=bytes(256)), problem)
        for n, problem in (
            (1, "a: offset 1, expected a multiple of the alignment 32"),
            (16, "a: offset 16"), (2**64 - 1, "a: offset 18446744073709551615"),
            (256, "a: data ends at byte"), (2**40, "bytes are missing"),
            (2**63, "bytes are missing"), (2**64 - 32, "bytes are missing"),
        )
    },
    "misaligned for its file": (
        RawFile(
            [u32_key("general.alignment", 64)],
            [RawTensor("a", [32], offset=32)], bytes(256), alignment=64,
        ),
        "a: offset 32, expected a multiple of the alignment 64",
    ),
    "same place": (RawFile(tensors=[A, RawTensor("b", [32])], data=bytes(256)), "b: data at byte"),
    "overlap by one block": (
        RawFile(tensors=[A, RawTensor("b", [8], offset=96)], data=bytes(256)),
        "overlaps tensor a, which ends at byte",
    ),
    "overlap in reverse": (
        RawFile(tensors=[RawTensor("b", [8], offset=32), A], data=bytes(256)), "overlaps tensor a"
    ),
    "tensor twice": (RawFile(tensors=[A, A], data=bytes(256)), "a: duplicate name"),
    "tensor without a name": (RawFile(tensors=[RawTensor("", [32, 1])]), "name of 0 bytes"),
    "tensor name not utf-8": (RawFile(tensors=[RawTensor(b"\xff", [32])]), "name is not UTF-8"),
    "tensor name with escapes": (
        RawFile(tensors=[RawTensor("\x1b]0;x\x07", [0])]), "tensor \\x1b]0;x\\x07: dimensions"
    ),
    "long tensor name": (RawFile(tensors=[RawTensor("n" * 9000, [0])]), f"{'n' * 80}...: dim"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused_by_field(tmp_path: Path, case: str) -> None:
    file, problem = HOSTILE[case]
    message = refusal(file.write(tmp_path / "x.gguf"))
    assert message is not None and problem in message, message


def test_the_cases_are_not_lost_by_equal_names() -> None:
    assert len(HOSTILE) > 100  # besides the thousands of test_damage.py


def _nothing(path: Path) -> None:
    """Leave the path free."""


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (_nothing, "no such file in"),
        (Path.mkdir, "is a directory"),
        (Path.touch, "the file is empty"),
        (os.mkfifo, "not a regular file"),
        (_loop, "cannot be opened: Too many levels of symbolic links"),
        (lambda path: path.write_bytes(b"GG"), "magic: found b'GG'"),
        (lambda path: path.write_text("<html>not found</html>"), "magic: found b'<htm'"),
        (lambda path: path.write_bytes(bytes(1 << 20)), "magic: found b'\\x00"),
    ],
)
def test_other_files_get_one_line(
    tmp_path: Path, make: Callable[[Path], object], problem: str
) -> None:
    path = tmp_path / "x.gguf"
    make(path)
    message = refusal(path)
    assert message is not None and problem in message, message


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "a/b/c.gguf", ""])
def test_impossible_paths_get_one_line(name: str) -> None:
    with pytest.raises(GGUFError) as caught:
        GGUFFile.open(name)
    assert str(caught.value).isprintable()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file_gets_one_line(tmp_path: Path) -> None:
    path = RawFile().write(tmp_path / "x.gguf")
    path.chmod(0)
    with pytest.raises(GGUFError, match="Permission denied"):
        GGUFFile.open(path)


def test_claims_cost_no_address_space(tmp_path: Path) -> None:
    """Sparse and lying files, opened with 64 MiB of address space to spare."""
    for i, (file, _) in enumerate(HOSTILE.values()):
        file.write(tmp_path / f"{i}.gguf")
    sparse = RawFile([key("k", V.STRING, u64(2**40))]).write(tmp_path / "sparse.gguf")
    os.truncate(sparse, 2**40 + 2**20)
    zeros = RawFile(num_keys=2**16).write(tmp_path / "zeros.gguf")
    os.truncate(zeros, 2**25)
    script = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from hybridmoe.errors import GGUFError
        from hybridmoe.gguf import GGUFFile
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + (64 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for path in Path(sys.argv[1]).glob("*.gguf"):
            try:
                GGUFFile.open(path)
            except GGUFError as error:
                print(error)
    """)
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(HOSTILE) + 2
    assert any("sparse.gguf: cannot be opened: Cannot allocate memory" in line for line in lines)
