"""Each instruction set's object exports its kernel table and nothing else.

A template or inline function that the compiler does not inline would be a weak symbol holding, say,
AVX-512 code, which the linker may hand to every caller of that function in the program.
"""

import shutil
import subprocess
import sysconfig

import pytest
from native_build import NOT_INLINED, ROOT, SETUP
from waiting import HANG_S

from hybridmoe.hardware import isa

pytestmark = pytest.mark.slow  # compiles every instruction set


@pytest.fixture(scope="module")
def symbols(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, str]]]:
    """Object of each instruction set, compiled with its flags in setup.py -> [(kind, name)]."""
    compiler = sysconfig.get_config_var("CXX").split()[0]
    assert shutil.which(compiler) and shutil.which("nm"), f"this test needs {compiler} and nm"
    folder = tmp_path_factory.mktemp("objects")
    # Inlining nothing shows what the namespaces guarantee, not what -O3 happens to do.
    processes = {}
    for name, flags in SETUP.OBJECT_FLAGS.items():
        command = [compiler, *SETUP.ISA_CFLAGS, *flags, *NOT_INLINED, "-fPIC", "-c"]
        command += [SETUP.isa_source(name), "-o", str(folder / f"{name}.o")]
        processes[name] = subprocess.Popen(command, cwd=ROOT)
    assert all(process.wait(HANG_S) == 0 for process in processes.values())
    result = {}
    for name in processes:
        output = subprocess.run(
            ["nm", "--demangle", "--format=posix", str(folder / f"{name}.o")],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        result[name] = [_kind_and_name(line) for line in output.splitlines()]
        assert result[name]
    return result


def _kind_and_name(line: str) -> tuple[str, str]:
    """A line of `nm --format=posix`: name, kind, value and size; the name may hold spaces."""
    words = line.split(" ")
    at = max(i for i, word in enumerate(words) if len(word) == 1 and word.isalpha())
    return words[at], " ".join(words[:at])


@pytest.mark.parametrize("name", SETUP.OBJECT_FLAGS)
def test_no_symbol_is_weak(symbols: dict[str, list[tuple[str, str]]], name: str) -> None:
    assert [s for s in symbols[name] if s[0] in "WwVvu"] == []


@pytest.mark.parametrize("name", SETUP.OBJECT_FLAGS)
def test_the_table_is_the_only_export(symbols: dict[str, list[tuple[str, str]]], name: str) -> None:
    exported = [symbol for kind, symbol in symbols[name] if kind.isupper() and kind != "U"]
    assert exported == ["hm::k" + "".join(map(str.capitalize, name.split("_")))]


@pytest.mark.parametrize("name", SETUP.OBJECT_FLAGS)
def test_only_plain_functions_and_tables_are_called(
    symbols: dict[str, list[tuple[str, str]]], name: str
) -> None:
    called = {symbol for kind, symbol in symbols[name] if kind == "U"}
    unexpected = {
        symbol
        for symbol in called
        if not symbol.startswith(("hm::kCodebook", "hm::kPacked", "hm::kWords"))
        and symbol != f"hm::k{SETUP.EXTRAS.get(name, ('',))[0].capitalize()}"  # what it completes
        and symbol not in {"memcpy", "memset", "_GLOBAL_OFFSET_TABLE_"}
    }
    assert unexpected == set()


def test_every_instruction_set_is_linked() -> None:
    assert {*isa.compiled()} == {*SETUP.ISA_FLAGS}, "rebuild the extension"
