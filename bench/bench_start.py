"""Time from the start of the process to the first token, by phases, cold and warm.

    python bench/bench_start.py [MODEL.gguf] [--device cuda]

The embedded model by default. Each start is a process of its own, with its own folder of Python
bytecode, of Triton's cache and of kept rates: the first finds them empty (cold), the others full
(warm). After the load no kernel may be compiled. Bars, on a GPU: 8 s cold, 1.5 s warm.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

_STARTED = "BENCH_START_TIME"
_BARS_S = {"cold": 8.0, "warm": 1.5}
_PROMPTS = ("hello", "My name is Ada. What is my name?", "a " * 300)
_TIMED = (  # module, its attribute or class and method, what it is
    ("hybridmoe.llm.load", "choose_gpus", "CUDA"),
    ("hybridmoe.llm.load", "place", "placement"),
    ("hybridmoe.placement.gpu_compile", "model_launches", "list of launches"),
    ("hybridmoe.placement.gpu_compile", "compile_launches", "compiling, or loads from the cache"),
    ("hybridmoe.placement.gpu_compile", "capture_first_graph", "first graph"),
    ("hybridmoe.placement.gpu", "_slots", "expert slots"),
    ("hybridmoe.placement.self_check", "SelfCheck.check_network", "self-check of the network"),
    ("hybridmoe.placement.self_check", "SelfCheck.wrong_layers", "self-check of experts"),
    ("hybridmoe.placement.self_check", "SelfCheck.is_right", "self-check of products"),
    ("hybridmoe.placement.gpu_runtime", "measure_gpu", "rates of the GPU"),
    ("hybridmoe.placement.gpu_runtime", "with_cpu", "rates of the CPU"),
)


@click.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option("--device", default="auto", show_default=True)
@click.option("--turns", default=3, show_default=True, help="Warm starts; the median counts")
@click.option("--out", type=click.Path(path_type=Path), help="File for the JSON")
def main(model: Path | None, device: str, turns: int, out: Path | None) -> None:
    """Print phases and the table; the last line is JSON."""
    from bench._harness import Row, print_report

    with tempfile.TemporaryDirectory() as folder:
        runs = [_start(model, device, Path(folder)) for _ in range(1 + turns)]
    warm = sorted(runs[1:], key=lambda run: run["first token"])[turns // 2]
    rows = []
    for name, run in (("cold", runs[0]), ("warm", warm)):
        print(name)
        for phase, value in run.items():
            print(f"  {phase:<36} {value if isinstance(value, str) else f'{value:.2f} s'}")
        first = run["first token"]
        bar = 60 / _BARS_S[name] if run["device"] == "cuda" else None
        rows.append(
            Row(f"first token, {name}", 60 / first, "1/min", bar=bar, note=f"{first:.2f} s")
        )
    print_report(rows, about={"device": warm["device"]}, out=out)


def _start(model: Path | None, device: str, folder: Path) -> dict[str, Any]:
    """Run one start in a process of its own."""
    environment = {
        **os.environ,
        "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "XDG_STATE_HOME": str(folder / "state"),
        _STARTED: str(time.time()),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, __file__, "--child", "" if model is None else str(model), device]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    phases: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return phases


def _child(model: str, device: str) -> None:
    """Load, respond, and print seconds since the start of the process, by phase."""
    started = float(os.environ[_STARTED])
    phases: dict[str, Any] = {}

    def note(phase: str) -> None:
        phases[phase] = time.time() - started

    import torch  # noqa: F401

    note("torch is imported")
    import hybridmoe

    spent, late = dict[str, float](), list[str]()
    for module, name, what in _TIMED:
        _time(module, name, what, spent)
    note("hybridmoe is imported")
    with hybridmoe.load(model or None, device=device) as llm:
        note("loaded")
        if "triton" in sys.modules:
            sys.modules["triton"].knobs.runtime.jit_cache_hook = lambda *, fn, **_: late.append(
                fn.name
            )
        for number, prompt in enumerate(_PROMPTS):
            messages = [{"role": "user", "content": prompt}]
            stream = llm.chat(messages, stream=True, temperature=0.0, max_tokens=40)
            next(iter(stream))
            if number == 0:
                note("first token")
            for _ in stream:
                pass
            note(f"response {number + 1}")
        on_gpu = llm.plan.vram is not None
    phases |= {f"of it, {what}": seconds for what, seconds in spent.items()}
    phases["device"] = "cuda" if on_gpu else "cpu"
    phases["compiled after the load"] = ", ".join(late) or "nothing"
    print(json.dumps(phases))


def _time(module: str, name: str, what: str, spent: dict[str, float]) -> None:
    """Add up the seconds of a function's calls; not of one that cannot be imported here."""
    from importlib import import_module

    try:
        owner: Any = import_module(module)
    except ImportError:  # no Triton
        return
    *classes, attribute = name.split(".")
    for each in classes:
        owner = getattr(owner, each)
    real: Callable[..., Any] = getattr(owner, attribute)

    def timed(*args: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        try:
            return real(*args, **options)
        finally:
            spent[what] = spent.get(what, 0.0) + time.perf_counter() - begun

    setattr(owner, attribute, timed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child(*sys.argv[2:4])
    else:
        main()
