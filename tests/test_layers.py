"""The import order of docs/architecture.md: a module imports its own layer or an earlier one."""

import ast
import functools
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "hybridmoe"

LAYERS = {
    name: rank
    for rank, names in enumerate(
        [
            (
                "errors",
                "env",
                "metadata_keys",
                "config",
                "option",
                "units",
                "replace_file",
                "state_folder",
                "packages",
                "_C",
            ),
            ("gguf",),
            ("hardware", "library", "text"),
            ("kernels",),
            ("device", "planning"),
            ("experts",),
            ("model",),
            ("placement", "engine", "cluster"),
            ("demo", "llm"),
            ("serve", "cachebench"),
            ("cli", "__main__"),
        ]
    )
    for name in names
}

# Modules outside cli/ that import inside a function, and why.
IMPORTS_LATE = {
    "hybridmoe.__main__": "cli, behind a handler of Ctrl-C: importing it takes most of the start",
    "hybridmoe.llm.load": "kernels.triton and placement.gpu_compile need Triton, an extra",
    "hybridmoe.placement.placer": "placement.gpu needs Triton, an extra, and takes seconds",
    "hybridmoe.experts.policy.registry": "numba: half a second that only a model with a cache pays",
    "hybridmoe.text.tokenizer": "llama_cpp: 0.2 s that Kimi K2 files do without",
}

MODULES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def _layer_of(module: str) -> int:
    return LAYERS[module.split(".")[1]]


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(tree: ast.AST) -> list[tuple[str, ast.stmt]]:
    found: list[tuple[str, ast.stmt]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.module, node))
        elif isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_never_point_upwards(path: Path) -> None:
    module = _name(path)
    for imported, node in _imports(_tree(path)):
        if imported.startswith("hybridmoe."):
            assert _layer_of(imported) <= _layer_of(module), f"line {node.lineno}: {imported}"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_only_the_cli_imports_inside_functions(path: Path) -> None:
    inner = [
        n for f in ast.walk(_tree(path)) if isinstance(f, ast.FunctionDef) for n in _imports(f)
    ]
    is_allowed = _name(path).startswith("hybridmoe.cli") or _name(path) in IMPORTS_LATE
    assert not inner or is_allowed, f"line {inner[0][1].lineno}"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_only_the_command_imports_by_name(path: Path) -> None:
    """`hybridmoe` itself does, too (PEP 562): neither may import anything before it is used."""
    nodes = list(ast.walk(_tree(path)))
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    used |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert not used & {"import_module", "__import__"} or _name(path) == "hybridmoe.cli.app"


def test_every_module_has_a_docstring_and_a_bearable_length() -> None:
    for path in [*MODULES, ROOT / "__init__.py"]:
        text = path.read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(text)), f"{path.name} has no docstring"
        assert text.count("\n") <= 400, f"{path.name} is two things"


@pytest.mark.parametrize("folder", ["tests", "bench", ".ci"])
def test_files_beside_the_package_have_a_bearable_length(folder: str) -> None:
    paths = (ROOT.parent / folder).rglob("*.py")
    assert [path.name for path in paths if path.read_text().count("\n") > 400] == []


def test_modules_form_no_cycle() -> None:
    """Imports for type checkers alone, and late ones, do not count: they run nothing at import."""
    names = {_name(path).removesuffix(".__init__"): path for path in MODULES}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        targets = set[str]()
        at_import = [n for n in _tree(path).body if isinstance(n, ast.Import | ast.ImportFrom)]
        for module, node in _imports(ast.Module(at_import, [])):
            for alias in node.names:
                submodule = f"{module}.{alias.name}"
                targets.add(submodule if submodule in names else module)
        graph[name] = targets & set(names) - {name}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules
